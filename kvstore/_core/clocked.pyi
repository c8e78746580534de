import numpy as np
from numpy.typing import NDArray

from kvstore._core.index import Index
from kvstore._core.lease import LeaseTable

_Ids = NDArray[np.uint32]
_Keys = NDArray[np.uint8]

def nothing(num: int) -> _Ids: ...
def leases(index: Index, table: LeaseTable, keys: _Keys) -> _Ids: ...
def lines(index: Index, keys: _Keys, ids: _Ids) -> _Ids: ...
