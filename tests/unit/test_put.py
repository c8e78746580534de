"""The put path of the core, without a store: room, what is short, the queues, and threads that are in it together."""

import threading

import numpy as np
import pytest
import store_helpers
from store_helpers import make_spec

import kvstore
from kvstore._core import index as core
from kvstore._core import put
from kvstore._core.arena import Arena
from kvstore._core.index import Index
from kvstore._core.lease import LeaseTable
from kvstore._core.put import PutPath
from kvstore.errors import InvalidRequest

SLOT = 4096
NS, OTHER = 1, 2


class Bench:
    """A put path over `num_blocks` near slots."""

    def __init__(self, num_blocks=8, entries_max=256, spare=0, has_far=False, queue_blocks=64):
        self.index = Index(entries_max)
        self.index.set_namespace(NS, SLOT, 1, spare * SLOT)
        self.index.set_namespace(OTHER, SLOT, 1)
        self.arena = Arena(4 << 20, base_pages=True)
        self.leases = LeaseTable(self.index, 256)
        self.path = PutPath(self.index, self.arena, num_blocks * SLOT, queue_blocks, has_far)

    def reserve(self, keys, flags=0, ns=NS):
        return self.path.reserve(self.leases, keys, ns, 0, flags, 7)

    def put(self, keys, flags=put.LATE):
        code, _, ids, *_ = self.reserve(keys, flags)
        assert code == put.OK
        assert self.path.commit(ids, 0, 7) == 0
        return len(ids)

    def check(self):
        assert self.index.check() == 0 and self.arena.check() == 0
        assert self.arena.used_nbytes == self.index.near_nbytes + self.path.arriving_nbytes
        assert self.leases.used == 0


def chain(num_blocks, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (num_blocks, 32), dtype=np.uint8)


@pytest.mark.parametrize(
    ("used", "wanted", "spare", "left"),
    [
        (0, 8, 0, 8),
        (7, 1, 0, 8),  # to the last byte
        (7, 2, 0, 8),
        (8, 2, 2, 10),  # the spare lasts
        (10, 1, 2, 8),  # then down to capacity at once
        (0, 12, 0, 8),  # more than there is: the caller gets what fits
    ],
)
def test_evictions_begin_when_the_spare_is_used_up(used, wanted, spare, left):
    bench = Bench(spare=spare)
    for number in range(used):
        bench.put(chain(1, 100 + number))
    bench.put(chain(wanted))
    assert bench.index.near_nbytes == left * SLOT
    bench.check()


def test_what_a_reservation_extends_is_not_evicted_for_it():
    bench = Bench(4)
    keys = chain(6)
    bench.put(keys[:3])
    bench.put(chain(1, 9))  # hotter, and evicted all the same
    code, positions, ids, _, _, present, refused, why = bench.reserve(keys, put.LATE)
    assert (code, positions.tolist(), present, refused, why) == (put.OK, [3], 3, [(4, False), (5, False)], "memory")
    bench.path.abandon(ids, 0, 7)
    bench.check()


def test_nothing_is_reserved_while_unwritten_blocks_are_in_the_way():
    bench = Bench(4, has_far=True)
    bench.put(chain(4))
    assert bench.reserve(chain(2, 1)) == (put.SHORT_ROOM, 2)
    bench.check()
    assert bench.reserve(chain(2, 1), put.LATE)[0] == put.OK


def test_a_quota_is_asked_for_and_then_kept():
    bench = Bench()
    bench.index.set_quota(NS, 2)
    assert bench.reserve(chain(3)) == (put.SHORT_QUOTA, 3)
    _, positions, ids, *_, refused, why = bench.reserve(chain(3), put.PAST_QUOTA)
    assert (positions.tolist(), refused, why) == ([0, 1], [(2, False)], "quota")
    bench.path.commit(ids, 0, 7)
    bench.index.set_quota(NS, None)
    assert bench.put(chain(3)) == 1
    bench.index.set_quota(OTHER, 0)
    assert bench.reserve(chain(1, 5), put.PAST_QUOTA, OTHER)[6] == [(0, False)]
    bench.check()


def test_index_entries_are_asked_for_and_then_used_up():
    bench = Bench(entries_max=4)
    assert bench.reserve(chain(6)) == (put.SHORT_ENTRIES, 6)
    *_, refused, why = bench.reserve(chain(6), put.PAST_ENTRIES)
    assert (refused, why) == ([(4, False), (5, False)], "index")


def test_keys_of_another_namespace_are_named():
    bench = Bench()
    bench.put(chain(2))
    assert bench.reserve(np.concatenate([chain(1, 3), chain(2)[1:]]), ns=OTHER) == (put.FOREIGN, 1)
    bench.check()


def test_a_stored_prefix_that_cannot_be_leased_refuses_the_whole():
    bench = Bench(512, entries_max=1024)
    bench.put(chain(250))
    held = bench.leases.acquire(chain(250))
    assert bench.reserve(chain(300))[0] == put.SHORT_LEASES
    held.release()
    bench.check()


def test_new_blocks_wait_in_order_for_their_write_back_and_no_more_than_fit():
    bench = Bench(has_far=True, queue_blocks=4)
    bench.put(chain(2))
    _, _, ids, *_ = bench.reserve(chain(1, 4), ns=OTHER)
    bench.path.commit(ids, 0, 7)
    (mine, words, ns), (others, _, other) = bench.path.take_fresh()
    assert bench.index.keys(mine).tolist() == chain(2).tolist() and (words == bench.index.words(mine)).all()
    assert (ns, other, others.tolist()) == (NS, OTHER, ids.tolist())
    assert bench.path.take_fresh() == []
    for number in range(6):
        bench.put(chain(1, 20 + number))
    assert sum(len(ids) for ids, *_ in bench.path.take_fresh()) == 4 and bench.path.num_unqueued == 2


def test_room_counts_as_arriving_until_it_has():
    bench = Bench(4)
    places = bench.path.room(NS, 3, False, 7)
    assert len(places) == 3 and bench.path.arriving_nbytes == 3 * SLOT
    assert len(bench.reserve(chain(4), put.LATE)[1]) == 1
    bench.arena.free(places, SLOT)
    bench.path.arrived(3 * SLOT)
    bench.check()


def test_only_what_is_still_being_written_expires():
    bench = Bench()
    _, _, ids, _, words, *_ = bench.reserve(chain(3))
    bench.path.commit(ids[:1], 0, 7)
    assert bench.path.expire(ids, words, False, 7) and bench.index.match(chain(3))[0] == 1
    assert bench.path.expire(ids, words, True, 7) and (bench.index.find(chain(3))[1:] == core.NONE).all()
    assert bench.path.commit(ids[1:], 0, 7) == 2  # their owner learns it
    assert bench.index.num_blocks(NS) == 1
    assert not bench.path.expire(ids, words, True, 7)
    with pytest.raises(InvalidRequest, match="state words"):
        bench.path.expire(ids, words[:1], True, 7)
    bench.check()


def test_far_places_of_removed_blocks_are_handed_out_once():
    bench = Bench(has_far=True)
    bench.put(chain(3))
    ((ids, words, _),) = bench.path.take_fresh()
    marked = bench.index.writeback_mark(ids, words, NS)
    assert marked.all() and not bench.index.writeback_mark(ids, words, OTHER).any()
    bench.index.writeback_unmark(ids, np.array([5, 6, 7], np.uint32), words, marked)
    assert bench.index.remove_keys(chain(3)[1:], OTHER, 7) == 0
    assert bench.index.remove_keys(chain(3)[1:], NS, 7) == 2
    assert not bench.path.has_freed_far
    bench.path.reap()
    ((ns, places),) = bench.path.take_far()
    assert (ns, sorted(places)) == (NS, [6, 7]) and bench.path.take_far() == []
    bench.check()


def test_threads_reserve_commit_abandon_and_remove_side_by_side():
    """Whatever they do to each other's chains, nothing is lost track of; and a removal takes only what it names."""
    bench = Bench(24, entries_max=32)
    rng = np.random.default_rng(1)
    kept, removed = [chain(4, number) for number in range(8)], [chain(4, 50 + number) for number in range(4)]
    lock = threading.Lock()  # as the store's: it keeps reservations apart, and nothing else
    errors = []

    def writes(keys_of_mine, removes):
        try:
            for _ in range(1500):
                keys = keys_of_mine[int(rng.integers(len(keys_of_mine)))]
                with lock:
                    code, _, ids, *_ = bench.reserve(keys, put.LATE | put.PAST_ENTRIES)
                assert code == put.OK
                bench.path.commit(ids, 0, 7) if rng.random() < 0.8 else bench.path.abandon(ids, 0, 7)
                if removes:
                    bench.index.remove_keys(keys, NS, 7)
                    bench.path.reap()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=writes, args=args) for args in ((kept, False), (kept, False), (removed, True))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    for keys in kept:
        assert all(reason != core.REMOVED for reason, *_ in bench.index.ghosts(keys))
    bench.path.reap()
    bench.check()


def test_a_put_that_waits_for_room_needs_what_it_extends_leased_once(tmp_path):
    """With a table of one group of leases: held while it waits, and again by the core, there would be none left."""
    config = kvstore.Config(
        host={"nbytes": 8 << 20},
        disk={"path": tmp_path, "nbytes": 512 << 20},
        index={"entries_max": 4096, "leases_max": 64},
    )
    with kvstore.open(config) as store:
        ns = store.namespace(make_spec(block_nbytes=1 << 20))
        for prompt in range(30):
            for num_blocks in (1, 7):
                keys = store_helpers.chain(ns, num_blocks, prompt)
                result = ns.put(keys, store_helpers.payload(keys, 1 << 20), deadline_ms=60_000)
                assert result.stored + result.present == num_blocks
        assert store.leases.used == 0
