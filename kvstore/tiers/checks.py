"""Checks of what callers hand to a tier: every one raises InvalidRequest and changes nothing."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvstore.errors import InvalidRequest
from kvstore.tiers.base import BLOCK_NBYTES_MAX, ENTRY, PLACE_NBYTES, Buffer, Entries, Places

PLACE = np.dtype(np.uint32)


def check_size(nbytes: int, num_blocks: int) -> None:
    """The size and number of some blocks."""
    if not 1 <= nbytes <= BLOCK_NBYTES_MAX or num_blocks < 0:
        allowed = f"1 to {BLOCK_NBYTES_MAX} bytes, 0 blocks or more"
        raise InvalidRequest(f"nbytes={nbytes}, num_blocks={num_blocks}; allowed: {allowed}")


def check_places(places: Places) -> None:
    """A vector of uint32."""
    if not isinstance(places, np.ndarray) or places.dtype != PLACE or places.ndim != 1:
        raise InvalidRequest(f"places is {described(places)}; allowed: a vector of uint32")


def check_batch(values: NDArray[Any], others: Sized, *, name: str = "places", dtype: np.dtype[Any] = PLACE) -> None:
    """A vector of `dtype` with one element for each of `others`."""
    if not isinstance(values, np.ndarray) or values.dtype != dtype or values.ndim != 1:
        raise InvalidRequest(f"{name} is {described(values)}; allowed: a vector of {dtype}")
    if len(values) != len(others):
        raise InvalidRequest(f"{name} has {len(values)} elements; allowed: {len(others)}, one per block")


def check_entries(entries: Entries, num_blocks: int) -> None:
    """A writable vector of ENTRY rows, one per block."""
    check_batch(entries, range(num_blocks), name="entries", dtype=ENTRY)
    if not entries.flags.writeable:
        raise InvalidRequest("entries is read-only; allowed: a writable vector, its checksums are filled in")


def pages_of_buffers(buffers: Sequence[Buffer], *, writable: bool) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """How many PLACE_NBYTES units and how many bytes each buffer takes."""
    nbytes = np.empty(len(buffers), dtype=np.int64)
    for number, buffer in enumerate(buffers):
        try:
            view = memoryview(buffer)
        except TypeError:
            kind = type(buffer).__name__
            raise InvalidRequest(f"buffers[{number}] is a {kind}; allowed: memoryviews") from None
        if not view.c_contiguous or view.nbytes == 0 or (writable and view.readonly):
            kind = "contiguous, not empty and writable" if writable else "contiguous and not empty"
            raise InvalidRequest(f"buffers[{number}] has {view.nbytes} bytes; allowed: {kind}")
        nbytes[number] = view.nbytes
    return -(-nbytes // PLACE_NBYTES), nbytes


def described(value: object) -> str:
    """What a caller handed in, for an error's text."""
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype} and shape {value.shape}"
    return f"a {type(value).__name__}"
