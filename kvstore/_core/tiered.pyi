from typing import NamedTuple, Self

from typing_extensions import disjoint_base

from kvstore._core.simulation import Requests

CAPACITY_MAX: int
CHANCE_S: int
KEEP: int
MOVE: int
NO_REFILL: int
GAIN_MAX: float
ASKED_MAX: int

class Tiering(NamedTuple):
    hbm_blocks: int
    near_blocks: int
    far_blocks: int
    takes_victims: bool = False
    writes_at_put: bool = False
    writes_chains: bool = False
    promotion: int = ...
    asked_min: int = 0
    chance_min: float = 0.0
    gain_min: float = 0.0

class Sums(NamedTuple):
    hbm_hits: int
    near_hits: int
    far_hits: int
    misses: int
    near_writes: int
    far_writes: int

@disjoint_base
class Tiered:
    def __new__(cls, requests: Requests, policy: str, tiering: Tiering) -> Self: ...
    def play(self, first: int, last: int) -> None: ...
    @property
    def sums(self) -> Sums: ...
    def check(self) -> int: ...
