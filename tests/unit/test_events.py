"""Events: what the index tells, what is kept of it, and how a watch goes on from a position."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from store_helpers import BLOCK, FakeClock, ObedientTier, chain, make_spec, make_store, payload, put_chain, settle

import kvstore
from kvstore._core import events as core
from kvstore._core.index import Index
from kvstore.errors import InvalidRequest, LimitExceeded, Unavailable
from kvstore.events import START, Cleared, Position, Reason, Removed, Stored, cut_keys
from kvstore.tiers.base import Outcome


def watched(num_blocks=8, far=None, num_kept=256, **rest):
    """A store of small memory whose events are kept."""
    rest.setdefault("clock", FakeClock())
    store = make_store(num_blocks, far, **rest)
    core.keep(store.index, num_kept)
    return store


def names(keys):
    return cut_keys(np.ascontiguousarray(keys).tobytes())


def after(store, position=START, **rest):
    """The events behind a position, and the next one; nothing may be lost."""
    found = store.events(position, **rest)
    assert not found.gap
    return list(found.events), found.position


# ---- what is told ----


def test_a_put_is_one_run_with_its_parent():
    store = watched()
    ns = store.namespace(make_spec())
    keys = names(chain(ns, 5))
    put_chain(ns, 3)
    told, position = after(store)
    assert told == [Stored("tiny", keys[:3], None)]
    assert ns.put(chain(ns, 5), payload(chain(ns, 5))).stored == 2
    told, position = after(store, position)
    assert told == [Stored("tiny", keys[3:], keys[2])]
    assert after(store, position)[0] == []


def test_a_reservation_is_told_when_it_is_visible_and_never_if_it_is_not():
    store = watched()
    ns = store.namespace(make_spec())
    keys = chain(ns, 4)
    room = ns.reserve(keys)
    assert after(store)[0] == []
    room.release()
    assert after(store)[0] == []
    with ns.reserve(keys[:2]) as parents, ns.reserve(keys) as children:
        children.fill(payload(keys)[2:])
        children.commit()
        assert after(store)[0] == [], "children are visible only below their parents"
        parents.fill(payload(keys)[:2])
        parents.commit()
    (told,), _ = after(store)
    assert told == Stored("tiny", names(keys), None)


def test_a_removal_tells_all_that_went_and_why():
    store = watched()
    ns, other = store.namespace(make_spec()), store.namespace(make_spec(model="two"))
    keys = names(put_chain(ns, 4))
    put_chain(other, 1)
    _, position = after(store)
    ns.remove(chain(ns, 4)[1:2])
    ((told,), position) = after(store, position)
    assert (told.namespace, set(told.keys), told.reason) == ("tiny", set(keys[1:]), Reason.REMOVED)
    ns.clear()
    assert after(store, position)[0] == [Cleared("tiny")]
    assert store.events(namespaces=[other]).events == (Stored("two", names(chain(other, 1)), None),)


def test_removals_of_two_namespaces_are_told_apart():
    store = watched()
    spaces = [store.namespace(make_spec(salt=salt)) for salt in ("x", "y")]
    keys = [put_chain(ns, 1) for ns in spaces]
    _, position = after(store)
    for ns, key in zip(spaces, keys, strict=True):
        ns.remove(key)
    told, _ = after(store, position)
    assert told == [
        Removed(f"tiny salt={salt}", names(key), Reason.REMOVED) for salt, key in zip("xy", keys, strict=True)
    ]


def test_a_clear_is_one_event_however_many_blocks_go():
    store = watched(num_kept=16)
    ns = store.namespace(make_spec())
    for prompt in range(3):
        put_chain(ns, 2, prompt)
    _, position = after(store)
    room = ns.reserve(chain(ns, 2, 9))  # what is being written goes without a word
    ns.clear()
    told, position = after(store, position)
    assert told == [Cleared("tiny")]
    room.release()
    ns.remove(chain(ns, 1))
    put_chain(ns, 1)
    assert len(after(store, position)[0]) == 1, "the ring was left quiet"


def test_only_the_last_tier_is_the_end_of_a_block():
    far = ObedientTier(64 * BLOCK)
    store = watched(4, far)
    ns = store.namespace(make_spec())
    first = put_chain(ns, 4, 1)
    settle(store)
    _, position = after(store)
    put_chain(ns, 4, 2)  # pushes the first out of memory, not out of the store
    told, position = after(store, position)
    assert [type(event) for event in told] == [Stored]
    assert ns.match(first).by_tier == {"far": 4}
    settle(store)
    assert ns.get(first)[0] == 4, "read back"
    assert after(store, position)[0] == []


def test_evictions_without_a_copy_and_over_a_quota_say_so():
    store = watched(4)
    ns = store.namespace(make_spec())
    put_chain(ns, 4, 1)
    _, position = after(store)
    put_chain(ns, 2, 2)
    told, position = after(store, position)
    gone = [event for event in told if isinstance(event, Removed)]
    assert {event.reason for event in gone} == {Reason.UNWRITTEN}
    assert {key for event in gone for key in event.keys} <= set(names(chain(ns, 4, 1)))
    small = store.namespace(make_spec(model="two"), quota_nbytes=BLOCK)
    put_chain(small, 1, 1)
    put_chain(small, 1, 2)
    told, _ = after(store, position, namespaces=[small])
    assert Removed("two", names(chain(small, 1, 1)), Reason.OVER_QUOTA) in told


def test_a_rotten_block_is_told_with_what_extends_it():
    far = ObedientTier(64 * BLOCK)
    store = watched(2, far)
    ns = store.namespace(make_spec())
    keys = put_chain(ns, 2, 1)
    settle(store)
    put_chain(ns, 2, 2)
    settle(store)
    _, position = after(store)
    far.answer = Outcome.CORRUPT
    assert ns.get(keys)[0] == 0
    told = [event for event in after(store, position)[0] if isinstance(event, Removed)]
    assert {event.reason for event in told} == {Reason.CORRUPT}
    assert {key for event in told for key in event.keys} == set(names(keys))


def test_what_an_earlier_run_left_is_told_parents_first(tmp_path):
    config = kvstore.Config(host={"nbytes": "4 MiB"}, disk={"nbytes": "16 MiB", "path": str(tmp_path)})
    with kvstore.open(config) as store:
        ns = store.namespace(make_spec())
        keys = names(put_chain(ns, 5))
        assert store.flush()
        position = store.events().position
    with kvstore.open(config) as store:
        found = store.events(position)
        assert found.gap and found.position.epoch != position.epoch, "another life"
        known = set()
        for event in found.events:
            assert event.parent in known or event.parent is None
            known.update(event.keys)
        assert known == set(keys)
        assert not store.events().gap


# ---- what is kept ----


def test_the_ring_gives_what_it_has_wherever_it_begins():
    index = Index(4096)
    index.set_namespace(1, 4096, 1)
    core.keep(index, 8)
    assert core.bounds(index) == (0, 0) and len(core.read(index, 0, 100)) == 0
    keys = np.random.default_rng(1).integers(0, 256, (30, 32), dtype=np.uint8)
    for num, key in enumerate(keys, 1):
        _, plan, ids = index.plan(key[None], 0)
        index.begin(key[None], 0, 1, plan, ids, np.array([num], dtype=np.uint32))
        index.commit(ids, 0)
        oldest = max(0, num - 8)
        assert core.bounds(index) == (oldest, num)
        for since in range(num + 2):
            for most in (1, 3, 8, 100):
                wanted = keys[since : min(num, since + most)] if since >= oldest else keys[:0]
                assert core.read(index, since, most)["key"].tobytes() == wanted.tobytes()
    assert len(core.read(index, 2**63, 5)) == 0
    core.keep(index, 0)
    assert core.capacity(index) == 0 and core.bounds(index) == (0, 0)


def test_whoever_is_overtaken_gets_a_gap_and_a_lead():
    store = watched(32, num_kept=16)
    ns = store.namespace(make_spec())
    _, position = after(store)
    for prompt in range(8):
        put_chain(ns, 2, prompt)
    assert after(store, position)[1].seq == 16, "just not overtaken"
    put_chain(ns, 1, 8)
    found = store.events(position)
    assert found.gap and found.position.seq == store.events(found.position).position.seq
    assert sum(len(event.keys) for event in found.events) == 8
    assert not store.events(found.position).gap
    assert store.events().gap, "from the oldest, but there were older ones"
    assert store.events(Position(position.epoch, 2**64 - 1)).gap
    assert store.events(Position(position.epoch ^ 2, 3)).gap


def test_long_histories_come_in_several_batches():
    with kvstore.open(kvstore.Config(host={"nbytes": "64 MiB"}, disk={"nbytes": 0})) as store:
        ns = store.namespace(make_spec(block_nbytes=4096))
        keys = put_chain(ns, 6_000)
        first = store.events()
        second = store.events(first.position)
        assert (first.position.seq, second.position.seq) == (4_096, 6_000)
        assert first.events[0].keys + second.events[0].keys == names(keys)
        assert second.events[0].parent == first.events[0].keys[-1]
        assert store.stats()["index"]["events"] == 6_000


def test_without_a_ring_nobody_watches():
    store = watched(num_kept=0)
    put_chain(store.namespace(make_spec()), 2)
    for call in (store.watch, store.events):
        with pytest.raises(LimitExceeded, match=r"index\.events_max=0"):
            call()


@pytest.mark.parametrize("since", [None, 5, (1,), (1, -1), (1, 2**64), (1, 2.0), (True, 1), "ab"])
def test_a_malformed_position_is_refused(since):
    with pytest.raises(InvalidRequest, match="since"):
        watched().events(since)


def test_malformed_namespaces_are_refused():
    store, other = watched(), watched()
    ns, foreign = store.namespace(make_spec()), other.namespace(make_spec())
    for namespaces in ([], ns, "tiny", [None], [foreign], [ns, foreign]):
        with pytest.raises(InvalidRequest, match="namespaces"):
            store.watch(namespaces)


# ---- waiting ----


def test_a_pull_waits_as_long_as_it_may():
    clock = FakeClock()
    store = watched(clock=clock)
    position, began = store.events().position, clock.us
    assert store.events(position, deadline_ms=250).events == () and clock.us - began == 250_000
    assert store.events(position).events == () and clock.us - began == 250_000
    put_chain(store.namespace(make_spec()), 1)
    assert len(store.events(position, deadline_ms=250).events) == 1 and clock.us - began == 250_000


def test_a_step_wakes_those_who_wait_only_for_news():
    store = watched()
    ns = store.namespace(make_spec())
    with store.lock:
        news = store.feed._await()
    settle(store)
    assert not news.done()
    put_chain(ns, 1)
    assert not news.done(), "a put does not pay for watchers"
    settle(store)
    assert news.done()


def test_a_watch_ends_when_it_or_its_store_is_closed():
    config = kvstore.Config(host={"nbytes": "4 MiB"}, disk={"nbytes": 0})
    with kvstore.open(config) as store:
        with store.watch() as watch:
            next(watch)
            threading.Timer(0.05, watch.close).start()
            assert list(watch) == []
        watch.close()
        other = store.watch()
        next(other)
        threading.Timer(0.05, store.close).start()
        with pytest.raises(Unavailable, match="closed"):
            list(other)
    with pytest.raises(Unavailable, match="closed"):
        store.watch()
