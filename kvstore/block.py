"""Values that cross the public interface. Imports nothing of ours."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple


class Lookup(enum.IntEnum):
    """What is known of one block at the moment of a lease."""

    MISS = 0  # not stored
    PENDING = 1  # stored in a farther tier and on its way; ask again
    HIT = 2  # readable in place


class Match(NamedTuple):
    """The longest stored prefix of a chain of keys. Nothing is protected: a lease may find less."""

    num_blocks: int
    by_tier: Mapping[str, int] = MappingProxyType({})  # how many of them lie where
    load_us: int = 0  # estimated time until all of them are readable, from measured bandwidth
    skipped: int = 0  # more that are stored behind them, and would take longer to load than to compute
    recompute_us: int = 0  # estimated time to compute those

    def __bool__(self) -> bool:
        return self.num_blocks > 0


@dataclass(frozen=True, slots=True)
class PutResult:
    """What became of the blocks of a put: `stored` now, `present` before, `rejected` with the reason by position.
    `durable`: it was asked for, and all of them are on disk and come back after a crash."""

    stored: int
    present: int
    rejected: Mapping[int, str] = field(default_factory=dict)
    durable: bool = False


class Detached(NamedTuple):
    """How a tier left. Every file and lock of it is closed once it is `released`; otherwise its device has not answered
    yet. `unwritten`: blocks that waited for their write-back to it and are in memory only."""

    released: bool
    unwritten: int = 0


class Attached(NamedTuple):
    """What a tier brought along: `blocks` that are stored there now, and how many others were `dropped`, because they
    had been removed, extend what was, or cannot be used."""

    blocks: int
    dropped: int = 0


@dataclass(frozen=True, slots=True)
class BlockLayout:
    """How a block is cut into pieces that lie in different engine tensors.

    `pieces` are the bytes of each piece in the order in which they follow each other inside the block: one per
    tensor. A tensor's first axis is the engine's block number, and one row of it holds one piece.
    """

    pieces: tuple[int, ...]

    @property
    def block_nbytes(self) -> int:
        """Bytes of one whole block."""
        return sum(self.pieces)
