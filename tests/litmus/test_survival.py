"""Survival against its definition: hazards from counts, additive in the logit; the index by trying every end."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from compiled import CORE, FLAGS, HERE, compiler, mutated_core
from numpy.typing import NDArray

BINS, HALF_LIFE_S, LEAN, PRIOR = 56, 3600.0, 1000.0, 10.0
RADICES = (7, 4, 5, 5, 7)
Rows = NDArray[np.float64]
CLASS, _BIN, EDGE, WAITING, ENDED, ASKED, HAZARD, LEVEL, NEXT_LEVEL, CHANCE = range(10)


def observed(folder: Path, seed: int, core: Path = CORE) -> Rows:
    """What the program prints: float64 (class, bin, columns)."""
    target = folder / "survival"
    command = [compiler(), *FLAGS, f"-I{core}", str(HERE / "hazards.c"), "-o", str(target), "-lm"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    shown = subprocess.run([target, str(seed)], capture_output=True, text=True, check=True).stdout
    return np.array([line.split() for line in shown.splitlines()], dtype=float).reshape(-1, BINS, 10)


def logit(hazard: Rows) -> Rows:
    hazard = np.clip(hazard, 1e-7, 0.999)
    return np.log(hazard / (1 - hazard))


def edges() -> Rows:
    return np.array([0.0, *(1.2**number for number in range(BINS))])


def at_risk(rows: Rows) -> Rows:
    """Per class and bin: blocks that began it, those of the past fading."""
    edge = edges()
    risk = np.zeros(rows.shape[:2])
    for first in range(BINS):
        faded = 2.0 ** (-(edge[first:BINS] - edge[first]) / HALF_LIFE_S)
        risk[:, first] = ((rows[:, first:, WAITING] + rows[:, first:, ENDED]) * faded).sum(axis=1)
    return risk


def features(number: int) -> list[int]:
    values = []
    for radix in reversed(RADICES):
        number, value = divmod(number, radix)
        values.append(value)
    return values[::-1]


def expected_hazards(rows: Rows) -> Rows:
    edge, risk, asked = edges(), at_risk(rows), rows[:, :, ASKED]
    guess = 1 - ((1 + edge[:-1]) / (1 + edge[1:])) ** 0.3
    pooled = (asked.sum(axis=0) + PRIOR * guess) / (risk.sum(axis=0) + PRIOR)
    kinds = [features(int(number)) for number in rows[:, 0, CLASS]]
    leant = np.tile(logit(pooled), (len(rows), 1))
    for feature in range(len(RADICES)):
        for row, kind in enumerate(kinds):
            alike = [other for other, its in enumerate(kinds) if its[feature] == kind[feature]]
            hazard = (asked[alike].sum(axis=0) + LEAN * pooled) / (risk[alike].sum(axis=0) + LEAN)
            leant[row] += logit(hazard) - logit(pooled)
    return np.minimum((asked + LEAN / (1 + np.exp(-leant))) / (risk + LEAN), 0.999)


def expected_index(hazards: Rows) -> Rows:
    """Best ratio of hits to block-seconds over all moments to give up, from each bin on."""
    edge = edges()
    widths = np.append(np.diff(edge)[:-1], edge[BINS - 1])
    best = np.zeros(BINS)
    for first in range(BINS):
        left = np.append(1.0, np.cumprod(1 - hazards[first:-1]))
        hits = np.cumsum(left * hazards[first:])
        seconds = np.cumsum(left * widths[first:] * (1 - hazards[first:] / 2))
        best[first] = (hits / seconds).max()
    return best


def require_right(rows: Rows) -> None:
    np.testing.assert_allclose(rows[:, :, HAZARD], expected_hazards(rows), rtol=2e-4)
    for hazards, levels, nexts in zip(rows[:, :, HAZARD], rows[:, :, LEVEL], rows[:, :, NEXT_LEVEL], strict=True):
        index = expected_index(hazards)
        assert (levels <= index * 1.0001).all() and (index < nexts * 1.0001).all()
    for hazards, chances in zip(rows[:, :, HAZARD], rows[:, :, CHANCE], strict=True):
        edge = edges()[:BINS]
        for first in range(BINS):
            within = (edge >= edge[first]) & (edge < edge[first] + 1800)
            assert chances[first] == pytest.approx(1 - np.prod(1 - hazards[within]), abs=1e-4)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_hazards_index_and_chances_are_what_they_are_defined_as(tmp_path: Path, seed: int) -> None:
    require_right(observed(tmp_path, seed))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("beyond = beyond * fading[bin] +", "beyond = beyond +"),
        ("hits[num_runs - 1] * second > hit * seconds[num_runs - 1]", "hits[num_runs - 1] > hit"),
        ("second += stay * seconds[num_runs];", "second += seconds[num_runs];"),
        ("survival->lean[feature][value][bin] = logit(of_value) - survival->pooled[bin];",
         "survival->lean[feature][value][bin] = logit(of_value);"),
    ],
)  # fmt: skip
def test_a_wrong_one_is_noticed(tmp_path: Path, old: str, new: str) -> None:
    rows = observed(tmp_path, 1, mutated_core(tmp_path, "survival.c", old, new))
    with pytest.raises(AssertionError):
        require_right(rows)
