"""The scrubber, stepped by hand over a far tier that obeys: what it reads, when, and what its verdicts do."""

import numpy as np
import pytest
from store_helpers import BLOCK, SECOND_US, FakeClock, ObedientTier, chain, make_spec, make_store, put_chain, settle

from kvstore import scrub
from kvstore._core import index as core
from kvstore._core import walk
from kvstore.policy import may_scrub
from kvstore.tiers.base import Outcome

FAR = 1


class WatchedTier(ObedientTier):
    """Remembers the places of every read."""

    def __init__(self, capacity_nbytes):
        super().__init__(capacity_nbytes)
        self.places_read = []

    def read(self, places, checksums, buffers, deadline_us=None):
        self.places_read.append(places.tolist())
        return super().read(places, checksums, buffers, deadline_us)

    def damage(self, place):
        self._blocks[place] = bytes([self._blocks[place][0] ^ 1]) + self._blocks[place][1:]


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def far():
    return WatchedTier(256 * BLOCK)


@pytest.fixture
def make(far, clock):
    made = []

    def make_one(num_blocks=8):
        made.append(make_store(num_blocks, far, clock=clock))
        return made[-1], made[-1].namespace(make_spec())

    yield make_one
    far.let_go()
    for store in made:
        settle(store)
        store.check()
        store.close()


def said(store):
    stats = store.stats()["mover"]
    return stats["scrubbed_blocks"], stats["scrub_rotten_blocks"], stats["scrub_rounds"]


def stop_scrubbing(store):
    store.mover._scrub._nbytes_per_s = 0


def start_scrubbing(store, nbytes_per_s=1 << 50):
    """Once everything is written back: before, the tier would be found empty, and left alone for a while."""
    settle(store)
    store.mover._scrub._nbytes_per_s = nbytes_per_s


def far_place(store, keys):
    return store.index.describe(store.index.find(keys))[1].tolist()


@pytest.mark.parametrize(
    ("healthy", "num_reads", "now_us", "ready_us", "nbytes_per_s", "may"),
    [
        (True, 0, 5, 5, 1, True),
        (True, 0, 5, 0, 0, False),  # switched off
        (False, 0, 5, 0, 1, False),
        (True, 1, 5, 0, 1, False),  # somebody waits for a read
        (True, 0, 5, 6, 1, False),  # over its budget
    ],
)
def test_when_it_may_go_on(healthy, num_reads, now_us, ready_us, nbytes_per_s, may):
    assert may_scrub(healthy, num_reads, now_us, ready_us, nbytes_per_s) is may


def test_every_far_block_is_read_once_a_round_in_the_order_of_places(make, far, clock, monkeypatch):
    monkeypatch.setattr(scrub, "SCRUB_NBYTES", 3 * BLOCK)
    store, ns = make(num_blocks=64)
    for prompt in range(5):
        put_chain(ns, 4, prompt)
    start_scrubbing(store)
    ids = walk.in_range(store.index, FAR, 0, 2**32 - 1)
    places = store.index.describe(ids)[1]
    store.index.carry_unmark(ids, places[::-1].copy(), store.index.carry_mark(ids))  # later ids lie further in front
    far._blocks = {int(new): far._blocks[int(old)] for old, new in zip(places, places[::-1], strict=True)}
    settle(store, 40)
    assert [place for places in far.places_read for place in places] == sorted(places.tolist())
    assert max(len(places) for places in far.places_read) == 3  # bounded batches
    assert said(store) == (20, 0, 1)
    clock.us += scrub.ROUND_US_MIN - SECOND_US
    settle(store)
    assert said(store) == (20, 0, 1)  # a small store is not read all the time
    assert store.stats()["mover"]["scrub_age_s"] == pytest.approx((scrub.ROUND_US_MIN - SECOND_US) / 1e6)
    clock.us += SECOND_US
    settle(store, 40)
    assert said(store) == (40, 0, 2)


def test_listings_of_many_pieces_miss_nothing(make, far, monkeypatch):
    monkeypatch.setattr("kvstore.listing.LOOK_MAX", 3)
    monkeypatch.setattr("kvstore.listing.LIST_BLOCKS_MAX", 4)
    store, ns = make(num_blocks=64)
    for prompt in range(5):
        put_chain(ns, 5, prompt)
    start_scrubbing(store)
    settle(store, 200)
    read = [place for places in far.places_read for place in places]
    assert read == sorted(set(read)) and len(read) == 25
    assert said(store) == (25, 0, 1)


def test_the_budget_spreads_reads_over_time(make, far, clock, monkeypatch):
    """One batch of two blocks a second."""
    monkeypatch.setattr(scrub, "SCRUB_NBYTES", 2 * BLOCK)
    store, ns = make()
    put_chain(ns, 6)
    start_scrubbing(store, 2 * BLOCK)
    read = []
    for _ in range(4):
        settle(store)
        read.append(said(store)[0])
        clock.us += SECOND_US
    assert read == [2, 4, 6, 6]


def test_a_budget_of_nothing_reads_nothing(make, far):
    store, ns = make()
    put_chain(ns, 6)
    settle(store, 40)
    assert far.places_read == [] and said(store) == (0, 0, 0)
    assert store.stats()["mover"]["scrub_age_s"] == -1.0


def test_it_waits_while_the_tier_is_sick_or_somebody_reads(make, far):
    store, ns = make()
    keys = put_chain(ns, 4, prompt=1)
    settle(store)
    put_chain(ns, 8, prompt=2)
    start_scrubbing(store)
    far.ill = "ill"
    settle(store)
    assert far.places_read == []
    far.ill = ""
    far.holding = True
    future = ns.prefetch(keys)
    settle(store)
    assert len(far.places_read) == 1  # the prefetch alone
    far.let_go()
    settle(store, 40)
    assert future.done() and said(store)[0] == 12


def test_a_rotten_block_is_removed_with_what_extends_it_and_never_comes_back(make, far):
    store, ns = make()
    keys = put_chain(ns, 5)
    settle(store)
    far.damage(far_place(store, keys)[2])
    start_scrubbing(store)
    settle(store)
    assert said(store)[:2] == (5, 1)
    assert ns.match(keys).num_blocks == 2
    assert "rotten" in ns.explain(keys)[2]
    assert store.stats()["mover"]["corrupt_blocks"] == 1
    assert far.usage().num_blocks == 2  # and its places can be used again


def test_a_block_that_cannot_be_read_is_not_judged(make, far):
    store, ns = make()
    keys = put_chain(ns, 4)
    start_scrubbing(store)
    far.answer = Outcome.IO_ERROR
    settle(store)
    assert said(store)[:2] == (0, 0) and ns.match(keys).num_blocks == 4
    far.answer = Outcome.OK


def being_scrubbed(store, ns, far, num_blocks=4):
    """A prompt whose blocks are far and are being read by the scrubber."""
    keys = put_chain(ns, num_blocks)
    start_scrubbing(store)
    far.holding = True
    settle(store)
    assert far.places_read
    stop_scrubbing(store)
    return keys


def test_no_verdict_on_a_block_that_left_meanwhile(make, far, monkeypatch):
    """Its place holds another block by the time it is read, and its id another one still."""
    store, ns = make()
    keys = being_scrubbed(store, ns, far)
    ids = store.index.find(keys)
    ns.remove(keys[:1])
    settle(store)
    others = put_chain(ns, 4, prompt=7)
    assert set(store.index.find(others)) == set(ids)  # what the verdict would fall upon
    outcomes = np.full(4, Outcome.CORRUPT, dtype=np.uint8)
    far.holding = False
    for later, _ in far._held:
        if not later.done():
            later.set_result(outcomes)
    far._held.clear()
    settle(store)
    assert ns.match(others).num_blocks == 4
    assert said(store)[:2] == (0, 0)


def test_no_verdict_on_a_block_that_was_carried_meanwhile_even_back_to_where_it_was(make, far):
    store, ns = make()
    keys = being_scrubbed(store, ns, far)
    ids = store.index.find(keys)
    here = np.array(far_place(store, keys), dtype=np.uint32)
    for places in (here + np.uint32(1000), here):
        marked = store.index.carry_mark(ids)
        assert marked.all() and store.index.carry_unmark(ids, places, marked).all()
    (later, _), *_ = far._held
    later.set_result(np.full(4, Outcome.CORRUPT, dtype=np.uint8))
    far._held.clear()
    far.holding = False
    settle(store)
    assert ns.match(keys).num_blocks == 4 and said(store)[:2] == (0, 0)


def test_reading_holds_nothing_in_place(make, far):
    """A block that is being scrubbed can be removed and evicted like any other."""
    store, ns = make()
    keys = being_scrubbed(store, ns, far)
    ns.remove(keys[:1])
    settle(store)
    assert far.usage().num_blocks == 0 and store.index.num_removed == 0


def test_a_listed_block_that_has_gone_is_passed_over(make, far, monkeypatch):
    monkeypatch.setattr(scrub, "SCRUB_NBYTES", BLOCK)
    store, ns = make()
    keys = put_chain(ns, 3, prompt=1)
    other = put_chain(ns, 1, prompt=2)
    start_scrubbing(store, BLOCK)
    settle(store)
    assert len(far.places_read) == 1 and len(store.mover._scrub._left) == 3
    ns.remove(keys[:1])
    settle(store)
    store.clock.us += 10 * SECOND_US
    settle(store)
    assert [place for places in far.places_read[1:] for place in places] == far_place(store, other)
    assert int(store.index.words(store.index.find(other))[0]) & 0xFF == core.VALID


def test_a_block_larger_than_a_batch_is_read_alone(make, far, monkeypatch):
    monkeypatch.setattr(scrub, "SCRUB_NBYTES", BLOCK // 2)
    store, ns = make()
    put_chain(ns, 3)
    start_scrubbing(store)
    settle(store, 20)
    assert [len(places) for places in far.places_read] == [1, 1, 1] and said(store) == (3, 0, 1)


def test_an_empty_tier_is_looked_at_again_soon(make, far, clock):
    store, ns = make()
    start_scrubbing(store)
    settle(store)
    put_chain(ns, 3)
    settle(store)
    assert said(store) == (0, 0, 0)
    clock.us += scrub.EMPTY_US
    settle(store, 20)
    assert said(store) == (3, 0, 1)


def test_closing_in_the_middle_of_a_batch(make, far):
    store, ns = make()
    being_scrubbed(store, ns, far)
    assert chain(ns, 1) is not None
    store.close()
