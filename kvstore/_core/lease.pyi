from typing import Self

import numpy as np
from numpy.typing import NDArray
from typing_extensions import disjoint_base

from kvstore._core.view import IndexView

STOP_END: int
STOP_MISS: int
STOP_BUSY: int
STOP_FULL: int

@disjoint_base
class Grip:
    num_blocks: int
    num_near: int
    stop: int
    is_near: bool
    def release(self) -> None: ...
    def ids(self) -> NDArray[np.uint32]: ...
    def advance(self) -> bool: ...
    @property
    def intact(self) -> bool: ...
    def near_places(self) -> NDArray[np.uint32]: ...

@disjoint_base
class LeaseTable:
    def __new__(cls, index: IndexView, entries_max: int = ..., fd: int = -1) -> Self: ...
    def acquire(self, keys: NDArray[np.uint8] | bytes, counted: bool = True, ns: int = -1) -> Grip: ...
    def hold(self, ids: NDArray[np.uint32]) -> Grip: ...
    @property
    def touches(self) -> int: ...
    @property
    def used(self) -> int: ...
    @property
    def entries_max(self) -> int: ...
