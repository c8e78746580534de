"""Load or recompute: the decision, what it is made of, and what a store of two tiers does by it."""

import numpy as np
import pytest
from store_helpers import (
    BLOCK,
    SECOND_US,
    TOKENS,
    FakeClock,
    ObedientTier,
    chain,
    make_spec,
    make_store,
    put_chain,
    settle,
)

from kvstore import Lookup, policy
from kvstore.errors import InvalidRequest, Unavailable
from kvstore.policy import PROBE_US, RATE_HALF_US, Bandwidth, TokenRate

LOAD_US = 1000  # of a block, as `measured` says
FAST = TOKENS * 1e6 / (LOAD_US / 2)  # tokens a second: a block is computed in half of that
SLOW = TOKENS * 1e6 / (LOAD_US * 2)
PIECE = policy.read_blocks(BLOCK)


# ---- decisions ----


@pytest.mark.parametrize(
    ("num_blocks", "num_far", "queue_us", "load_us", "compute_us", "kept"),
    [
        (10, 10, 0, 1.0, 2.0, 10),
        (10, 10, 0, 2.0, 1.0, 0),
        (10, 10, 0, 1.0, 1.0, 10),  # then it is as good, and spares the processor
        (10, 10, 9, 1.0, 2.0, 10),
        (10, 10, 11, 1.0, 2.0, 0),
        (12, 12, 11, 1.0, 2.0, 12),  # a longer one is worth the queue
        (10, 2, 0, 4.0, 1.0, 10),  # the others are near behind them
        (10, 3, 0, 4.0, 1.0, 0),
        (10, 0, 9, 4.0, 1.0, 10),  # all on their way already
        (10, 0, 11, 4.0, 1.0, 0),
        (0, 0, 0, 4.0, 1.0, 0),
    ],
)
def test_what_is_worth_loading(num_blocks, num_far, queue_us, load_us, compute_us, kept) -> None:
    assert policy.blocks_to_load(num_blocks, num_far, queue_us, load_us, compute_us) == kept


def test_no_other_cut_is_better() -> None:
    rng = np.random.default_rng(1)
    chosen = set()
    for _ in range(500):
        num, queue_us = int(rng.integers(1, 30)), float(rng.integers(0, 40))
        load_us, compute_us = (float(rng.integers(1, 9)) for _ in range(2))
        costs = [(queue_us if k else 0) + k * load_us + (num - k) * compute_us for k in range(num + 1)]
        kept = policy.blocks_to_load(num, num, queue_us, load_us, compute_us)
        assert costs[kept] == min(costs)
        chosen.add(kept > 0)
    assert chosen == {False, True}


@pytest.mark.parametrize(
    ("now_us", "measured_us", "probed_us", "may"),
    [(PROBE_US, 0, 0, True), (PROBE_US - 1, 0, 0, False), (PROBE_US, 1, 0, False), (PROBE_US, 0, 1, False)],
)
def test_when_to_probe(now_us: int, measured_us: int, probed_us: int, may: bool) -> None:
    assert policy.may_probe(now_us, measured_us, probed_us) is may


def test_a_rate_forgets() -> None:
    rate = TokenRate()
    assert rate.tokens_per_s == 0
    rate.record(1000, 1_000_000, 5)
    assert rate.tokens_per_s == 1000
    rate.record(3000, 1_000_000, 5)
    assert rate.tokens_per_s == 2000
    rate.record(500, 1_000_000, 5 + RATE_HALF_US)
    assert rate.tokens_per_s == 1250  # 2000 tokens in 1 s that are left of the others, and 500 in 1 s
    rate.record(500, 1_000_000, 5)  # a clock that another thread read before
    assert rate.tokens_per_s == 1000


def test_what_was_measured_before_a_pause_hardly_counts() -> None:
    path = Bandwidth()
    for number in range(50):
        path.record(1000, began_us=1000 * number, ended_us=1000 * (number + 1))
    assert round(path.nbytes_per_s) == 1_000_000
    path.record(1000, began_us=50_000 + PROBE_US - 1, ended_us=50_000 + PROBE_US)
    assert path.nbytes_per_s < 1_200_000
    last_us = path.busy_until_us
    path.record(1000, began_us=last_us + PROBE_US, ended_us=last_us + PROBE_US + 1)
    assert path.nbytes_per_s > 10_000_000


# ---- a store ----


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def far() -> ObedientTier:
    return ObedientTier(512 * BLOCK)


def measured(store, us: int = LOAD_US) -> None:
    """As if a block had just taken so long."""
    now_us = store.clock.now_us()
    store.mover.read_bandwidth = Bandwidth()
    store.mover.read_bandwidth.record(BLOCK, now_us - us, now_us)


def made(far, clock, num_far: int = 3, num_near: int = 0, **limits):
    """A store of 100 blocks; the keys of a chain whose last `num_far` blocks are far."""
    store = make_store(100, far, clock=clock, **limits)
    ns = store.namespace(make_spec())
    keys = put_chain(ns, num_near + num_far)
    settle(store)
    put_chain(ns, 100 - num_near, 1)
    settle(store)
    assert ns.match(keys).by_tier == {name: num for name, num in (("host", num_near), ("far", num_far)) if num}
    measured(store)
    return store, ns, keys


def test_nothing_is_skipped_while_something_is_not_known(far, clock) -> None:
    store, ns, keys = made(far, clock)
    assert ns.match(keys) == (3, {"far": 3}, 3 * LOAD_US, 0, 0)
    store.mover.read_bandwidth = Bandwidth()
    assert ns.match(keys, prefill_tokens_per_s=1e9) == (3, {"far": 3}, 0, 0, 0)
    with ns.lease(keys, prefill_tokens_per_s=1e9) as lease:
        assert (lease.num_blocks, lease.skipped) == (3, 0)


def test_a_match_leaves_out_what_is_computed_sooner(far, clock) -> None:
    _, ns, keys = made(far, clock, num_near=2)
    assert ns.match(keys, prefill_tokens_per_s=SLOW) == (5, {"host": 2, "far": 3}, 3 * LOAD_US, 0, 0)
    assert ns.match(keys, prefill_tokens_per_s=FAST) == (2, {"host": 2}, 0, 3, 3 * LOAD_US // 2)
    assert ns.match(keys, prefill_tokens_per_s=0).num_blocks == 5
    assert ns.match(keys[:2], prefill_tokens_per_s=FAST) == (2, {"host": 2}, 0, 0, 0)


def test_a_lease_leaves_it_where_it_is(far, clock) -> None:
    store, ns, keys = made(far, clock, num_near=2)
    asked = chain(ns, 6)
    with ns.lease(asked, prefill_tokens_per_s=FAST) as lease:
        assert (lease.num_blocks, lease.pending, lease.skipped, lease.num_promoted) == (2, 0, 3, 0)
        assert (lease.load_us, lease.recompute_us) == (0, 3 * LOAD_US // 2)
        assert lease.lookups == [Lookup.HIT] * 2 + [Lookup.MISS] * 4
    assert store.mover.stats()["reads_under_way"] == 0 and clock.num_waits == 0
    assert ns.match(keys).by_tier == {"host": 2, "far": 3}
    assert store.stats()["lookups"]["blocks_skipped"] == 3
    with ns.lease(keys, prefill_tokens_per_s=SLOW) as lease:
        assert (lease.num_blocks, lease.skipped, lease.num_promoted, lease.recompute_us) == (5, 0, 3, 0)
    assert store.stats()["lookups"]["blocks_skipped"] == 3


@pytest.mark.parametrize("deadline_ms", [None, 0, 50])
def test_the_deadline_does_not_matter(far, clock, deadline_ms) -> None:
    _, ns, keys = made(far, clock)
    with ns.lease(keys, deadline_ms, prefill_tokens_per_s=FAST) as lease:
        assert (lease.num_blocks, lease.pending, lease.skipped) == (0, 0, 3)


def test_a_get_copies_what_is_near(far, clock) -> None:
    _, ns, keys = made(far, clock, num_near=2)
    num_blocks, blocks = ns.get(keys, prefill_tokens_per_s=FAST)
    assert num_blocks == 2 and blocks.shape == (2, BLOCK)
    out = np.zeros((5, BLOCK), dtype=np.uint8)
    assert ns.get(keys, out, prefill_tokens_per_s=FAST)[0] == 2 and not out[2:].any()
    assert ns.get(keys, out)[0] == 5


def test_a_prefetch_reads_what_is_worth_it(far, clock) -> None:
    store, ns, keys = made(far, clock)
    assert ns.prefetch(keys, prefill_tokens_per_s=FAST).result(0) == (0, {}, 0, 3, 3 * LOAD_US // 2)
    assert store.stats()["lookups"]["blocks_skipped"] == 3
    future = ns.prefetch(keys, prefill_tokens_per_s=SLOW)
    settle(store)
    assert future.result(0).by_tier == {"host": 3}


def test_what_is_configured_counts_for_who_does_not_say(far, clock) -> None:
    _, ns, keys = made(far, clock, prefill_tokens_per_s=int(FAST))
    assert ns.match(keys).skipped == 3
    ns.computed(TOKENS, 1e9)
    assert ns.match(keys).skipped == 3
    assert ns.match(keys, prefill_tokens_per_s=SLOW).skipped == 0


def test_what_was_computed_teaches_its_namespace(far, clock) -> None:
    store, ns, keys = made(far, clock)
    other = store.namespace(make_spec(model="other"))
    other.computed(100 * TOKENS, 1)
    assert ns.match(keys).skipped == 0
    ns.computed(100 * TOKENS, 100 * LOAD_US / 2)
    assert ns.match(keys).skipped == 3
    assert store.namespace(make_spec()).match(keys).skipped == 3
    assert ns.match(keys, prefill_tokens_per_s=0).skipped == 0
    rows = store.stats()["namespaces"]
    assert (rows["tiny"]["prefill_tokens_per_s"], round(rows["other"]["prefill_tokens_per_s"])) == (FAST, 4 * 10**8)
    ns.computed(10**6 * TOKENS, 10**6 * LOAD_US * 2)
    assert ns.match(keys).skipped == 0


def per_s(load_share: float) -> float:
    """Tokens a second of whom a block takes so many times its load."""
    return TOKENS * 1e6 / (LOAD_US * load_share)


def test_a_queue_costs_and_what_is_in_it_is_paid_for(far, clock) -> None:
    store, ns, keys = made(far, clock)
    put_chain(ns, 100, 2)
    settle(store)
    measured(store)
    behind = chain(ns, 3, 1)
    assert ns.match(behind, prefill_tokens_per_s=per_s(1.1)) == (3, {"far": 3}, 3 * LOAD_US, 0, 0)
    far.holding = True
    ns.lease(keys, deadline_ms=0).release()  # three reads are under way
    assert store.mover.put.arriving_nbytes == 3 * BLOCK
    for share, skipped in ((0.9, 3), (1.1, 0)):  # waiting for the queue is all that it takes
        assert ns.match(keys, prefill_tokens_per_s=per_s(share)).skipped == skipped
    for share, skipped in ((1.9, 3), (2.1, 0)):
        assert ns.match(behind, prefill_tokens_per_s=per_s(share)).skipped == skipped
    far.let_go()
    settle(store)


def test_what_is_under_way_is_not_counted_twice(far, clock) -> None:
    store, ns, keys = made(far, clock)
    far.holding = True
    ns.prefetch(keys)
    with ns.lease(keys, deadline_ms=0) as lease:
        assert (lease.pending, lease.load_us) == (3, 3 * LOAD_US)
    far.let_go()
    settle(store)


def test_a_tier_that_is_ill_skips_nothing(far, clock) -> None:
    store, ns, keys = made(far, clock)
    far.ill = "gone"
    with ns.lease(keys, prefill_tokens_per_s=FAST) as lease:
        assert (lease.num_blocks, lease.pending, lease.skipped) == (0, 3, 0)
    assert ns.match(keys, prefill_tokens_per_s=FAST) == (0, {}, 0, 0, 0)
    ns.prefetch(keys, prefill_tokens_per_s=FAST).result(0)
    assert store.stats()["lookups"]["blocks_skipped"] == 0


def test_an_idle_tier_is_probed_by_one_piece(far, clock) -> None:
    num_far = PIECE + 10
    store, ns, keys = made(far, clock, num_far=num_far)
    clock.us += PROBE_US - 1
    assert ns.match(keys, prefill_tokens_per_s=FAST).skipped == num_far
    clock.us += 1
    match = ns.match(keys, prefill_tokens_per_s=FAST)
    assert (match.by_tier, match.skipped) == ({"far": PIECE}, 10)
    far.holding = True
    with ns.lease(keys, deadline_ms=0, prefill_tokens_per_s=FAST) as lease:
        assert (lease.num_blocks, lease.pending, lease.skipped) == (0, PIECE, 10)
    assert store.stats()["lookups"]["probes"] == 1
    with ns.lease(keys[: PIECE // 2], deadline_ms=0, prefill_tokens_per_s=FAST * 100) as lease:
        assert lease.skipped == PIECE // 2, "one probe at a time"
    clock.us += PIECE * LOAD_US
    far.let_go()
    settle(store)
    assert ns.match(keys, prefill_tokens_per_s=FAST) == (PIECE, {"host": PIECE}, 0, 10, 10 * LOAD_US // 2)


def test_a_tier_that_became_fast_is_found_again(far, clock) -> None:
    store, ns, keys = made(far, clock, num_far=4)
    measured(store, 1000 * LOAD_US)
    found = []
    for turn in range(3):
        clock.us += PROBE_US
        with ns.lease(keys, prefill_tokens_per_s=FAST) as lease:  # reads take no time by this clock
            found.append((lease.num_promoted, lease.skipped))
        put_chain(ns, 100, 2 + turn)  # they are far again
        settle(store)
    assert found == [(4, 0)] * 3
    assert store.stats()["lookups"]["probes"] == 2, "the third time it was worth it"
    clock.us += SECOND_US
    assert ns.match(keys, prefill_tokens_per_s=FAST).skipped == 0


def test_a_tier_that_stays_slow_is_asked_now_and_then(far, clock) -> None:
    store, ns, keys = made(far, clock, num_far=PIECE + 1)
    for _ in range(40):
        clock.us += PROBE_US // 4
        far.holding = True
        ns.lease(keys, deadline_ms=0, prefill_tokens_per_s=FAST).release()
        clock.us += PIECE * LOAD_US
        far.let_go()
        settle(store)
        put_chain(ns, 100, 2)
        ns.remove(chain(ns, 100, 2)[:1])
        settle(store)
    assert 6 <= store.stats()["lookups"]["probes"] <= 10
    assert ns.match(keys, prefill_tokens_per_s=FAST).skipped > 0


@pytest.mark.parametrize("rate", [-1, float("nan"), float("inf"), "fast", True, 2e9])
@pytest.mark.parametrize("verb", ["match", "lease", "get", "prefetch"])
def test_a_rate_that_is_none_is_refused(verb: str, rate: object) -> None:
    ns = make_store().namespace(make_spec())
    with pytest.raises(InvalidRequest, match=r"prefill_tokens_per_s=.* from 0 to 1000000000"):
        getattr(ns, verb)(chain(ns, 1), prefill_tokens_per_s=rate)


@pytest.mark.parametrize("arguments", [(0, 5), (5, 0), (2**31, 5), (5, -1), (5, float("nan")), (1.5, 5), (5, True)])
def test_malformed_measurements_are_refused(arguments: tuple[object, object]) -> None:
    ns = make_store().namespace(make_spec())
    with pytest.raises(InvalidRequest, match=r"num_tokens=|elapsed_us="):
        ns.computed(*arguments)


def test_a_closed_store_learns_nothing() -> None:
    store = make_store()
    ns = store.namespace(make_spec())
    store.close()
    with pytest.raises(Unavailable, match="closed"):
        ns.computed(1, 1)
