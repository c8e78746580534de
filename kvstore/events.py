"""What a watch tells: blocks that became stored, blocks that are stored no more. Imports nothing of ours but errors."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from kvstore.errors import InvalidRequest

IDLE_MS = 2_000  # a watch says something at least this often
T = TypeVar("T")

U64_MAX = 2**64 - 1
ZERO_KEY = bytes(32)


class Position(NamedTuple):
    """How far somebody has come in the events of one life of a store. Keep it to go on from there."""

    epoch: int  # of the life, random; 0: of none
    seq: int  # number of the latest event seen; counts the events of the whole store

    @classmethod
    def checked(cls, value: Sequence[int]) -> Position:
        """Errors: InvalidRequest unless these are two unsigned numbers of 64 bits."""
        numbers = tuple(value) if isinstance(value, tuple) else ()
        if len(numbers) != 2 or not all(type(one) is int and 0 <= one <= U64_MAX for one in numbers):
            raise InvalidRequest(f"since={value!r:.80} is not the position of an earlier batch")
        return cls(*numbers)


START = Position(0, 0)  # from the oldest event that is kept


class Reason(enum.IntEnum):
    """Why a block is stored no more."""

    UNKNOWN = 0
    EVICTED = 1  # from its last tier
    UNWRITTEN = 2  # evicted before its write-back was done; without a disk tier: evicted
    REMOVED = 3  # somebody asked for it
    CORRUPT = 4  # its bytes, or those of a block that it extends, did not match their checksum
    OVER_QUOTA = 6  # evicted to keep its namespace or tenant within its quota
    EXPIRED = 7  # its time to live was over, and nobody had used it again

    @classmethod
    def _missing_(cls, value: object) -> Reason:
        return cls.UNKNOWN


@dataclass(frozen=True, slots=True)
class Stored:
    """A run of one chain that became visible, in its order: `parent` is the block before the first, None where that
    begins a prompt, and each block is the parent of the next. Keys are those of Namespace.event_keys, 32 bytes each."""

    namespace: str  # its title: the name, or what it is made of
    keys: tuple[bytes, ...]
    parent: bytes | None


@dataclass(frozen=True, slots=True)
class Removed:
    """Blocks that are found in no tier any more, in no particular order."""

    namespace: str
    keys: tuple[bytes, ...]
    reason: Reason


@dataclass(frozen=True, slots=True)
class Cleared:
    """Every block of the namespace is gone; no Removed tells of them."""

    namespace: str


Event = Stored | Removed | Cleared


@dataclass(frozen=True, slots=True)
class Events:
    """What happened up to `position`, in its order; often nothing. `gap`: what happened just before these events is
    lost, so that nothing that was known from earlier ones can be counted on."""

    position: Position
    gap: bool
    events: tuple[Event, ...]


def listed(namespaces: Sequence[T]) -> Sequence[T]:
    """Errors: InvalidRequest unless this is a list, and not an empty one."""
    if not isinstance(namespaces, (list, tuple)) or not namespaces:
        raise InvalidRequest(f"namespaces={namespaces!r:.80} is no list of namespaces; None is all of them")
    return namespaces


def cut_keys(data: bytes) -> tuple[bytes, ...]:
    """Keys that lie behind one another, one by one."""
    width = len(ZERO_KEY)
    return tuple(data[at : at + width] for at in range(0, len(data), width))
