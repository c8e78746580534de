from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvstore._core.index import Index

STORED: int
REMOVED: int
CLEARED: int
EVENT: np.dtype[np.void]

def keep(index: Index, num_max: int) -> None: ...
def read(index: Index, since: int, most: int) -> NDArray[Any]: ...
def bounds(index: Index) -> tuple[int, int]: ...
def capacity(index: Index) -> int: ...
def newest(index: Index) -> int: ...
