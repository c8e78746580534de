import numpy as np
from numpy.typing import NDArray

from kvstore._core.index import Index

_Ids = NDArray[np.uint32]

def far_in_range(index: Index, at: int, look_max: int, first: int, last: int) -> tuple[_Ids, int]: ...
def used_since(
    index: Index, at: int, look_max: int, found_max: int, since: int
) -> tuple[_Ids, NDArray[np.uint32], int]: ...
def accesses(index: Index, ids: _Ids) -> NDArray[np.uint32]: ...
