"""What an eviction policy hears of hints, of which blocks, and that hearing is no access."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from compiled import CORE, build, mutated_core

WANTED = [
    "-",  # nothing of what is not visible
    "1 1 -1 5",
    "-",
    "2 0 0 4294967295",
    "0 1 -1 5",
    "- 0 1 3 1",
]


def heard(folder: Path, core: Path = CORE) -> list[str]:
    program = build(folder, "hearing", str(core / "hint.c"), core=core)
    return subprocess.run([program], capture_output=True, text=True, check=True, timeout=60).stdout.splitlines()


def test_the_policy_hears_of_the_deepest_visible_block(tmp_path: Path):
    assert heard(tmp_path) == WANTED


BACKWARDS, FORWARDS = "uint32_t i = num_ids; i-- > 0;", "uint32_t i = 0; i < num_ids; i++"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("if (!is_visible(index, deepest)) return;", ""),
        (BACKWARDS, FORWARDS),
        ("index->counts.num_hints++;", "index->counts.num_hints++, index->clock++;"),
    ],
)
def test_each_of_that_is_looked_at(tmp_path: Path, old: str, new: str):
    assert heard(tmp_path, mutated_core(tmp_path, "hint.c", old, new)) != WANTED
