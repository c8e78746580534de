"""Hints, times to live and pins, over every way to a store."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from service_helpers import MIB, WAYS, Way, open_way, wait_for
from store_helpers import BLOCK, all_right, chain, make_spec, payload, put_chain

from kvstore import Hint, PutResult
from kvstore.errors import InvalidRequest, LimitExceeded
from kvstore.events import Reason, Removed

SOON = Hint(ttl_s=0)  # over with the next step of the mover
KNOWN = Hint(stop="tool_use", output_tokens=7, priority=1)


@pytest.fixture
def ns(way: Way) -> Any:
    return way.store.namespace(make_spec())


def hints(way: Way) -> int:
    """How many the eviction policy was told."""
    return int(way.inner.stats()["index"]["hints"])


def gone(ns: Any, keys: Any) -> bool:
    return wait_for(lambda: ns.match(keys).num_blocks == 0)


def policy(way: Way, name: str) -> Any:
    return way.inner.stats()["policy"][name]


# ---- hints ----


def test_a_hint_says_how_much_of_the_chain_is_stored(way: Way, ns: Any):
    keys = put_chain(ns, 3)
    assert hints(way) == 0, "nobody has said anything"
    assert ns.hint(chain(ns, 5), KNOWN) == 3
    assert ns.hint(chain(ns, 2, prompt=9), KNOWN) == 0 and ns.hint(chain(ns, 0), KNOWN) == 0
    assert ns.hint(keys[1:2], KNOWN) == 1, "a block by itself"
    assert hints(way) == 2


def test_a_put_and_what_it_found_stored_are_told_of(way: Way, ns: Any):
    keys = chain(ns, 3)
    assert ns.put(keys, payload(keys), hint=KNOWN) == PutResult(3, 0)
    assert hints(way) == 1
    assert ns.put(keys, payload(keys), hint=KNOWN) == PutResult(0, 3)
    assert hints(way) == 2
    assert ns.put(keys, payload(keys)) == PutResult(0, 3) and hints(way) == 2


def test_a_read_is_told_of(way: Way, ns: Any):
    keys = put_chain(ns, 3)
    with ns.lease(keys, hint=KNOWN) as lease:
        assert lease.num_blocks == 3
    assert hints(way) == 1
    num_blocks, out = ns.get(chain(ns, 5), hint=KNOWN)
    assert num_blocks == 3 and all_right(keys, out) and hints(way) == 2
    assert ns.get(keys, np.empty((3, BLOCK), dtype=np.uint8), hint=KNOWN)[0] == 3 and hints(way) == 3
    assert ns.get(chain(ns, 2, prompt=8), hint=KNOWN)[0] == 0 and hints(way) == 3
    with ns.lease(keys), ns.lease(keys, 0):
        assert hints(way) == 3


def test_a_room_is_told_of_at_its_commit(way: Way, ns: Any):
    keys = chain(ns, 2)
    with ns.reserve(keys, hint=KNOWN) as room:
        room.fill(payload(keys))
        assert hints(way) == 0
        room.commit()
    assert hints(way) == 1
    more = chain(ns, 4)
    with ns.reserve(more) as room:
        room.fill(payload(more[2:]))
        room.commit(hint=KNOWN)
    assert hints(way) == 2
    with ns.reserve(more, hint=KNOWN) as room:  # nothing to fill
        room.commit()
    assert hints(way) == 3
    with ns.reserve(chain(ns, 5), hint=KNOWN):
        pass
    assert hints(way) == 3 and ns.match(chain(ns, 5)).num_blocks == 4


@pytest.mark.parametrize("wrong", ["tool_use", 5, {"stop": "end_turn"}])
def test_what_is_no_hint_is_refused(way: Way, ns: Any, wrong: Any):
    keys = put_chain(ns, 2)
    others = chain(ns, 2, prompt=3)
    for call in (
        lambda: ns.lease(keys, hint=wrong),
        lambda: ns.get(keys, hint=wrong),
        lambda: ns.put(others, payload(others), hint=wrong),
        lambda: ns.reserve(others, hint=wrong),
        lambda: ns.hint(keys, wrong),
        lambda: ns.hint(keys, None),
    ):
        with pytest.raises(InvalidRequest, match="hint"):
            call()
    with ns.reserve(others) as room, pytest.raises(InvalidRequest, match="hint"):
        room.commit(hint=wrong)
    assert ns.match(others).num_blocks == 0 and hints(way) == 0
    assert wait_for(lambda: way.inner.stats()["lookups"]["leases_in_use"] == 0)


# ---- times to live ----


def test_what_nobody_uses_again_ends(way: Way, ns: Any):
    keys = chain(ns, 3)
    ns.put(keys, payload(keys), hint=SOON)
    assert gone(ns, keys)
    assert all(text.startswith("expired") for text in ns.explain(keys))
    assert policy(way, "expired_blocks") == 3
    assert way.inner.stats()["index"]["entries"] == 0
    put_chain(ns, 3)  # as new


def test_a_time_to_live_comes_with_every_verb(way: Way, ns: Any):
    keys = chain(ns, 2)
    for give in (
        lambda: ns.hint(keys, SOON),
        lambda: ns.get(keys, hint=SOON),
        lambda: ns.lease(keys, hint=SOON).release(),
        lambda: ns.put(keys, payload(keys), hint=SOON),
    ):
        put_chain(ns, 2)
        give()
        assert gone(ns, keys)
    for arguments, at_end in (({"hint": SOON}, {}), ({}, {"hint": SOON}), ({"hint": KNOWN}, {"hint": SOON})):
        with ns.reserve(keys, **arguments) as room:
            room.fill(payload(keys))
            room.commit(**at_end)
        assert gone(ns, keys)


def test_what_is_used_before_its_time_is_over_stays(way: Way, ns: Any):
    keys = chain(ns, 3)
    ns.put(keys, payload(keys), hint=Hint(ttl_s=3600))
    others = chain(ns, 3, prompt=1)
    ns.put(others, payload(others), hint=SOON)
    assert gone(ns, others) and ns.match(keys).num_blocks == 3
    assert policy(way, "ttl_chains") == 1 and policy(way, "ttl_blocks") == 3


def test_a_leased_block_that_ends_can_still_be_read(way: Way, ns: Any):
    keys = put_chain(ns, 2)
    with ns.lease(keys) as lease:
        ns.hint(keys, SOON)
        assert gone(ns, keys)
        assert all_right(keys, lease.views)
    assert wait_for(lambda: way.inner.stats()["index"]["removed_pending"] == 0)


def test_who_watches_is_told_that_it_was_over(way: Way, ns: Any):
    keys = chain(ns, 2)
    ns.put(keys, payload(keys), hint=SOON)
    with way.store.watch([ns]) as watch:
        told: list[Any] = []
        assert wait_for(lambda: told.extend(next(watch).events) or any(isinstance(one, Removed) for one in told))
    (removed,) = (one for one in told if isinstance(one, Removed))
    assert set(removed.keys) == {key.tobytes() for key in keys} and removed.reason is Reason.EXPIRED


@pytest.mark.parametrize("name", WAYS)
def test_a_time_to_live_over_the_limit_is_counted(name: str, tmp_path: Path):
    with ExitStack() as stack:
        way = open_way(name, tmp_path, stack, policy={"ttl_blocks_max": 2})
        ns = way.store.namespace(make_spec())
        keys = chain(ns, 3)
        assert ns.put(keys, payload(keys), hint=SOON) == PutResult(3, 0)
        assert policy(way, "ttl_ignored") == 1 and policy(way, "ttl_blocks") == 0
        assert ns.hint(keys[:2], SOON) == 2 and policy(way, "ttl_ignored") == 1


# ---- pins ----


def evict(way: Way) -> None:
    """Everything that may go."""
    with way.inner.lock:
        way.inner.mover.put.evict(1 << 40, False, 0)


def test_a_pinned_chain_cannot_be_evicted(way: Way, ns: Any):
    keys, others = put_chain(ns, 4), put_chain(ns, 4, prompt=1)
    assert ns.pin(chain(ns, 6), 3600) == 4
    assert policy(way, "pinned_blocks") == 4 and policy(way, "pinned_nbytes") == 4 * BLOCK
    evict(way)
    assert ns.match(keys).num_blocks == 4 and ns.match(others).num_blocks == 0
    assert all_right(keys, ns.get(keys)[1])
    assert ns.unpin(chain(ns, 6)) == 4 and ns.unpin(keys) == 0
    evict(way)
    assert ns.match(keys).num_blocks == 0 and policy(way, "pins") == 0


def test_pins_have_a_limit_that_is_named(way: Way, ns: Any):
    keys = put_chain(ns, 20)
    most = 8 * MIB // 10 // BLOCK
    with pytest.raises(LimitExceeded, match=r"policy\.pins_nbytes_max=838860"):
        ns.pin(keys, 60)
    assert policy(way, "pins") == 0 and policy(way, "pinned_nbytes") == 0
    assert ns.pin(keys[:most], 60) == most
    assert ns.pin(keys[:5], 60) == 5, "the same blocks count once"
    with pytest.raises(LimitExceeded):
        ns.pin(keys[: most + 1], 60)
    assert policy(way, "pinned_blocks") == most and policy(way, "pins") == 2


def test_a_pin_ends_by_itself_and_removal_takes_what_is_pinned(way: Way, ns: Any):
    keys = put_chain(ns, 4)
    assert ns.pin(keys, 0) == 4
    assert wait_for(lambda: policy(way, "pins") == 0)
    assert ns.pin(keys, 3600) == 4
    assert ns.remove(keys[2:3]) == 2
    assert wait_for(lambda: policy(way, "pinned_blocks") == 2)
    assert way.inner.stats()["index"]["removed_pending"] == 0
    ns.clear()
    assert wait_for(lambda: policy(way, "pins") == 0) and policy(way, "pinned_nbytes") == 0


@pytest.mark.parametrize("ttl_s", [-1, float("nan"), float("inf"), 1e9, "1", None, True])
def test_a_time_out_of_range_is_refused(ns: Any, ttl_s: Any):
    keys = put_chain(ns, 1)
    with pytest.raises(InvalidRequest, match="ttl_s"):
        ns.pin(keys, ttl_s)
    with pytest.raises(InvalidRequest, match="ttl_s"):
        Hint(ttl_s=ttl_s if ttl_s is not None else [])


def test_no_keys_are_no_pin(way: Way, ns: Any):
    assert ns.pin(chain(ns, 0), 1) == 0 and ns.pin(chain(ns, 3), 1) == 0 and ns.unpin(chain(ns, 0)) == 0
    assert policy(way, "pins") == 0
