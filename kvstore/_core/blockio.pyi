from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Buffer, disjoint_base

DEPTH_MAX: int
THREADS_MAX: int

@disjoint_base
class Batch:
    outcomes: NDArray[np.uint8]
    checksums: NDArray[np.uint64]
    errnos: NDArray[np.int32]
    owner: Any
    def __new__(
        cls,
        writing: bool,
        fds: NDArray[np.int32],
        offsets: NDArray[np.int64],
        buffers: Sequence[Buffer],
        *,
        checksums: NDArray[np.uint64] | None = None,
        deadline_us: int | None = None,
        owner: Any = None,
    ) -> Self: ...

@disjoint_base
class Engine:
    def __new__(cls, num_threads: int, *, depth: int = 32, allow_ring: bool = True) -> Self: ...
    @property
    def kind(self) -> str: ...
    @property
    def refusal(self) -> str: ...
    @property
    def fileno(self) -> int: ...
    def submit(self, batch: Batch) -> None: ...
    def cancel(self, batch: Batch) -> None: ...
    def take(self, wait_us: int | None = None) -> Batch | None: ...
    def stop(self) -> None: ...

def zero_fill(fd: int, offset: int, nbytes: int, *, cancel: NDArray[np.int32]) -> int: ...
