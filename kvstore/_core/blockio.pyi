from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Buffer

def write_blocks(
    fds: NDArray[np.int32],
    offsets: NDArray[np.int64],
    buffers: Sequence[Buffer],
    *,
    cancel: NDArray[np.int32],
    deadline_us: int | None = None,
    tails: NDArray[np.uint8] | None = None,
) -> tuple[NDArray[np.uint8], NDArray[np.uint64], NDArray[np.int32]]: ...
def read_blocks(
    fds: NDArray[np.int32],
    offsets: NDArray[np.int64],
    checksums: NDArray[np.uint64],
    buffers: Sequence[Buffer],
    *,
    cancel: NDArray[np.int32],
    deadline_us: int | None = None,
    tails: NDArray[np.uint8] | None = None,
) -> tuple[NDArray[np.uint8], NDArray[np.int32]]: ...
def zero_fill(fd: int, offset: int, nbytes: int, *, cancel: NDArray[np.int32]) -> int: ...
