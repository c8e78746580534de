"""Hit ratios of traces: cases that can be counted by hand, the known ones of real traces, and wrong input."""

from typing import Any

import numpy as np
import pytest
from simulate_helpers import demand_of, known_demand, request_of, tree_trace

from kvstore import simulate as module
from kvstore._core import simulation as core
from kvstore.errors import InvalidRequest, LimitExceeded
from kvstore.simulate import INFINITE, OPT, Outcome, blocks_of, demand, known_policies, mean_hit, simulate

SHARES = (0.003, 0.01, 0.03, 0.1, 0.3)
KNOWN = {  # prefix hits in % at SHARES of the unique blocks, and how exactly they are known
    ("conversation", "opt"): ((14.31, 24.64, 34.80, 36.64, 36.64), 0.01),
    ("conversation", "lru"): ((4.22, 5.25, 12.57, 27.89, 35.77), 0.01),
    ("synthetic", "opt"): ((8.93, 18.54, 31.43, 50.63, 63.96), 0.01),
    ("synthetic", "lru"): ((0.93, 3.81, 10.67, 26.23, 48.78), 0.01),
    # Published ARC and S3-FIFO know blocks, not chains: theirs evict from the middle of a prefix, too.
    ("conversation", "arc"): ((4.56, 6.49, 13.17, 28.43, 34.93), 0.1),
    ("conversation", "s3fifo"): ((4.79, 7.50, 14.51, 24.48, 35.33), 0.5),
    ("agents", "opt"): ((21.5, 50.5, 82.9), 0.05),
    ("agents", "lru"): ((2.2, 16.6, 67.0), 0.05),
}
CASES = [
    pytest.param(*row, share, percent, exact, id=f"{'-'.join(row)}-{share}")
    for row, (percents, exact) in KNOWN.items()
    for share, percent in zip(SHARES, percents, strict=False)
]


def counts(outcome: Outcome, num_asked: int) -> tuple[int, int, int]:
    """Leading hits, hits anywhere, fills."""
    return round(outcome.prefix_hit * num_asked), round(outcome.block_hit * num_asked), outcome.fills


@pytest.mark.parametrize(
    ("chains", "policy", "num_blocks", "expected"),
    [
        ([[1, 2], [3], [1, 2]], "lru", 2, (1, 1, 4)),  # 3 pushes 2 out, the tail before the head
        ([[1, 2], [3], [1, 2]], OPT, 2, (2, 2, 2)),  # 3 passes by
        ([[1, 2], [3], [1, 2]], INFINITE, 2, (2, 2, 3)),
        ([[1, 2, 3, 4]] * 2, "lru", 2, (2, 2, 2)),  # longer than the cache: what fits of it, from its start
        ([[1, 2, 3, 4]] * 2, OPT, 2, (2, 2, 2)),
        ([[1], [2], [1], [2]], "lru", 1, (0, 0, 4)),
        ([[1], [2], [1], [2]], OPT, 1, (1, 1, 1)),
        ([[1], [2], [2], [1]], OPT, 1, (1, 1, 2)),  # 2 takes the place of 1, which is asked for later
        ([[1, 2], [1, 3], [1, 2], [1, 3]], OPT, 2, (4, 4, 2)),
        ([[7], [], [7]], "lru", 5, (1, 1, 1)),
    ],
)
def test_what_can_be_counted_by_hand(
    chains: list[list[int]], policy: str, num_blocks: int, expected: tuple[int, int, int]
) -> None:
    asked = demand_of(*chains)
    assert counts(simulate(asked, policy, num_blocks), asked.num_asked) == expected


@pytest.mark.parametrize(("name", "policy", "share", "percent", "exact"), CASES)
def test_known_hit_ratios_of_real_traces(name: str, policy: str, share: float, percent: float, exact: float) -> None:
    asked = known_demand(name)
    outcome = simulate(asked, policy, blocks_of(share, asked.num_unique))
    assert 100 * outcome.prefix_hit == pytest.approx(percent, abs=exact)
    assert outcome.block_hit == outcome.prefix_hit


@pytest.mark.parametrize(("name", "percent"), [("conversation", 36.6), ("synthetic", 64.0), ("agents", 95.8)])
def test_known_hit_ratios_without_eviction(name: str, percent: float) -> None:
    asked = known_demand(name)
    outcome = simulate(asked, INFINITE, 1)
    assert 100 * outcome.prefix_hit == pytest.approx(percent, abs=0.05)
    for policy in ("lru", OPT):  # as large as everything: nothing is ever evicted
        assert simulate(asked, policy, asked.num_unique).prefix_hit == pytest.approx(outcome.prefix_hit, abs=1e-12)


def test_a_partial_block_at_the_end_counts_as_asked_for_either_way(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = demand([request_of([1, 2, 3], is_partial=True), request_of([1, 2, 3], is_partial=True), request_of([1, 2])])
    whole = simulate(asked, "lru", 10)
    assert counts(whole, asked.num_asked) == (5, 5, 3)
    monkeypatch.setattr(module, "FULL_BLOCKS_ONLY", frozenset({"lru"}))
    full = simulate(asked, "lru", 10)
    assert counts(full, asked.num_asked) == (4, 4, 2)
    assert asked.num_asked == 8


def test_a_trace_that_leaves_partial_blocks_out_has_none() -> None:
    request = request_of([1, 2])
    asked = demand([request, module.Request(0, request.input_tokens + 7, 1, request.block_ids, "")])
    assert asked.num_blocks(full_only=True).tolist() == [2, 2]


def test_what_a_request_carries_reaches_the_core() -> None:
    reasons = ("", "tool_use", "end_turn", "other")
    asked = demand(request_of([5], timestamp_ms=10 * at, stop_reason=reason) for at, reason in enumerate(reasons))
    unknown = core.STOP_UNKNOWN
    assert asked.stops.tolist() == [unknown, core.STOP_TOOL_USE, core.STOP_END_TURN, unknown]
    assert asked.times_ms.tolist() == [0, 10, 20, 30]
    assert asked.output_tokens.tolist() == [1] * 4
    assert len(asked.requests(full_only=False)) == 4


def test_progress_tells_every_request_once() -> None:
    asked = demand_of(*tree_trace(1, 2 * module.CHUNK + 7))
    for policy in known_policies():
        told: list[int] = []
        simulate(asked, policy, 20, told.append)
        assert sum(told) == asked.num_requests


def test_times_are_of_what_was_played() -> None:
    asked = demand_of(*tree_trace(2, 300))
    assert (simulate(asked, "lru", 50).ns_per_block or 0) > 0
    assert (simulate(asked, OPT, 50).ns_per_block or 0) > 0
    assert simulate(asked, INFINITE, 50).ns_per_block is None


def test_more_capacity_than_blocks_is_no_matter() -> None:
    asked = demand_of(*tree_trace(3, 100))
    assert simulate(asked, "lru", core.CAPACITY_MAX).prefix_hit == simulate(asked, "lru", asked.num_unique).prefix_hit


def test_an_empty_trace_has_no_hits() -> None:
    for chains in ([], [[], []]):
        asked = demand_of(*chains)
        assert [counts(simulate(asked, policy, 5), 0) for policy in ("lru", OPT)] == [(0, 0, 0)] * 2


def test_the_mean_is_over_capacities() -> None:
    outcomes = [Outcome("lru", 1, hit, 0.0, 0, None) for hit in (0.25, 0.75)]
    assert mean_hit(outcomes) == 0.5
    assert mean_hit([]) == 0.0


@pytest.mark.parametrize(
    ("capacity", "num_blocks"),
    [(0.003, 3), (0.0024, 2), (0.0001, 1), (1, 1000), (1.0, 1000), (2, 2), (5000.0, 5000), (2**40, 2**40)],
)
def test_capacities(capacity: float, num_blocks: int) -> None:
    assert blocks_of(capacity, 1000) == num_blocks


@pytest.mark.parametrize("capacity", [0, -1, -0.1, 1.5, float("nan"), float("inf"), 2**40 + 1])
def test_what_is_no_capacity(capacity: float) -> None:
    with pytest.raises(InvalidRequest, match=r"neither a share above 0 .* nor a whole number of blocks from 2"):
        blocks_of(capacity, 1000)


@pytest.mark.parametrize(
    ("chains", "text"),
    [
        ([[1, 2], [3, 2]], "request 2: block 2 does not follow the same block"),
        ([[1, 2], [], [2]], "request 3: block 2 does not"),
        ([[4, 4]], "request 1: block 4 does not"),
        ([[1, 2, 3], [1, 3]], "block 3 does not"),
    ],
)
def test_ids_that_are_not_chained_are_refused(chains: list[list[int]], text: str) -> None:
    """Either of the two requests may be named: which is wrong cannot be known."""
    with pytest.raises(InvalidRequest, match=text.partition(": ")[2] or text):
        demand_of(*chains)


def test_limits_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "IDS_MAX", 3)
    with pytest.raises(LimitExceeded, match=r"2 requests of 4 blocks; at most .* and 3"):
        demand_of([1, 2], [1, 2])
    monkeypatch.setattr(core, "REQUESTS_MAX", 1)
    with pytest.raises(LimitExceeded, match=r"2 requests of 2 blocks; at most 1 and"):
        demand_of([1], [1])


def test_an_unknown_policy_is_named() -> None:
    with pytest.raises(InvalidRequest, match="'nope' is none of lru, gittins, s3fifo, arc, opt, infinite"):
        simulate(demand_of([1]), "nope", 2)
    with pytest.raises(InvalidRequest, match="'opt' is none of lru"):
        core.Simulation("opt", 2, demand_of([1]).requests(full_only=False))


def arrays(**changes: Any) -> tuple[Any, ...]:
    u32, u64 = (lambda *values: np.array(values, np.uint32)), (lambda *values: np.array(values, np.uint64))
    good = {"ids": u32(0, 1, 2), "starts": u64(0, 2, 3), "num_blocks": u32(2, 1), "times_ms": u64(0, 5)}
    good |= {"output_tokens": u32(1, 1), "stops": np.zeros(2, np.uint8), "num_ids": 3}
    changed = {name: np.array(value, good[name].dtype) for name, value in changes.items() if name != "num_ids"}
    return tuple((good | changes | changed).values())


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"num_ids": 2}, "id 2 is not below 2"),
        ({"starts": [0, 2, 4]}, "starts from 0 to 4 of 3 ids"),
        ({"starts": [1, 2, 3]}, "starts from 1 to 3"),
        ({"starts": [0, 4, 3]}, "request 0: 2 blocks|request 1"),
        ({"starts": [0, 3]}, "2 starts, 2 times, 2 answers and 2 stops for 2 requests"),
        ({"num_blocks": [3, 1]}, r"request 0: 3 blocks at \[0, 2\)"),
        ({"times_ms": [0]}, "1 times"),
        ({"output_tokens": [1]}, "1 answers"),
        ({"stops": [1]}, "1 stops"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(changes: dict[str, Any], text: str) -> None:
    assert len(core.Requests(*arrays())) == 2
    with pytest.raises(InvalidRequest, match=text):
        core.Requests(*arrays(**changes))


def test_what_the_core_is_asked_is_checked() -> None:
    requests = demand_of([1], [2]).requests(full_only=False)
    simulation = core.Simulation("lru", 2, requests)
    with pytest.raises(InvalidRequest, match=r"requests \[0, 3\) of 2"):
        simulation.play(0, 3, core.Hits(2))
    with pytest.raises(InvalidRequest, match=r"requests \[1, 0\) of 2"):
        simulation.play(1, 0, core.Hits(2))
    for play in (lambda hits: simulation.play(0, 1, hits), lambda hits: core.optimum(requests, 1, hits)):
        with pytest.raises(InvalidRequest, match="hits of 1 requests for 2"):
            play(core.Hits(1))
    with pytest.raises(InvalidRequest, match="over 1099511627776 blocks"):
        core.Simulation("lru", core.CAPACITY_MAX + 1, requests)
