"""What can change in a manifest. A commit takes a list of these, in the order in which they happened."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvstore.tiers.base import Entries


@dataclass(frozen=True, slots=True)
class Put:
    """Blocks written to a segment since its opening number `seq`."""

    segment: int
    seq: int
    entries: Entries


@dataclass(frozen=True, slots=True)
class Forget:
    """Blocks of a segment, by offset, that must not come back at restart."""

    segment: int
    offsets: NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class Clean:
    """A segment of which every row goes, because it is about to be overwritten."""

    segment: int


@dataclass(frozen=True, slots=True)
class Name:
    """The text to keep for a namespace number."""

    namespace: int
    text: str


@dataclass(frozen=True, slots=True)
class Quota:
    """How many bytes the blocks of a namespace may take; 0: no limit."""

    namespace: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Use:
    """When blocks of a segment were last used: USE rows."""

    segment: int
    rows: NDArray[Any]


Change = Put | Forget | Clean | Name | Quota | Use
