"""A trace through HBM, DRAM and NVMe: where its blocks are found, what is written where, and what time it takes.

HBM is the engine's own, least recently used first. DRAM and NVMe are the store's index; a `Plan` says when what moves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kvstore._core import tiered as core
from kvstore._core.tiered import Sums, Tiered, Tiering
from kvstore.errors import InvalidRequest
from kvstore.simulate import CHUNK, Demand

WRITE_THROUGH, VICTIM = "write-through", "victim"
PROMOTIONS = {"keep": core.KEEP, "move": core.MOVE, "no-refill": core.NO_REFILL}
AT_EVICTION, AT_PUT = "eviction", "put"
CHAIN, LEAF = "chain", "leaf"
SECOND_TOUCH = "second-touch"  # in place of a chance
SETUPS, WRITE_BACKS, DISK_ORDERS = (WRITE_THROUGH, VICTIM), (AT_EVICTION, AT_PUT), (CHAIN, LEAF)


@dataclass(frozen=True, slots=True)
class Plan:
    """When blocks move between tiers. What it starts with is the baseline."""

    setup: str = WRITE_THROUGH  # of SETUPS: into DRAM when missed, or when HBM evicts
    policy: str = "lru"  # of DRAM and NVMe
    promotion: str = "keep"  # of PROMOTIONS: what becomes of the NVMe copy
    write_back: str = AT_EVICTION  # of WRITE_BACKS: decided when DRAM evicts, or when a block comes into DRAM
    disk_order: str = CHAIN  # of DISK_ORDERS: what a block extends is written before it, or it alone
    disk_chance: float | str = 0.0  # written if so likely asked for within core.CHANCE_S, or SECOND_TOUCH
    disk_gain: float = 0.0  # written if worth so many times what has to go for it

    def tiering(self, num_blocks: tuple[int, int, int]) -> Tiering:
        """The same for the core, with the capacities of HBM, DRAM and NVMe."""
        is_second_touch = self.disk_chance == SECOND_TOUCH
        return Tiering(
            *num_blocks,
            takes_victims=self.setup == VICTIM,
            writes_at_put=self.write_back == AT_PUT,
            writes_chains=self.disk_order == CHAIN,
            promotion=PROMOTIONS[self.promotion],
            asked_min=2 if is_second_touch else 0,
            chance_min=0.0 if is_second_touch else float(self.disk_chance),
            gain_min=self.disk_gain,
        )


BASELINE = Plan()


@dataclass(frozen=True, slots=True)
class Costs:
    """What a block costs to load from where it is, one after another, and to compute. Starts with a 70B model's."""

    block_nbytes: int = 160 << 20
    recompute_ms: float = 64.0
    dram_nbytes_per_s: float = 25e9
    nvme_nbytes_per_s: float = 6e9

    def load_ms(self, sums: Sums) -> float:
        """All loads together."""
        seconds = sums.near_hits / self.dram_nbytes_per_s + sums.far_hits / self.nvme_nbytes_per_s
        return 1e3 * seconds * self.block_nbytes


@dataclass(frozen=True, slots=True)
class TieredOutcome:
    """What came of a plan. Shares and writes are of each block asked for, times of each request."""

    plan: Plan
    hbm: float
    dram: float
    nvme: float
    dram_writes: float
    nvme_writes: float
    load_ms: float
    ttft_ms: float

    @property
    def hit(self) -> float:
        """What was in any tier."""
        return self.hbm + self.dram + self.nvme


def play_tiers(
    asked: Demand,
    plan: Plan,
    num_blocks: tuple[int, int, int],
    costs: Costs,
    advance: Callable[[int], None] = lambda num_requests: None,
) -> TieredOutcome:
    """Play a trace through HBM, DRAM and NVMe of so many blocks; `advance` hears of requests as they are done.

    Partial blocks are stored nowhere, as engines have it, and count as asked for and missed.

    Errors: InvalidRequest for names and numbers that are not a plan's, Unavailable without the memory.
    """
    check_plan(plan)
    requests = asked.requests(full_only=True)
    tiers = Tiered(requests, plan.policy, plan.tiering(num_blocks))
    for first in range(0, len(requests), CHUNK):
        last = min(first + CHUNK, len(requests))
        tiers.play(first, last)
        advance(last - first)
    return _outcome(asked, plan, tiers.sums, costs)


def check_plan(plan: Plan) -> None:
    """Errors: InvalidRequest for a name that is none of those there are."""
    for name, known in (
        ("setup", SETUPS),
        ("promotion", PROMOTIONS),
        ("write_back", WRITE_BACKS),
        ("disk_order", DISK_ORDERS),
    ):
        if getattr(plan, name) not in known:
            raise InvalidRequest(f"{name} {getattr(plan, name)!r} is none of {', '.join(known)}")


def _outcome(asked: Demand, plan: Plan, sums: Sums, costs: Costs) -> TieredOutcome:
    num_asked, num_requests = max(asked.num_asked, 1), max(asked.num_requests, 1)
    num_hits = sums.hbm_hits + sums.near_hits + sums.far_hits
    load_ms = costs.load_ms(sums)
    return TieredOutcome(
        plan=plan,
        hbm=sums.hbm_hits / num_asked,
        dram=sums.near_hits / num_asked,
        nvme=sums.far_hits / num_asked,
        dram_writes=sums.near_writes / num_asked,
        nvme_writes=sums.far_writes / num_asked,
        load_ms=load_ms / num_requests,
        ttft_ms=(load_ms + costs.recompute_ms * (asked.num_asked - num_hits)) / num_requests,
    )
