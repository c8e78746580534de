"""A lease and an eviction never both succeed on one block, and each of the two fences is needed for that."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from compiled import build, mutated_core

CPUS = sorted(os.sched_getaffinity(0))[:2]
ROUNDS = 300_000  # a missing fence shows in less than half of them, mostly in a few thousand
PATIENCE = 20  # times ROUNDS until a missing fence counts as not found

pytestmark = pytest.mark.skipif(len(CPUS) < 2, reason="two threads on one processor cannot race")


def rounds(program: Path, mode: str, most: int) -> tuple[int, int, int, int]:
    """Rounds run, those that both won, and those that the reader and the writer won mostly."""
    command = [str(program), mode, str(most), *map(str, CPUS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, f"{command} ended with {done.returncode}: {done.stderr}"
    ran, both, reader, writer = map(int, done.stdout.split())
    return ran, both, reader, writer


@pytest.mark.parametrize("mode", ["mark", "evict", "turn", "close"])
def test_with_both_fences_only_one_side_wins(tmp_path, mode):
    ran, both, reader, writer = rounds(build(tmp_path, "dekker", without=("evict",)), mode, ROUNDS)
    assert (ran, both) == (ROUNDS, 0)
    assert reader and writer, "one side won every time: the rounds prove nothing"


@pytest.mark.parametrize("mode", ["mark", "turn"])
@pytest.mark.parametrize("fence", ["KV_NO_READER_FENCE", "KV_NO_WRITER_FENCE"])
def test_without_a_fence_both_sides_win(tmp_path, fence, mode):
    program = build(tmp_path, "dekker", f"-D{fence}", without=("evict",))
    ran, both, _, _ = rounds(program, mode, PATIENCE * ROUNDS)
    assert both == 1, f"{ran} rounds did not notice {fence}"


def test_who_does_not_look_whether_the_table_was_closed_wins_with_the_owner(tmp_path):
    core = mutated_core(tmp_path, "lease.c", "    if (is_closed(table)) {", "    if (0) {")
    ran, both, _, _ = rounds(build(tmp_path, "dekker", without=("evict",), core=core), "close", ROUNDS)
    assert both == 1, f"{ran} rounds did not notice"


def test_a_revocation_that_outlives_its_turn_lets_both_sides_win(tmp_path):
    turn = "table->revoked[group] == atomic_load_explicit(&table->turns[group].turn, memory_order_relaxed);"
    core = mutated_core(tmp_path, "evict.c", turn, "1;")
    ran, both, _, _ = rounds(build(tmp_path, "dekker", without=("evict",), core=core), "turn", ROUNDS)
    assert both == 1, f"{ran} rounds did not notice"
