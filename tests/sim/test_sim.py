"""Seeds of the simulator. SIM_SEEDS=<n> runs more of them, SIM_SEED=<n> repeats one and prints what happens in it."""

from __future__ import annotations

import os

import pytest

from sim.world import run

NUM_SEEDS = int(os.environ.get("SIM_SEEDS", "1000"))
SEED = os.environ.get("SIM_SEED")
GROUP = 50


def live_through(seed: int) -> None:
    try:
        run(seed)
    except BaseException:
        print(f"\nseed {seed} failed; this repeats it:\n  SIM_SEED={seed} python -m pytest -q -s tests/sim")
        raise


@pytest.mark.skipif(SEED is not None, reason="SIM_SEED asks for one seed")
@pytest.mark.parametrize("first", range(0, NUM_SEEDS, GROUP))
def test_whatever_happens_nothing_wrong_is_served_and_the_store_comes_to_rest(first):
    for seed in range(first, min(first + GROUP, NUM_SEEDS)):
        live_through(seed)


@pytest.mark.skipif(SEED is None, reason="SIM_SEED=<n> repeats one seed")
def test_one_seed():
    run(int(SEED or 0), note=print)


@pytest.mark.parametrize("seed", range(7, 12))
def test_the_same_seed_is_the_same_run(seed):
    first, second = [], []
    run(seed, first.append)
    run(seed, second.append)
    assert len(first) > 50
    assert first == second
