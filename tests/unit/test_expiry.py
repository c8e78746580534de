"""Times to live: what ends, what lives on, and that nothing else goes."""

from __future__ import annotations

from typing import Any

import pytest
from attachment_helpers import config
from store_helpers import BLOCK, SECOND_US, FakeClock, ObedientTier, chain, make_spec, make_store, payload, put_chain
from store_helpers import settle as step

import kvstore
from kvstore import Hint, expiry
from kvstore.events import START, Reason, Removed

TTL = Hint(ttl_s=60)


class House:
    """A store of 16 blocks over a far tier, and a clock that stands."""

    def __init__(self, **limits: Any) -> None:
        self.clock, self.far = FakeClock(), ObedientTier(256 * BLOCK)
        self.store = make_store(16, self.far, clock=self.clock, **limits)
        self.ns = self.store.namespace(make_spec())

    def put(self, num_blocks: int, prompt: int = 0, hint: Hint | None = TTL) -> Any:
        keys = chain(self.ns, num_blocks, prompt)
        self.ns.put(keys, payload(keys), hint=hint)
        return keys

    def wait(self, seconds: float) -> None:
        self.clock.us += int(seconds * SECOND_US)
        step(self.store, 2)

    def stored(self, keys: Any) -> int:
        """Without using them."""
        return int(self.ns.match(keys).num_blocks)

    def stats(self, name: str) -> int:
        return int(self.store.stats()["policy"][name])


@pytest.fixture
def house():
    made = House()
    yield made
    made.store.check()


def test_a_chain_ends_when_its_time_is_over_and_not_before(house: House):
    keys = house.put(4)
    house.wait(59.999)
    assert house.stored(keys) == 4
    house.wait(0.001)
    assert house.stored(keys) == 0 and house.stats("expired_blocks") == 4
    assert house.ns.explain(keys) == ["expired: nobody had used it again when its time was over 0 s ago"] * 4
    assert house.store.index.counts()["entries"] == 0 and house.far.usage().used_nbytes == 0


@pytest.mark.parametrize("eviction", ["lru", "gittins"])
@pytest.mark.parametrize("use", ["lease", "get", "put", "longer put", "prefix"])
def test_what_is_used_meanwhile_lives_on(eviction: str, use: str):
    house = House(eviction=eviction)
    keys = house.put(4)
    house.wait(30)
    if use == "lease":
        house.ns.lease(keys).release()
    elif use == "get":
        house.ns.get(keys)
    elif use == "put":
        house.put(4, hint=None)
    elif use == "longer put":
        house.put(6, hint=None)
    else:
        house.ns.get(keys[:2])
    house.wait(10_000)
    assert house.stored(keys) == (2 if use == "prefix" else 4)
    assert house.stats("ttl_chains") == 0


def test_looking_is_no_use(house: House):
    keys = house.put(4)
    house.wait(30)
    assert house.ns.match(keys) and house.ns.explain(keys) and house.ns.hint(keys, Hint(stop="end_turn")) == 4
    house.wait(30)
    assert house.stored(keys) == 0


def test_a_prefix_that_others_use_stays(house: House):
    """Two conversations behind one system prompt of two blocks."""
    one = house.put(4)
    shared = one[:2]
    house.wait(10)
    fork = house.ns.keys(list(range(8)) + [9] * 8)
    assert (fork[:2] == shared).all()
    house.ns.put(fork, payload(fork), hint=TTL)
    house.wait(50)
    assert house.stored(one) == 2 and house.stored(fork) == 4
    house.wait(10)
    assert house.stored(one) == 0 and house.stored(fork) == 0


def test_what_something_extends_stays(house: House):
    keys = house.put(4, hint=None)
    house.ns.hint(keys[:2], TTL)
    house.wait(60)
    assert house.stored(keys) == 4
    assert house.stats("expired_blocks") == 0


def test_what_is_being_written_on_top_keeps_it(house: House):
    keys = house.put(2, hint=Hint(ttl_s=20))
    with house.ns.reserve(chain(house.ns, 3)) as room:
        house.wait(20)
        assert house.stored(keys) == 2
        room.fill(payload(chain(house.ns, 3)[2:]))
        room.commit()
    house.wait(1_000)
    assert house.stored(chain(house.ns, 3)) == 3


def test_a_conversation_has_one_mark(house: House):
    for turn in range(1, 6):
        house.put(2 * turn)
        house.wait(50)
        assert (house.stats("ttl_chains"), house.stats("ttl_blocks")) == (1, 2 * turn)
    house.put(2, prompt=7)
    assert house.stats("ttl_chains") == 2
    house.wait(10)
    assert house.stored(chain(house.ns, 10)) == 0 and house.stored(chain(house.ns, 2, prompt=7)) == 2


def test_the_last_word_on_a_chain_counts(house: House):
    keys = house.put(3)
    house.ns.hint(keys, Hint(ttl_s=600))
    house.wait(60)
    assert house.stored(keys) == 3 and house.stats("ttl_chains") == 1
    house.ns.hint(keys, Hint(ttl_s=1))
    house.wait(1)
    assert house.stored(keys) == 0


def test_a_leased_chain_ends_and_waits_for_its_lease(house: House):
    keys = house.put(3, hint=None)
    with house.ns.lease(keys) as lease:
        house.ns.hint(keys, Hint(ttl_s=5))
        house.wait(5)
        assert house.stored(keys) == 0 and lease.num_blocks == len(lease.views) == 3
        assert house.store.index.counts()["removed_pending"] == 3
    step(house.store)
    assert house.store.index.counts()["removed_pending"] == 0


def test_far_blocks_end_too(house: House):
    keys = house.put(4)
    step(house.store)
    house.put(16, prompt=5, hint=None)
    assert house.ns.match(keys).by_tier == {"far": 4}
    house.wait(60)
    assert house.stored(keys) == 0
    step(house.store)
    assert house.far.usage().num_blocks == 16


def test_a_block_that_was_evicted_and_put_again_is_another_one(house: House):
    keys = house.put(2)
    house.ns.remove(keys)
    others = house.put(4, prompt=1, hint=None)  # by the ids of the first ones
    house.put(2, hint=None)
    house.wait(60)
    assert house.stored(keys) == 2 and house.stored(others) == 4 and house.stats("expired_blocks") == 0


def test_over_the_limit_a_time_to_live_is_ignored_and_counted():
    house = House(ttl_blocks_max=5)
    first, second = house.put(3), house.put(3, prompt=1)
    assert (house.stats("ttl_chains"), house.stats("ttl_ignored")) == (1, 1)
    house.put(5)  # instead of the first
    assert (house.stats("ttl_blocks"), house.stats("ttl_ignored")) == (5, 1)
    house.wait(60)
    assert house.stored(first) == 0 and house.stored(second) == 3
    assert house.stats("ttl_blocks") == 0


def test_marks_that_were_replaced_do_not_pile_up(house: House, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(expiry, "DEAD_MAX", 10)
    keys = house.put(2)
    for _ in range(100):
        house.ns.hint(keys, TTL)
    assert len(house.store.hints._expiry._heap) < 20
    house.wait(60)
    assert house.stored(keys) == 0


def test_one_step_ends_a_bounded_number_of_blocks(house: House, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(expiry, "STEP_BLOCKS", 5)
    for prompt in range(4):
        house.put(3, prompt)
    house.clock.us += 60 * SECOND_US
    step(house.store, 1)
    assert house.stats("expired_blocks") == 6
    step(house.store, 1)
    assert house.stats("expired_blocks") == 12


def test_who_watches_is_told(house: House):
    from kvstore._core import events

    events.keep(house.store.index, 100)
    keys = house.put(2)
    house.wait(60)
    batch = next(house.store.watch(since=START))
    removed = [event for event in batch.events if isinstance(event, Removed)]
    assert [(set(one.keys), one.reason) for one in removed] == [({key.tobytes() for key in keys}, Reason.EXPIRED)]


def test_what_expired_does_not_come_back_with_a_tier(tmp_path):
    with kvstore.open(config(tmp_path / "disk")) as store:
        ns = store.namespace(make_spec())
        keys, others = put_chain(ns, 2), put_chain(ns, 2, prompt=1)
        assert store.flush(60_000) and store.detach_tier("disk").released
        ns.hint(keys, Hint(ttl_s=0))
        with store.lock:
            store.mover.step()
        assert ns.match(keys).num_blocks == 0
        store.attach_tier("disk")
        assert ns.match(keys).num_blocks == 0 and ns.match(others).num_blocks == 2
        store.check()


def test_a_namespace_that_was_cleared_has_nothing_to_end(house: House):
    keys = house.put(4)
    house.ns.clear()
    house.wait(60)
    assert house.stored(keys) == 0 and house.stats("expired_blocks") == 0 and house.stats("ttl_chains") == 0


def test_pins_outlive_times_to_live(house: House):
    """Also where only some of the chain is pinned; and what is not used when they end is the eviction's."""
    keys = house.put(4)
    assert house.ns.pin(keys[:1], 10_000) == 1
    house.wait(60)
    assert house.stored(keys) == 1 and house.stats("expired_blocks") == 3
    house.ns.hint(keys, TTL)
    house.wait(60)
    assert house.stored(keys) == 1
    house.ns.unpin(keys)
    house.wait(60)
    assert house.stored(keys) == 1
    house.ns.hint(keys, TTL)
    house.wait(60)
    assert house.stored(keys) == 0
