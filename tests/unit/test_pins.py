"""Pins: what they keep, for how long, and their limits."""

from __future__ import annotations

from typing import Any

import pytest
from store_helpers import BLOCK, SECOND_US, FakeClock, ObedientTier, chain, make_spec, make_store, payload, put_chain
from store_helpers import settle as step

from kvstore.errors import LimitExceeded


class House:
    """A store of 20 blocks, four of which may be pinned, over a far tier of 40."""

    def __init__(self, *, has_far: bool = True, **limits: Any) -> None:
        self.clock = FakeClock()
        far = ObedientTier(40 * BLOCK) if has_far else None
        self.store = make_store(20, far, clock=self.clock, **{"pins_nbytes_max": 4 * BLOCK, **limits})
        self.ns = self.store.namespace(make_spec())

    def wait(self, seconds: float) -> None:
        self.clock.us += int(seconds * SECOND_US)
        step(self.store, 2)

    def fill(self, num_prompts: int = 12) -> None:
        """Put more than fits anywhere."""
        for prompt in range(100, 100 + num_prompts):
            keys = chain(self.ns, 10, prompt)
            self.ns.put(keys, payload(keys))
            step(self.store)

    def stats(self) -> tuple[int, int, int]:
        """Pins, blocks, and blocks' worth of bytes."""
        found = self.store.stats()["policy"]
        assert found["pinned_nbytes"] % BLOCK == 0
        return found["pins"], found["pinned_blocks"], found["pinned_nbytes"] // BLOCK


@pytest.fixture
def house():
    made = House()
    yield made
    made.store.check()


@pytest.mark.parametrize("has_far", [True, False])
def test_a_pinned_chain_is_evicted_from_no_tier(has_far: bool):
    house = House(has_far=has_far)
    keys, others = put_chain(house.ns, 4), put_chain(house.ns, 4, prompt=1)
    assert house.ns.pin(keys, 60) == 4
    house.fill()
    assert house.ns.match(keys).num_blocks == 4 and house.ns.match(others).num_blocks == 0
    house.wait(60)
    house.fill()
    assert house.ns.match(keys).num_blocks == 0
    house.store.check()


def test_a_pin_of_far_blocks_keeps_them_far(house: House):
    keys = put_chain(house.ns, 4)
    house.fill(2)
    assert house.ns.match(keys).by_tier == {"far": 4}
    assert house.ns.pin(keys, 60) == 4
    house.fill()
    assert house.ns.match(keys).by_tier == {"far": 4}


def test_a_pin_ends_with_its_time(house: House):
    keys = put_chain(house.ns, 4)
    house.ns.pin(keys[:2], 10)
    house.ns.pin(keys, 20)
    house.wait(9.999)
    assert house.stats() == (2, 4, 4)
    house.wait(0.001)
    assert house.stats() == (1, 4, 4)
    house.wait(10)
    assert house.stats() == (0, 0, 0)
    assert house.store.hints.pins.num_leases == 0


def test_the_same_keys_again_begin_anew(house: House):
    keys = put_chain(house.ns, 2)
    longer = chain(house.ns, 4)
    assert house.ns.pin(longer, 10) == 2
    house.wait(5)
    house.ns.put(longer, payload(longer))
    assert house.ns.pin(longer, 10) == 4 and house.stats() == (1, 4, 4)
    house.wait(5)
    assert house.stats() == (1, 4, 4)
    house.wait(5)
    assert house.stats() == (0, 0, 0)
    assert house.ns.match(keys).num_blocks == 2


def test_pins_share_blocks(house: House):
    keys = put_chain(house.ns, 4)
    house.ns.pin(keys, 60)
    house.ns.pin(keys[:3], 60)
    assert house.stats() == (2, 4, 4)
    assert house.ns.unpin(keys[:3]) == 0 and house.stats() == (1, 4, 4)
    house.ns.pin(keys[:3], 60)
    assert house.ns.unpin(chain(house.ns, 6)) == 4 and house.stats() == (0, 0, 0)


def test_unpin_ends_only_what_these_keys_begin_with(house: House):
    keys, others = put_chain(house.ns, 3), put_chain(house.ns, 1, prompt=1)
    house.ns.pin(keys, 60)
    house.ns.pin(others, 60)
    assert house.ns.unpin(keys[:2]) == 0 and house.stats() == (2, 4, 4)
    assert house.ns.unpin(others) == 1 and house.stats() == (1, 3, 3)


def test_over_the_limit_nothing_changes(house: House):
    keys = put_chain(house.ns, 6)
    house.ns.pin(keys[:3], 60)
    with pytest.raises(LimitExceeded, match=rf"policy\.pins_nbytes_max={4 * BLOCK}"):
        house.ns.pin(keys[:5], 60)
    assert house.stats() == (1, 3, 3)
    house.wait(30)
    with pytest.raises(LimitExceeded):
        house.ns.pin(keys, 60)
    house.wait(30)
    assert house.stats() == (0, 0, 0)
    assert house.ns.pin(keys[:4], 60) == 4


def test_a_renewed_pin_may_use_what_it_had(house: House):
    one, two = put_chain(house.ns, 4), put_chain(house.ns, 1, prompt=1)
    house.ns.pin(one, 60)
    with pytest.raises(LimitExceeded):
        house.ns.pin(two, 60)
    assert house.ns.pin(one, 90) == 4
    house.ns.remove(one[2:])
    house.ns.put(one, payload(one))
    assert house.ns.pin(one, 90) == 4, "the blocks that it had before are on their way out"


def test_a_renewed_pin_counts_what_it_grew_by(house: House):
    keys = chain(house.ns, 5)
    put_chain(house.ns, 3)
    assert house.ns.pin(keys, 60) == 3
    house.ns.put(keys, payload(keys))
    with pytest.raises(LimitExceeded):
        house.ns.pin(keys, 60)
    assert house.stats() == (1, 3, 3)


def test_the_limit_is_a_tenth_of_the_memory_unless_it_is_set():
    store = make_store(100)
    assert store.stats()["policy"]["pins_nbytes_max"] == 10 * BLOCK


def test_lease_entries_are_limited_too():
    house = House(pin_leases_max=128)
    names = [put_chain(house.ns, 1, prompt) for prompt in range(3)]
    assert [house.ns.pin(keys, 60) for keys in names[:2]] == [1, 1]
    with pytest.raises(LimitExceeded, match=r"index\.leases_max=128"):
        house.ns.pin(names[2], 60)
    assert house.stats() == (2, 2, 2)
    house.ns.unpin(names[0])
    assert house.ns.pin(names[2], 60) == 1


def test_pins_take_none_of_the_callers_leases(house: House):
    keys = put_chain(house.ns, 4)
    house.ns.pin(keys, 60)
    assert house.store.stats()["lookups"]["leases_in_use"] == 0
    with house.ns.lease(keys):
        assert house.store.stats()["lookups"]["leases_in_use"] == 64


def test_removal_takes_pinned_blocks_and_their_memory(house: House):
    keys = put_chain(house.ns, 4)
    house.ns.pin(keys, 60)
    assert house.ns.remove(keys[1:2]) == 3
    assert house.store.index.counts()["removed_pending"] == 3
    step(house.store)
    assert house.store.index.counts()["removed_pending"] == 0 and house.stats() == (1, 1, 1)
    house.fill()
    assert house.ns.match(keys).num_blocks == 1, "what is left of it is still pinned"
    house.ns.clear()
    step(house.store)
    assert house.stats() == (0, 0, 0)
    house.wait(60)


def test_what_is_not_stored_is_not_pinned(house: House):
    assert house.ns.pin(chain(house.ns, 3), 60) == 0 and house.ns.pin(chain(house.ns, 0), 60) == 0
    keys = put_chain(house.ns, 2)
    assert house.ns.pin(keys[1:], 60) == 1, "a block by itself, and those above it cannot go before it"
    other = house.store.namespace(make_spec(salt="x"))
    assert other.pin(keys, 60) == 0
    assert house.stats() == (1, 1, 1)


def test_a_pin_of_what_has_gone_ends(house: House):
    keys = put_chain(house.ns, 2)
    house.ns.pin(keys, 60)
    house.ns.clear()
    assert house.ns.pin(keys, 60) == 0 and house.stats() == (0, 0, 0)
