"""When blocks were last used: access numbers as seconds, noted in a tier that keeps them; the order after a restart."""

import concurrent.futures
import threading

import numpy as np
import pytest
from disk_helpers import MIB
from store_helpers import SECOND_US, FakeClock, chain, make_spec, make_store, payload, put_chain, settle

from kvstore import recency
from kvstore._core import walk
from kvstore._core.index import Index
from kvstore.carry import Carry
from kvstore.recency import SAMPLES_MAX, Recency, Timeline
from kvstore.tiers.disk import DiskTier

NBYTES = 64 << 10


class DiskClock(FakeClock):
    """Time stands still while a device works; whoever waits for it steps the store."""

    def __init__(self):
        super().__init__()
        self.store = None

    def wait(self, future, timeout_us):
        while not concurrent.futures.wait((future,), 0.001).done:
            settle(self.store, 1)
        return True


@pytest.fixture
def clock():
    return DiskClock()


@pytest.fixture
def reopen(tmp_path, clock):
    """Stores over the folder of the one before, which is flushed and closed, or left as a kill leaves it."""
    made = []

    def end(*, flush):
        store = made.pop()
        assert not flush or store.flush(60_000)
        store.close(flush_ms=0)

    def reopen_one(*, flush=True):
        if made:
            end(flush=flush)
        tier = DiskTier(tmp_path, capacity_nbytes=16 * MIB, time_s=clock.time_s)
        clock.store = make_store(8, tier, clock=clock, block_nbytes=NBYTES)
        made.append(clock.store)
        return made[-1], made[-1].namespace(make_spec())

    yield reopen_one
    end(flush=False)


def settle_disk(store):
    assert store.mover.flush(None)


def use(ns, keys, clock):
    """A second later, a request reads these blocks."""
    clock.us += SECOND_US
    with ns.lease(keys):
        pass


def coldest_first(store, ns, prompts):
    """In which order the prompts' first blocks leave the far tier."""
    order = []
    left = dict(prompts)
    while left:
        freed, groups = store.index.evict_far(1, store.clock.time_s())
        store.mover.give_back(groups)
        assert freed
        gone = [name for name, keys in left.items() if ns.match(keys).num_blocks == 0]
        order += gone
        for name in gone:
            del left[name]
    return order


# ---- time line ----


def test_the_second_of_every_access():
    line = Timeline()
    for number, time_s in ((0, 10), (3, 11), (3, 12), (7, 15)):
        line.record(number, time_s)
    assert line.seconds(np.arange(9, dtype=np.uint64)).tolist() == [10, 11, 11, 11, 15, 15, 15, 15, 15]


def test_a_clock_that_is_put_back_changes_no_order():
    line = Timeline()
    for number, time_s in ((1, 100), (2, 50), (3, 101)):
        line.record(number, time_s)
    assert line.seconds(np.array([1, 2, 3], np.uint64)).tolist() == [100, 100, 101]


def test_old_stretches_get_coarser_and_stay_in_order():
    line = Timeline()
    num = 5 * SAMPLES_MAX
    for number in range(num):
        line.record(number, number)
    seconds = line.seconds(np.arange(num, dtype=np.uint64)).astype(np.int64)
    assert (np.diff(seconds) >= 0).all() and (seconds >= np.arange(num)).all()
    assert seconds[-1] == num - 1 and (seconds[-1000:] == np.arange(num)[-1000:]).all()
    assert (seconds - np.arange(num)).max() < 512


def test_access_numbers_go_round():
    """The index's number is 32 bits wide."""

    lapped = Recency(Index(16), None, FakeClock())
    lapped._number = 2**32 + 5  # as if it had been so for long, and now it is 2**32 + 5 again
    numbers = lapped._numbers(np.array([5, 3, 2**32 - 2], dtype=np.uint32))
    assert numbers.tolist() == [2**32 + 5, 2**32 + 3, 2**32 - 2]


# ---- over a restart ----


def test_the_order_of_use_survives_a_restart(reopen, clock):
    store, ns = reopen()
    prompts = {name: put_chain(ns, 2, prompt=name) for name in range(4)}
    settle_disk(store)
    for name in (2, 0, 3, 1):
        use(ns, prompts[name], clock)
        settle(store, 1)
    store, ns = reopen()
    assert coldest_first(store, ns, prompts) == [2, 0, 3, 1]


def test_the_order_of_use_survives_a_second_restart_and_mixes_with_new_uses(reopen, clock):
    store, ns = reopen()
    prompts = {name: put_chain(ns, 2, prompt=name) for name in range(4)}
    settle_disk(store)
    for name in (2, 0, 3, 1):
        use(ns, prompts[name], clock)
        settle(store, 1)
    store, ns = reopen()
    use(ns, prompts[0], clock)
    settle(store, 1)
    store, ns = reopen()
    assert coldest_first(store, ns, prompts) == [2, 3, 1, 0]


def test_eviction_after_a_restart_takes_what_was_used_longest_ago(reopen, clock):
    store, ns = reopen()
    prompts = {}
    for name in range(110):  # 220 blocks; the tier holds 224 of them
        clock.us += SECOND_US
        prompts[name] = put_chain(ns, 2, prompt=name)
        settle_disk(store)
    for name in range(20):
        use(ns, prompts[name], clock)
        settle(store, 1)
    store, ns = reopen()
    for name in range(110, 120):
        put_chain(ns, 2, prompt=name)
        settle_disk(store)
    gone = [name for name in prompts if not ns.match(prompts[name]).num_blocks]
    assert gone and min(gone) == 20  # the first 20 were written first, and used last


def test_what_was_noted_and_committed_survives_a_kill(reopen, clock):
    """Without a flush at the end: the note of every ten seconds is what counts."""
    store, ns = reopen()
    prompts = {name: put_chain(ns, 2, prompt=name) for name in range(3)}
    settle_disk(store)
    for name in (1, 2, 0):
        use(ns, prompts[name], clock)
        settle(store, 1)
    clock.us += recency.PERIOD_US
    settle(store)
    store.far.flush().result(60)
    use(ns, prompts[1], clock)  # after the last note
    store, ns = reopen(flush=False)
    assert coldest_first(store, ns, prompts) == [1, 2, 0]


def test_moving_a_block_is_not_using_it(reopen, clock):
    """A carry writes cold blocks anew; after a restart they are as cold as before."""
    store, ns = reopen()
    prompts = {name: put_chain(ns, 2, prompt=name) for name in range(3)}
    settle_disk(store)
    for name in (1, 2, 0):
        use(ns, prompts[name], clock)
        settle(store, 1)
    clock.us += 100 * SECOND_US
    with store.lock:
        places = store.index.describe(store.index.find(prompts[1]))[1].tolist()
        carry = Carry(store.mover, store.far, (min(places), max(places) + 1))
        while not carry.step():
            (carry._reading or carry._writing).result(60)
    assert carry.num_moved == 2
    store, ns = reopen()
    assert coldest_first(store, ns, prompts) == [1, 2, 0]


# ---- notes ----


class Notebook(DiskTier):
    """A disk tier that says what was noted."""

    def __init__(self, *args, **options):
        self.notes = []
        super().__init__(*args, **options)

    def note_usage(self, places, last_used_s):
        self.notes.append((places.tolist(), last_used_s.tolist()))
        super().note_usage(places, last_used_s)


@pytest.fixture
def noted(tmp_path, clock):
    tier = Notebook(tmp_path, capacity_nbytes=16 * MIB, time_s=clock.time_s)
    store = clock.store = make_store(64, tier, clock=clock, block_nbytes=NBYTES)
    yield store, store.namespace(make_spec()), tier
    store.close()


def test_only_what_was_used_since_the_last_note_is_noted(noted, clock):
    store, ns, tier = noted
    keys, others = put_chain(ns, 3, prompt=1), put_chain(ns, 2, prompt=2)
    settle_disk(store)
    tier.notes.clear()
    clock.us += recency.PERIOD_US
    settle(store)
    assert tier.notes == []  # nothing was used
    use(ns, others, clock)
    used_s = clock.time_s()
    settle(store)
    clock.us += recency.PERIOD_US
    settle(store)
    places = store.index.describe(store.index.find(others))[1].tolist()
    assert tier.notes == [(sorted(places), [used_s, used_s])]
    assert keys is not None


def test_a_chain_counts_whole(noted, clock):
    store, ns, tier = noted
    keys = put_chain(ns, 5)
    settle_disk(store)
    tier.notes.clear()
    use(ns, keys, clock)
    settle_disk(store)
    assert sorted(place for places, _ in tier.notes for place in places) == sorted(
        store.index.describe(store.index.find(keys))[1].tolist()
    )


def test_notes_in_many_pieces_miss_nothing(noted, clock, monkeypatch):
    monkeypatch.setattr(recency, "LOOK_MAX", 3)
    monkeypatch.setattr(recency, "FOUND_MAX", 2)
    monkeypatch.setattr(recency, "NOTE_BLOCKS", 1)
    monkeypatch.setattr(recency, "STEP_US", 0)
    store, ns, tier = noted
    for prompt in range(6):
        put_chain(ns, 4, prompt)
    settle_disk(store)
    tier.notes.clear()
    clock.us += recency.PERIOD_US
    for prompt in range(6):
        use(ns, chain(ns, 4, prompt), clock)
    steps = []
    for _ in range(200):
        settle(store, 1)
        steps.append(len(tier.notes))
    assert sorted(place for places, _ in tier.notes for place in places) == sorted(
        store.index.describe(walk.in_range(store.index, 1, 0, 2**32 - 1))[1].tolist()
    )
    assert max(np.diff(steps)) == 1  # a piece a step


def test_a_store_without_a_durable_tier_notes_nothing(clock):
    index = Index(16)
    Recency(index, None, clock).catch_up(threading.RLock())
    store = make_store(4, clock=clock)
    ns = store.namespace(make_spec())
    keys = chain(ns, 2)
    ns.put(keys, payload(keys))
    settle(store)
    assert store.flush()
    store.close()
