from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from typing_extensions import Buffer

# Before Python 3.12 a type checker does not know that an array is a buffer.
_Memory: TypeAlias = Buffer | NDArray[Any]

def kernels() -> list[str]: ...
def copy_pieces(dst: NDArray[np.uint64], src: NDArray[np.uint64], nbytes: int, kernel: str = "auto") -> None: ...
def piece_addresses(buffer: _Memory, piece_nbytes: int, *, writable: bool) -> NDArray[np.uint64]: ...
def strided_addresses(
    tensor: _Memory, block_ids: ArrayLike, piece_nbytes: int, *, writable: bool
) -> NDArray[np.uint64]: ...
def list_addresses(buffers: Sequence[_Memory], nbytes: int, *, writable: bool) -> NDArray[np.uint64]: ...
