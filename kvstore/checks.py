"""Checks of what an application hands in: each raises InvalidRequest with the value and what is allowed."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np

from kvstore.arrays import Keys
from kvstore.errors import InvalidRequest

KEY_NBYTES = 32
TIME_MS_MAX = 2**31 - 1  # 24 days: nobody waits longer on purpose
TOKENS_PER_S_MAX = 10**9
TOKENS_MAX = 2**31 - 1  # of one prompt
UINT8 = np.dtype(np.uint8)
KEY_STRIDES = (KEY_NBYTES, 1)


def described(value: object) -> str:
    """A value in an error's text: arrays by their shape, others by what they print, cut short."""
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype} and shape {value.shape}"
    return f"{value!r:.80}"


def whole_number(name: str, value: Any, low: int, high: int) -> int:
    """`value` as an int; also numpy's integers, but no boolean."""
    try:
        number = operator.index(value) if not isinstance(value, (bool, np.bool_)) else low - 1
    except TypeError:
        number = low - 1
    if not low <= number <= high:
        raise InvalidRequest(f"{name}={described(value)} is not an integer between {low} and {high}")
    return number


def duration_us(name: str, value: Any) -> int:
    """A time given in milliseconds as microseconds."""
    is_number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    if not is_number or not 0 <= value <= TIME_MS_MAX:  # a NaN is in no range
        raise InvalidRequest(f"{name}={described(value)} is not a number of milliseconds from 0 to {TIME_MS_MAX}")
    return int(value * 1000)


def prefill_rate(value: Any) -> float | None:
    """The `prefill_tokens_per_s` of a call; None: it does not say."""
    if value is None:  # nearly always, and a lookup takes a microsecond
        return None
    is_number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    if not is_number or not 0 <= value <= TOKENS_PER_S_MAX:
        raise InvalidRequest(
            f"prefill_tokens_per_s={described(value)} is not a number of tokens a second from 0 to {TOKENS_PER_S_MAX}"
        )
    return float(value)


def computed_tokens(num_tokens: Any, elapsed_us: Any) -> tuple[int, float]:
    """How much was computed in what time."""
    is_number = isinstance(elapsed_us, (int, float, np.integer, np.floating)) and not isinstance(elapsed_us, bool)
    if not is_number or not 0 < elapsed_us <= TIME_MS_MAX * 1000:
        raise InvalidRequest(
            f"elapsed_us={described(elapsed_us)} is not a number of microseconds above 0 and up to {TIME_MS_MAX * 1000}"
        )
    return whole_number("num_tokens", num_tokens, 1, TOKENS_MAX), float(elapsed_us)


def checked_keys(keys: Keys | bytes | bytearray | memoryview) -> Keys:
    """`keys` as they are, when they are what Namespace.keys returns; or bytes, 32 for each key, as such an array."""
    # What nearly everybody hands in, at a third of the cost of the checks that can say what is wrong.
    if type(keys) is np.ndarray and keys.dtype is UINT8 and keys.strides == KEY_STRIDES and keys.shape[1] == KEY_NBYTES:
        return keys
    if isinstance(keys, (bytes, bytearray, memoryview)):
        return _keys_of_bytes(keys)
    is_array = isinstance(keys, np.ndarray) and keys.dtype == UINT8 and keys.ndim == 2
    if not is_array or keys.shape[1] != KEY_NBYTES or not keys.flags.c_contiguous:
        raise InvalidRequest(
            f"keys={described(keys)} is not a contiguous uint8 array of shape (num_blocks, {KEY_NBYTES})"
        )
    return keys


def _keys_of_bytes(keys: bytes | bytearray | memoryview) -> Keys:
    view = memoryview(keys)
    if not view.c_contiguous or view.itemsize != 1 or view.nbytes % KEY_NBYTES:
        raise InvalidRequest(f"keys of {view.nbytes} bytes are not contiguous bytes, {KEY_NBYTES} for each key")
    return np.frombuffer(view, dtype=np.uint8).reshape(-1, KEY_NBYTES)
