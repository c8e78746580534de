from typing import Self

import numpy as np
from numpy.typing import NDArray
from typing_extensions import disjoint_base

TOKENS_UNKNOWN: int
STOP_UNKNOWN: int
STOP_TOOL_USE: int
STOP_END_TURN: int
CAPACITY_MAX: int
IDS_MAX: int
REQUESTS_MAX: int

_U32 = NDArray[np.uint32]
_U64 = NDArray[np.uint64]

def policies() -> tuple[str, ...]: ...

@disjoint_base
class Requests:
    def __new__(
        cls,
        ids: _U32,
        starts: _U64,
        num_blocks: _U32,
        times_ms: _U64,
        output_tokens: _U32,
        stops: NDArray[np.uint8],
        num_ids: int,
    ) -> Self: ...
    def __len__(self) -> int: ...

@disjoint_base
class Hits:
    prefix: _U32
    blocks: _U32
    fills: _U32
    def __new__(cls, num_requests: int) -> Self: ...

@disjoint_base
class Simulation:
    def __new__(cls, policy: str, capacity: int, requests: Requests) -> Self: ...
    def play(self, first: int, last: int, hits: Hits) -> int: ...
    @property
    def num_stored(self) -> int: ...
    def ghosts(self) -> tuple[int, int]: ...
    def check(self) -> int: ...

def optimum(requests: Requests, capacity: int, hits: Hits) -> int: ...
