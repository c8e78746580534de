import numpy as np
from numpy.typing import NDArray
from typing_extensions import disjoint_base

ENTRIES_MAX: int

@disjoint_base
class IndexView:
    def match(self, keys: NDArray[np.uint8] | bytes, ns: int = -1) -> tuple[int, int, int]: ...
