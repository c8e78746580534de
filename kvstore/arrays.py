"""Small numpy helpers of the store and the mover."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.uint32]
Words = NDArray[np.uint64]
Mask = NDArray[np.uint8]
Keys = NDArray[np.uint8]

NO_IDS: Ids = np.empty(0, dtype=np.uint32)


def chosen(mask: Mask) -> NDArray[np.bool_]:
    """A core's 0/1 answer as a numpy selection."""
    return mask.view(np.bool_)


def joined(parts: list[NDArray[Any]]) -> NDArray[Any]:
    """One array of many; the first itself when there is only one."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
