"""Three tiers of a trace: cases that can be counted by hand, what always adds up, and known numbers of real traces."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from simulate_helpers import demand_of, known_demand, request_of, tree_trace

from kvstore._core import tiered as core
from kvstore._core.tiered import Sums, Tiered, Tiering
from kvstore.errors import InvalidRequest
from kvstore.simulate import CHUNK, Demand, blocks_of, demand
from kvstore.tiered import (
    AT_PUT,
    BASELINE,
    DISK_ORDERS,
    LEAF,
    PROMOTIONS,
    SECOND_TOUCH,
    SETUPS,
    VICTIM,
    WRITE_BACKS,
    Costs,
    Plan,
    TieredOutcome,
    play_tiers,
)

VICTIMS = Plan(setup=VICTIM)
WORTH = Plan(VICTIM, "gittins", disk_chance=0.2, disk_gain=2)
SPARSE = Plan(VICTIM, write_back=AT_PUT, disk_order=LEAF, disk_chance=SECOND_TOUCH)
CODER = Costs(block_nbytes=64 << 20, recompute_ms=12.8)  # an 8B model's
REAL = {"conversation": ((0.01, 0.03, 0.1), Costs()), "agents": ((0.003, 0.01, 0.03), CODER)}


def sums_of(asked: Demand, plan: Plan, *num_blocks: int) -> Sums:
    hbm, dram, nvme = num_blocks
    requests = asked.requests(full_only=True)
    tiers = Tiered(requests, plan.policy, plan.tiering((hbm, dram, nvme)))
    for first, last in pairwise([*range(0, len(requests), 7), len(requests)]):
        tiers.play(first, last)
        assert tiers.check() == 0
    return tiers.sums


@pytest.mark.parametrize(
    ("chains", "plan", "num_blocks", "expected"),
    [
        # HBM hits, DRAM hits, NVMe hits, misses; written to DRAM, to NVMe
        ([[1], [1]], BASELINE, (1, 1, 5), (1, 0, 0, 1, 1, 0)),
        ([[1], [2], [1]], BASELINE, (1, 1, 5), (0, 0, 1, 2, 3, 2)),  # each leaves DRAM for the next
        ([[1], [2], [1]], VICTIMS, (1, 1, 5), (0, 1, 0, 2, 2, 0)),  # 1 and 2 change places
        ([[1], [2], [1]], BASELINE, (1, 2, 5), (0, 1, 0, 2, 2, 0)),
        ([[1], [2], [3], [1]], VICTIMS, (1, 1, 5), (0, 0, 1, 3, 3, 2)),  # 1 comes from NVMe into HBM only
        ([[1], [2], [1], [2]], BASELINE, (1, 1, 5), (0, 0, 2, 2, 4, 2)),
        ([[1], [2], [1], [2]], Plan(promotion="move"), (1, 1, 5), (0, 0, 2, 2, 4, 3)),  # 1 is written again
        ([[1], [2], [1], [2]], Plan(promotion="no-refill"), (1, 1, 5), (0, 1, 1, 2, 2, 1)),  # 2 was never moved
        ([[1], [2], [3], [1], [2]], VICTIMS, (1, 1, 5), (0, 0, 2, 3, 4, 3)),  # HBM gives 1 to DRAM once more
        ([[1], [2], [3], [1], [2]], replace(VICTIMS, promotion="no-refill"), (1, 1, 5), (0, 0, 2, 3, 3, 2)),
        ([[1], [2], [1]], Plan(disk_chance=SECOND_TOUCH), (1, 1, 5), (0, 0, 0, 3, 3, 0)),
        ([[1], [2], [1], [2], [1]], Plan(disk_chance=SECOND_TOUCH), (1, 1, 5), (0, 0, 1, 4, 5, 2)),
        ([[1]], BASELINE, (1, 1, 5), (0, 0, 0, 1, 1, 0)),
        ([[1]], Plan(write_back=AT_PUT), (1, 1, 5), (0, 0, 0, 1, 1, 1)),
        ([[1], [2]], replace(VICTIMS, write_back=AT_PUT), (1, 1, 5), (0, 0, 0, 2, 1, 1)),
        ([[1], [2], [3, 4]], Plan(write_back=AT_PUT), (1, 2, 1), (0, 0, 0, 4, 4, 1)),  # for 2 it is too late
        ([[1, 2], [3]], BASELINE, (1, 2, 5), (0, 0, 0, 3, 3, 2)),  # 2 leaves, and 1 is written before it
        ([[1, 2], [3]], Plan(disk_order=LEAF), (1, 2, 5), (0, 0, 0, 3, 3, 1)),
        ([[1, 2, 3], [1, 2, 3]], BASELINE, (1, 1, 5), (1, 0, 2, 3, 1, 3)),  # what goes first never comes into DRAM
        ([[1, 2, 3], [1, 2, 3]], VICTIMS, (1, 2, 5), (1, 2, 0, 3, 4, 0)),
        ([[1], [2], [3], [4], [1]], BASELINE, (1, 1, 2), (0, 0, 0, 5, 5, 4)),  # 1 was the oldest of NVMe
        (
            [[1, 2], [1, 2], [3], [4]],
            SPARSE,
            (1, 1, 1),
            (1, 1, 0, 4, 4, 2),
        ),  # 2, on NVMe, hangs on 1: 1 takes its place
        ([[], [7], []], BASELINE, (1, 1, 1), (0, 0, 0, 1, 1, 0)),
    ],
)
def test_what_can_be_counted_by_hand(
    chains: list[list[int]], plan: Plan, num_blocks: tuple[int, int, int], expected: tuple[int, ...]
) -> None:
    assert sums_of(demand_of(*chains), plan, *num_blocks) == expected


def timed(seed: int, num_requests: int) -> Demand:
    chains = tree_trace(seed, num_requests)
    return demand(request_of(ids, timestamp_ms=9000 * at) for at, ids in enumerate(chains))


@pytest.mark.parametrize("disk_order", DISK_ORDERS)
@pytest.mark.parametrize("write_back", WRITE_BACKS)
@pytest.mark.parametrize("promotion", PROMOTIONS)
@pytest.mark.parametrize("setup", SETUPS)
@pytest.mark.parametrize("policy", ["lru", "gittins"])
def test_every_block_is_found_somewhere_or_missed(
    policy: str, setup: str, promotion: str, write_back: str, disk_order: str
) -> None:
    """Of each plan, with tiers of all proportions; the audit counts what is where."""
    plan = Plan(setup, policy, promotion, write_back, disk_order)
    for seed, num_blocks in enumerate([(5, 15, 50), (30, 10, 20), (1, 1, 1), (3, 60, 8)]):
        asked = timed(seed, 300)
        for worth in (plan, replace(plan, disk_chance=0.3, disk_gain=1.5)):
            sums = sums_of(asked, worth, *num_blocks)
            assert sum(sums[:4]) == asked.num_asked
            assert sums.misses >= asked.num_unique
            assert sums.near_writes <= asked.num_asked


def test_tiers_that_hold_everything_miss_only_what_is_new() -> None:
    asked = timed(3, 300)
    for plan in (BASELINE, VICTIMS, WORTH):
        sums = sums_of(asked, plan, 5, asked.num_unique, 10)
        assert (sums.misses, sums.far_hits, sums.far_writes) == (asked.num_unique, 0, 0)
    for plan in (BASELINE, VICTIMS, replace(WORTH, disk_chance=0.0)):
        sums = sums_of(asked, plan, 5, 10, asked.num_unique)
        assert sums.misses == asked.num_unique
        assert min(sums.hbm_hits, sums.near_hits, sums.far_hits) > 0


def test_worth_and_chance_keep_blocks_from_the_disk() -> None:
    asked = timed(4, 2000)
    plain = replace(WORTH, disk_chance=0.0, disk_gain=0.0)
    written = [
        sums_of(asked, plan, 10, 30, 100).far_writes
        for plan in (
            plain,
            replace(plain, disk_gain=1.0),
            replace(plain, disk_gain=8.0),
            replace(plain, disk_chance=1.0),
        )
    ]
    assert written == sorted(written, reverse=True) and len(set(written)) == len(written)


def test_times_are_of_loads_and_of_what_is_computed() -> None:
    asked = demand([request_of([1]), request_of([2]), request_of([1, 9], is_partial=True)])
    costs = Costs(block_nbytes=12_000_000, recompute_ms=7, dram_nbytes_per_s=6e9, nvme_nbytes_per_s=3e9)
    outcome = play_tiers(asked, BASELINE, (1, 1, 5), costs)
    assert (outcome.hit, outcome.nvme, outcome.dram_writes, outcome.nvme_writes) == (0.25, 0.25, 0.75, 0.5)
    assert (outcome.load_ms, outcome.ttft_ms) == pytest.approx((4 / 3, (4 + 3 * 7) / 3))
    from_dram = play_tiers(asked, VICTIMS, (1, 1, 5), costs)
    assert (from_dram.dram, from_dram.load_ms) == pytest.approx((0.25, 2 / 3))


def test_progress_tells_every_request_once() -> None:
    told: list[int] = []
    play_tiers(demand_of(*tree_trace(1, 2 * CHUNK + 7)), BASELINE, (2, 5, 9), Costs(), told.append)
    assert told == [CHUNK, CHUNK, 7]


def real(name: str, plan: Plan) -> TieredOutcome:
    shares, costs = REAL[name]
    asked = known_demand(name)
    hbm, dram, nvme = (blocks_of(share, asked.num_unique) for share in shares)
    return play_tiers(asked, plan, (hbm, dram, nvme), costs)


@pytest.mark.parametrize(
    ("plan", "known"),
    [  # hit, HBM (as it would hit alone), DRAM, NVMe in %; writes to DRAM, to NVMe a block; ms to load, to first token
        (BASELINE, (30.5, 5.28, 7.9, 17.3, 0.826, 0.639, 128, 1195)),
        (Plan(disk_chance=SECOND_TOUCH), (25.2, 5.28, 7.9, 12.0, 0.826, 0.150, 93, 1241)),
        (VICTIMS, (31.1, 5.28, 11.8, 14.0, 0.898, 0.627, 113, 1170)),
    ],
)
def test_known_numbers_of_a_real_trace(plan: Plan, known: tuple[float, ...]) -> None:
    found = real("conversation", plan)
    shares = [100 * share for share in (found.hit, found.hbm, found.dram, found.nvme)]
    times = (found.dram_writes, found.nvme_writes, found.load_ms, found.ttft_ms)
    assert (*shares, *times) == pytest.approx(known, rel=0.02)


@pytest.mark.parametrize(("name", "ttft", "writes"), [("conversation", 0.975, 0.9), ("agents", 0.81, 0.6)])
def test_worth_is_faster_and_writes_less_than_recency(name: str, ttft: float, writes: float) -> None:
    """What docs/decisions promise of the plan they choose."""
    plain, worth = real(name, BASELINE), real(name, WORTH)
    assert worth.ttft_ms <= ttft * plain.ttft_ms
    assert worth.nvme_writes <= writes * plain.nvme_writes
    assert worth.hit >= plain.hit - 0.005


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"setup": "no"}, "setup 'no' is none of write-through, victim"),
        ({"promotion": "no"}, "promotion 'no' is none of keep, move, no-refill"),
        ({"write_back": "no"}, "write_back 'no' is none of eviction, put"),
        ({"disk_order": "no"}, "disk_order 'no' is none of chain, leaf"),
        ({"policy": "opt"}, "policy 'opt' is none of lru"),
        ({"disk_chance": 1.5}, "chance_min 1.5 is not from 0 to 1"),
        ({"disk_gain": 2000.0}, "gain_min 2000.0 is not from 0 to 1024"),
    ],
)
def test_what_is_no_plan_is_named(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidRequest, match=text):
        play_tiers(demand_of([1]), replace(BASELINE, **changes), (1, 1, 1), Costs())


def test_what_the_core_is_asked_is_checked() -> None:
    requests = demand_of([1], [2]).requests(full_only=False)
    good = Tiering(1, 1, 1)
    for wrong, text in (
        (good._replace(hbm_blocks=0), "hbm_blocks 0 is not from 1 to 1099511627776"),
        (good._replace(far_blocks=2**40 + 1), "far_blocks 1099511627777 is not"),
        (good._replace(promotion=3), "promotion 3 is none of 0, 1, 2"),
        (good._replace(asked_min=core.ASKED_MAX + 1), "asked_min 256 is not from 0 to 255"),
    ):
        with pytest.raises(InvalidRequest, match=text):
            Tiered(requests, "lru", wrong)
    for first, last in ((0, 3), (1, 0)):
        with pytest.raises(InvalidRequest, match=rf"requests \[{first}, {last}\) of 2"):
            Tiered(requests, "lru", good).play(first, last)
