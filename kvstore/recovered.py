"""Recovered: what an earlier run left in a durable tier, as columns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kvstore.tiers.base import ENTRY, Entries, Places


@dataclass(frozen=True, slots=True)
class Recovered:
    """Blocks that an earlier run left, as columns."""

    places: Places
    entries: Entries
    last_used_s: NDArray[np.uint32]

    @classmethod
    def none(cls) -> Recovered:
        """No blocks."""
        return cls(np.empty(0, dtype=np.uint32), np.empty(0, dtype=ENTRY), np.empty(0, dtype=np.uint32))

    @classmethod
    def joined(cls, parts: list[Recovered]) -> Recovered:
        """All parts, at least one, behind one another."""
        columns = ((part.places, part.entries, part.last_used_s) for part in parts)
        return cls(*(np.concatenate(column) for column in zip(*columns, strict=True)))

    def only(self, which: NDArray[np.bool_]) -> Recovered:
        """The blocks that a mask picks."""
        return Recovered(self.places[which], self.entries[which], self.last_used_s[which])

    def of(self, block_nbytes: NDArray[np.uint32]) -> Recovered:
        """The blocks that have the size which their namespace has in `block_nbytes`, by number; 0: there is none."""
        numbers = self.entries["namespace"]
        known = np.minimum(numbers, len(block_nbytes) - 1)
        fit = (known == numbers) & (block_nbytes[known] == self.entries["nbytes"])
        return self if fit.all() else self.only(fit)
