"""Who copies under a lease that is taken away always finds out, and each step of that is needed."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from compiled import build, mutated_core

CPUS = sorted(os.sched_getaffinity(0))[:2]
ROUNDS = 100_000  # a defect shows in a few hundred
PATIENCE = 10  # times ROUNDS until a defect counts as not found

pytestmark = pytest.mark.skipif(len(CPUS) < 2, reason="two threads on one processor cannot race")


def run(program: Path, most: int) -> tuple[int, int, int, int, int]:
    """Rounds run; copies that were intact, revoked, torn (of these), and bad: torn, and said to be intact."""
    command = [str(program), str(most), *map(str, CPUS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, f"{command} ended with {done.returncode}: {done.stderr}"
    ran, intact, revoked, torn, bad = map(int, done.stdout.split())
    return ran, intact, revoked, torn, bad


def test_a_copy_that_counts_as_intact_is(tmp_path: Path):
    ran, intact, revoked, torn, bad = run(build(tmp_path, "revoke"), ROUNDS)
    assert (ran, bad) == (ROUNDS, 0)
    assert intact and revoked and torn, "the reader was never late: the rounds prove nothing"


def test_who_looks_before_copying_does_not_find_out(tmp_path: Path):
    *_, bad = run(build(tmp_path, "revoke", "-DLOOK_FIRST"), PATIENCE * ROUNDS)
    assert bad


@pytest.mark.parametrize(
    ("source", "old", "new"),
    [
        (
            "lease.c",
            "atomic_load_explicit(&turn->turn, memory_order_relaxed))\n            return 0;",
            "atomic_load_explicit(&turn->turn, memory_order_relaxed))\n            return 1;",
        ),
        ("evict.c", "atomic_store_explicit(&table->turns[group].revoked, turn, memory_order_seq_cst);", ""),
        (
            "evict.c",
            "table->revoked[group] == atomic_load_explicit(&table->turns[group].turn, memory_order_relaxed);",
            "1;",
        ),
    ],
    ids=["not asked", "not told", "revoked for ever"],
)
def test_without_a_step_of_it_a_wrong_copy_counts(tmp_path: Path, source: str, old: str, new: str):
    *_, bad = run(build(tmp_path, "revoke", core=mutated_core(tmp_path, source, old, new)), PATIENCE * ROUNDS)
    assert bad
