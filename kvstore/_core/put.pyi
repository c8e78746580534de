from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from typing_extensions import disjoint_base

from kvstore._core.arena import Arena
from kvstore._core.index import Index
from kvstore._core.lease import LeaseTable

OK: int
SHORT_LEASES: int
FOREIGN: int
SHORT_QUOTA: int
SHORT_ENTRIES: int
SHORT_ROOM: int
NO_MEMORY: int
LATE: int
PAST_QUOTA: int
PAST_ENTRIES: int
AGAIN: int
WHY: tuple[str, str, str]

_Ids = NDArray[np.uint32]
_Words = NDArray[np.uint64]

@disjoint_base
class PutPath:
    def __new__(cls, index: Index, arena: Arena, near_nbytes: int, queue_blocks: int, has_far: bool) -> Self: ...
    def set_far(self, has_far: bool) -> None: ...
    def reserve(
        self,
        leases: LeaseTable,
        keys: NDArray[np.uint8] | bytes,
        ns: int,
        shard: int,
        flags: int,
        now_s: int,
        hint: tuple[int, int, int] | None = None,
    ) -> tuple[Any, ...]: ...
    def commit(self, ids: _Ids, shard: int, now_s: int) -> int: ...
    def abandon(self, ids: _Ids, shard: int, now_s: int) -> None: ...
    def expire(self, ids: _Ids, words: _Words, is_over: bool, now_s: int) -> bool: ...
    def room(self, ns: int, num_blocks: int, drop_unwritten: bool, now_s: int) -> _Ids: ...
    def arrived(self, nbytes: int) -> None: ...
    def evict(self, nbytes: int, keep_unwritten: bool, now_s: int) -> int: ...
    def reap(self) -> None: ...
    def take_fresh(self) -> list[tuple[_Ids, _Words, int]]: ...
    def take_far(self) -> list[tuple[int, _Ids]]: ...
    @property
    def has_freed_far(self) -> bool: ...
    @property
    def arriving_nbytes(self) -> int: ...
    @property
    def put_nbytes(self) -> int: ...
    @property
    def num_fresh(self) -> int: ...
    @property
    def num_unqueued(self) -> int: ...
