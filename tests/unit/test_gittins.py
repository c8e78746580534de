"""The gittins policy: as LRU until it has learned something, better afterwards, never beside itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from simulate_helpers import SANITIZED, demand_of, known_demand, request_of, tree_trace

from bench import adversary
from kvstore import simulate as module
from kvstore._core import eviction
from kvstore._core import index as core
from kvstore._core.index import Index
from kvstore.simulate import Demand, blocks_of, demand, simulate
from kvstore.trace import Request

SHARES = (0.003, 0.01, 0.03, 0.1, 0.3)
SLOT = 4096


def agents(seed: int, num_sessions: int, *, hints: bool) -> Demand:
    """Sessions of one system prompt each: half of them call tools and are back in seconds, half wait for people who
    seldom come back."""
    rng = np.random.default_rng(seed)
    requests: list[Request] = []
    first_id = 0
    for _ in range(num_sessions):
        now_s, chain = float(rng.uniform(0, 3600)), []
        is_tool = bool(rng.random() < 0.5)
        for _turn in range(int(rng.integers(4, 10)) if is_tool else int(rng.integers(1, 3))):
            num_new = int(rng.integers(3, 9))
            chain = [*chain, *range(first_id, first_id + num_new)]
            first_id += num_new
            stop = ("tool_use" if is_tool else "end_turn") if hints else ""
            requests.append(request_of(chain, timestamp_ms=int(now_s * 1000), stop_reason=stop))
            now_s += float(rng.uniform(5, 20)) if is_tool else float(rng.uniform(600, 1800))
    return demand(sorted(requests, key=lambda request: request.timestamp_ms))


def shifted(asked: Demand, by_ms: int) -> Demand:
    fields = {name: getattr(asked, name) for name in Demand.__slots__}
    return Demand(**(fields | {"times_ms": asked.times_ms + np.uint64(by_ms)}))


def test_before_anything_came_back_it_is_lru() -> None:
    for seed in range(20):
        chains = [[1000 * number + step for step in range(1 + (seed + number) % 7)] for number in range(60)]
        chains[30] = chains[5]
        asked = demand_of(*chains)
        for num_blocks in (20, 70):
            ours, lru = simulate(asked, "gittins", num_blocks), simulate(asked, "lru", num_blocks)
            assert (ours.prefix_hit, ours.fills) == (lru.prefix_hit, lru.fills)


def test_it_keeps_what_comes_back() -> None:
    asked = agents(1, 600, hints=True)
    for share, gain in ((0.003, 0.04), (0.01, 0.06)):
        num_blocks = blocks_of(share, asked.num_unique)
        assert simulate(asked, "gittins", num_blocks).prefix_hit > simulate(asked, "lru", num_blocks).prefix_hit + gain


def test_a_flood_of_prompts_that_never_come_back_passes_by() -> None:
    rng = np.random.default_rng(5)
    requests = []
    for second in range(3000):
        user = int(rng.integers(20))
        requests.append(request_of(range(user * 10, user * 10 + 10), timestamp_ms=second * 1000))
        flood = 10_000 + second * 40
        requests.append(request_of(range(flood, flood + 40), timestamp_ms=second * 1000 + 500))
    asked = demand(requests)
    ours, lru = simulate(asked, "gittins", 220), simulate(asked, "lru", 220)
    assert ours.prefix_hit > 0.18 and lru.prefix_hit < 0.05  # a fifth of what is asked for can be hit
    assert ours.fills < lru.fills / 4


def test_the_same_requests_have_the_same_hits_whenever_they_come() -> None:
    asked = agents(2, 200, hints=False)
    num_blocks = blocks_of(0.02, asked.num_unique)
    first = simulate(asked, "gittins", num_blocks)
    assert simulate(asked, "gittins", num_blocks).prefix_hit == first.prefix_hit
    late = simulate(shifted(asked, 123_456_789), "gittins", num_blocks)
    assert late.prefix_hit == first.prefix_hit


def test_prefixes_stay_closed() -> None:
    for seed in range(5):
        asked = demand_of(*tree_trace(seed, 800))
        for num_blocks in (5, 40, 200):
            outcome = simulate(asked, "gittins", num_blocks)
            assert outcome.prefix_hit == outcome.block_hit


@pytest.mark.parametrize(
    ("name", "of_opt", "gains"),
    [("conversation", 0.68, {0.01: 2.0}), ("synthetic", 0.55, {}), ("agents", 0.90, {0.01: 2.0})],
)
def test_real_traces(name: str, of_opt: float, gains: dict[float, float]) -> None:
    asked = known_demand(name)
    hits = {
        policy: [simulate(asked, policy, blocks_of(share, asked.num_unique)).prefix_hit for share in SHARES]
        for policy in ("gittins", "lru", module.OPT)
    }
    assert sum(hits["gittins"]) >= of_opt * sum(hits[module.OPT])
    assert all(ours >= lru - 0.003 for ours, lru in zip(hits["gittins"], hits["lru"], strict=True))
    for share, gain in gains.items():
        assert hits["gittins"][SHARES.index(share)] >= gain * hits["lru"][SHARES.index(share)]


@pytest.mark.skipif(SANITIZED, reason="whole traces are not played under the sanitizers")
@pytest.mark.parametrize("name", adversary.WORKLOADS)
def test_what_is_made_to_mislead_costs_little(name: str) -> None:
    asked = adversary.trace(name, 1500)
    for share in (0.03, 0.1):
        num_blocks = blocks_of(share, asked.num_unique)
        assert (
            simulate(asked, "gittins", num_blocks).prefix_hit >= simulate(asked, "lru", num_blocks).prefix_hit - 0.003
        )


# ---- in an index ----


def index_of(ghosts_max: int = 1000, entries_max: int = 64) -> Index:
    index = Index(entries_max, b"\x01" * 16, "gittins", ghosts_max)
    index.set_namespace(1, SLOT, 1)
    return index


def put(index: Index, keys: Any, now_ms: int = 0) -> int:
    """Store a chain; evicts by worth for what does not fit."""
    eviction.tend(index, now_ms)
    wanted, plan, ids = index.plan(keys, 0)
    while index.num_free < wanted:
        assert index.evict_near(SLOT * (wanted - index.num_free), False, 1)[0]
    places = np.arange(wanted, dtype=np.uint32)
    begun = index.begin(keys, 0, 1, plan, ids, places)
    index.commit(ids[(plan == core.WANTED) & (ids != core.NONE)], 0)
    return int(begun)


def random_keys(rng: Any, num: int) -> Any:
    return rng.integers(0, 256, (num, 32), dtype=np.uint8)


def test_what_is_remembered_has_a_limit() -> None:
    rng = np.random.default_rng(1)
    index = index_of(ghosts_max=100)
    for number in range(400):
        put(index, random_keys(rng, 3), now_ms=number * 20)
        if number % 20 == 0:
            index.check()
    figures = eviction.figures(index)
    assert 80 <= figures["ghosts"] <= 101
    assert figures["ghosts_nbytes"] < 100 * (100 + 64 + 3)


def test_keys_with_the_same_fingerprint_are_kept_apart() -> None:
    """Keys are a caller's: it can have as many as it likes that begin alike."""
    rng = np.random.default_rng(2)
    index = index_of()
    for number in range(200):
        keys = random_keys(rng, 4)
        keys[:, :16] = number % 3
        put(index, keys, now_ms=number * 100)
        index.check()
        if number % 7 == 0:
            index.remove(index.find(keys[1:2]), core.REMOVED, 1)
            index.reap()
            index.check()


@pytest.mark.parametrize("jump_ms", [0, 1, 86_400_000, 30 * 86_400_000, 400 * 86_400_000])
def test_a_clock_that_jumps_breaks_nothing(jump_ms: int) -> None:
    rng = np.random.default_rng(3)
    index = index_of()
    chains = [random_keys(rng, 4) for _ in range(30)]
    for number in range(300):
        now_ms = number * 50 + (jump_ms if number > 150 else 0)
        put(index, chains[int(rng.integers(30))], now_ms=now_ms if number % 10 else 0)  # and now and then back
    index.check()
    assert index.counts()["near"] > 0


def test_why_a_block_left_says_what_it_was_worth() -> None:
    rng = np.random.default_rng(4)
    index = index_of(entries_max=8)
    keys = random_keys(rng, 4)
    put(index, keys)
    put(index, random_keys(rng, 8), now_ms=60_000)
    ((reason, _, value),) = index.ghosts(keys[3:])
    assert reason == core.UNWRITTEN and 0 < value < 1
