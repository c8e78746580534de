"""S3-FIFO and ARC of the core against the same in plain Python, request by request."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from queue_models import MODELS, OFTEN, QueueModel

from kvstore._core.simulation import Hits, Simulation
from kvstore.simulate import demand
from kvstore.trace import BLOCK_TOKENS, Request

Path = list[int]


def chained(paths: list[Path]) -> list[list[int]]:
    ids: dict[tuple[int, ...], int] = {}
    return [[ids.setdefault(tuple(path[: depth + 1]), len(ids)) for depth in range(len(path))] for path in paths]


def require_same(policy: str, paths: list[Path], capacity: int, gaps_ms: list[int]) -> QueueModel:
    chains, times = chained(paths), np.cumsum(gaps_ms).tolist()
    made = [
        Request(now, len(ids) * BLOCK_TOKENS, 1, np.array(ids, dtype=np.uint32), "")
        for ids, now in zip(chains, times, strict=True)
    ]
    simulation, hits = Simulation(policy, capacity, demand(made).requests(full_only=False)), Hits(len(made))
    model = MODELS[policy](capacity)
    for number, (chain, now) in enumerate(zip(chains, times, strict=True)):
        simulation.play(number, number + 1, hits)
        ours = hits.prefix[number], hits.blocks[number], hits.fills[number]
        assert ours == model.request(chain, now), f"request {number} of {chains}"
        assert simulation.check() == 0
        assert simulation.num_stored == model.num_stored
        assert simulation.ghosts()[0] == sum(map(len, model.echoes))
    return model


@pytest.mark.parametrize("policy", MODELS)
@settings(max_examples=300, deadline=None)
@given(
    paths=st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=8), min_size=1, max_size=60),
    capacity=st.integers(1, 40),
    gap_ms=st.sampled_from([0, 300, 5000]),
)
def test_the_same_hits_as_the_model(policy: str, paths: list[Path], capacity: int, gap_ms: int) -> None:
    require_same(policy, paths, capacity, [gap_ms] * len(paths))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("policy", MODELS)
def test_the_same_hits_as_the_model_over_a_long_time(policy: str, seed: int) -> None:
    """Long enough that echoes are forgotten, and that all lists have been long and short."""
    rng = np.random.default_rng(seed)
    skew = (0.5, 1, 2, 4)[seed]
    paths = [(5 * rng.random(rng.integers(1, 14)) ** skew).astype(int).tolist() for _ in range(1500)]
    model = require_same(policy, paths, 250, rng.integers(0, 500, len(paths)).tolist())
    assert all(model.lists)
    assert sum(map(len, model.echoes)) <= 250


@pytest.mark.parametrize("policy", MODELS)
def test_what_is_asked_for_again_outlives_what_is_asked_for_once(policy: str) -> None:
    """A scan passes by a working set that was used before; LRU would lose it."""
    paths = [[number] for number in range(8)] * 4 + [[100 + number] for number in range(40)] + [[n] for n in range(8)]
    model = require_same(policy, paths, 10, [10] * len(paths))
    assert sum(model.list_of(number) is not None for number in range(8)) == 8


@pytest.mark.parametrize(("policy", "again"), [("s3fifo", 1), ("arc", 6)])
def test_a_block_that_left_comes_back_among_those_asked_for_often(policy: str, again: int) -> None:
    paths = [[number] for number in (0, 1, 2, 0, 1, 2, *range(3, 15))]
    before = require_same(policy, paths, 10, [10] * len(paths))
    assert before.list_of(again) is None
    after = require_same(policy, [*paths, [again]], 10, [10] * (len(paths) + 1))
    assert after.list_of(again) == OFTEN
