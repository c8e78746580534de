"""The block index and its leases, without tiers: ids, states, child counts, orders."""

import gc

import numpy as np
import pytest

from kvstore._core import index as core
from kvstore._core import walk
from kvstore._core.index import Index
from kvstore._core.lease import STOP_END, STOP_FULL, STOP_MISS, LeaseTable
from kvstore.errors import InvalidRequest, LimitExceeded

SLOT = 4096


def random_keys(num_blocks, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (num_blocks, 32), dtype=np.uint8)


@pytest.fixture
def index():
    made = Index(4096)
    made.set_namespace(1, SLOT, 1)
    made.set_namespace(2, SLOT, 2)
    yield made
    assert made.check() == 0


@pytest.fixture
def leases(index):
    return LeaseTable(index, 1024)


def reserve(index, keys, shard=0, ns=1, places=None):
    wanted, plan, ids = index.plan(keys, shard)
    given = np.arange(100, 100 + wanted, dtype=np.uint32) if places is None else places
    index.begin(keys, shard, ns, plan, ids, given)
    return plan, ids


def put(index, keys, **rest):
    plan, ids = reserve(index, keys, **rest)
    fresh = ids[(plan != core.PRESENT) & (ids != core.NONE)]
    published, committed = index.commit(fresh, 0)
    assert committed.all()
    return published


def write_back(index, ids, first_place=0):
    """Pretend that the far tier wrote these."""
    marked = index.writeback_mark(ids, index.words(ids)).view(bool)
    ids = ids[marked]
    places = np.arange(first_place, first_place + len(ids), dtype=np.uint32)
    kept = index.writeback_unmark(ids, places, places.astype(np.uint64) + 7, np.ones(len(ids), np.uint8))
    assert kept.all()
    return ids


def test_reserved_blocks_are_invisible_until_committed(index, leases):
    keys = random_keys(5)
    _, ids = reserve(index, keys)
    assert index.match(keys) == (0, 0, 0)
    assert leases.acquire(keys).num_blocks == 0
    index.commit(ids[:2], 0)
    assert index.match(keys) == (2, 2, 2)
    index.commit(ids[2:], 0)
    assert leases.acquire(keys).num_near == 5


def test_a_second_writer_is_told_that_the_first_is_busy(index):
    keys = random_keys(3)
    _, ids = reserve(index, keys)
    _, plan, again = index.plan(keys, 0)
    assert plan.tolist() == [core.BUSY] * 3 and (again == ids).all()
    index.commit(ids, 0)
    assert index.plan(keys, 0)[1].tolist() == [core.PRESENT] * 3


def test_places_that_run_out_end_the_run(index):
    keys = random_keys(4)
    _, ids = reserve(index, keys, places=np.array([5, 6], dtype=np.uint32))
    assert (ids[:2] != core.NONE).all() and (ids[2:] == core.NONE).all()


def test_nothing_is_reserved_on_a_block_that_was_evicted_after_the_plan(index):
    keys = random_keys(5)
    put(index, keys[:3])
    _, plan, ids = index.plan(keys, 0)
    index.evict_near(SLOT, False, 0)
    assert index.begin(keys, 0, 1, plan, ids, np.arange(2, dtype=np.uint32)) == 0
    assert ids[3:].tolist() == [core.NONE] * 2


def test_a_rank_that_repeats_a_block_joins_it_once(index):
    keys = random_keys(2)[[0, 0, 1]]
    plan, ids = reserve(index, keys, ns=2)
    assert plan.tolist() == [core.WANTED, core.BUSY, core.WANTED] and ids[1] == ids[0]
    index.commit(ids[plan == core.WANTED], 0)
    plan, joined = reserve(index, keys, shard=1, ns=2)
    assert plan.tolist() == [core.JOIN, core.BUSY, core.JOIN] and joined.tolist() == ids.tolist()
    index.commit(joined[plan == core.JOIN], 1)
    assert index.match(keys)[0] == 3 and index.check() == 0


def test_a_chain_stays_within_its_namespace(index):
    keys = random_keys(3)
    put(index, keys[:1], ns=1)
    _, ids = reserve(index, keys, ns=2)
    assert ids[1:].tolist() == [core.NONE] * 2
    index.clear(1, 0)
    assert index.reap()


def test_abandoned_reservation_leaves_nothing(index):
    keys = random_keys(4)
    _, ids = reserve(index, keys)
    index.abandon(ids, 0)
    (group,) = index.reap()
    assert group[:2] == (0, 1) and sorted(group[2]) == [100, 101, 102, 103]
    assert index.counts()["entries"] == 0 and index.near_nbytes == 0
    assert index.ghosts(keys[:1])[0][0] == core.ABANDONED


def test_what_was_reserved_on_an_abandoned_block_never_shows(index):
    keys = random_keys(6)
    _, parents = reserve(index, keys[:3])
    plan, ids = reserve(index, keys)
    children = ids[plan == core.WANTED]
    published, committed = index.commit(children, 0)
    assert not len(published) and committed.all()  # complete, but waiting for their parents
    index.abandon(parents, 0)
    assert index.match(keys) == (0, 0, 0)
    index.reap()
    assert index.counts()["entries"] == 0


def test_children_that_wait_become_visible_with_their_parents(index):
    keys = random_keys(6)
    _, parents = reserve(index, keys[:3])
    plan, ids = reserve(index, keys)
    index.commit(ids[plan == core.WANTED], 0)
    assert index.match(keys)[0] == 0
    published, _ = index.commit(parents, 0)
    assert len(published) == 6 and index.match(keys)[0] == 6


def test_orphan_with_its_owner_still_writing_is_refused_at_commit(index):
    keys = random_keys(4)
    _, parents = reserve(index, keys[:2])
    plan, ids = reserve(index, keys)
    index.abandon(parents, 0)
    published, committed = index.commit(ids[plan == core.WANTED], 0)
    assert not len(published) and not committed.any()
    index.reap()
    assert index.counts()["entries"] == 0


def test_shards_become_visible_when_all_have_committed(index):
    keys = random_keys(3)
    _, ids = reserve(index, keys, shard=0, ns=2)
    index.commit(ids, 0)
    assert index.match(keys)[0] == 0
    plan, joined = reserve(index, keys, shard=1, ns=2)
    assert plan.tolist() == [core.JOIN] * 3 and (joined == ids).all()
    assert index.plan(keys, 1)[1].tolist() == [core.BUSY] * 3
    index.commit(joined, 1)
    assert index.match(keys)[0] == 3


def test_a_shard_that_never_comes_can_be_expired(index):
    keys = random_keys(3)
    _, ids = reserve(index, keys, ns=2)
    index.commit(ids, 0)
    index.remove(ids, core.ABANDONED, 0)
    index.reap()
    assert index.counts()["entries"] == 0


def test_eviction_takes_the_tail_of_the_chain_first(index):
    keys = random_keys(8)
    put(index, keys)
    _, ((_, _, places),) = index.evict_near(3 * SLOT, False, 9)
    assert places.tolist() == [107, 106, 105]
    assert index.match(keys)[0] == 5
    assert index.ghosts(keys[7:])[0] == (core.UNWRITTEN, 9, None)


def test_leased_blocks_and_their_ancestors_stay(index, leases):
    keys = random_keys(6)
    put(index, keys)
    grip = leases.acquire(keys[:4])
    freed, _ = index.evict_near(100 * SLOT, False, 0)
    assert freed == 2 * SLOT and index.match(keys)[0] == 4
    grip.release()
    assert index.evict_near(100 * SLOT, False, 0)[0] == 4 * SLOT


def test_a_lease_that_is_forgotten_ends_when_it_is_collected(index, leases):
    keys = random_keys(3)
    put(index, keys)
    grip = leases.acquire(keys)
    assert leases.used == 64
    del grip
    gc.collect()
    assert leases.used == 0


def test_a_lease_that_is_collected_within_a_cycle_ends(index, leases):
    class Owner:
        pass

    keys = random_keys(3)
    put(index, keys)
    grip, owner = leases.acquire(keys), Owner()
    owner.grip, owner.itself = grip, owner
    del grip, owner
    gc.collect()
    assert leases.used == 0


def test_a_lease_table_has_a_limit(index, leases):
    keys = random_keys(1100)
    put(index, keys)
    grip = leases.acquire(keys)
    assert grip.stop == STOP_FULL and grip.num_blocks == 1024
    assert leases.acquire(keys[:1]).stop == STOP_FULL
    grip.release()
    assert leases.acquire(keys[:1]).stop == STOP_END


def test_leases_in_a_gap_of_the_chain_stop_at_the_miss(index, leases):
    keys = random_keys(10)
    put(index, keys)
    asked = keys.copy()
    asked[4] ^= 1
    grip = leases.acquire(asked)
    assert (grip.num_blocks, grip.stop) == (4, STOP_MISS)


def test_written_blocks_stay_known_after_eviction(index, leases):
    keys = random_keys(5)
    written = write_back(index, put(index, keys))
    assert len(written) == 5
    index.evict_near(2 * SLOT, True, 0)
    assert index.match(keys) == (5, 3, 3)
    near, far, checksums, _, _ = index.describe(index.find(keys))
    assert near[3:].tolist() == [core.NONE] * 2 and far.tolist() == [0, 1, 2, 3, 4]
    assert checksums.tolist() == [7, 8, 9, 10, 11]
    grip = leases.acquire(keys)
    assert (grip.num_blocks, grip.num_near) == (5, 3)


def test_keep_unwritten_stops_at_the_first_block_without_a_far_copy(index):
    write_back(index, put(index, random_keys(3, seed=1)))
    put(index, random_keys(3, seed=2))
    freed, _ = index.evict_near(100 * SLOT, True, 0)
    assert freed == 3 * SLOT
    assert index.evict_near(100 * SLOT, False, 0)[0] == 3 * SLOT


def test_write_back_waits_for_the_parent(index):
    ids = put(index, random_keys(4))
    assert index.writeback_mark(ids[2:], index.words(ids[2:])).tolist() == [0, 0]
    assert index.writeback_mark(ids, index.words(ids)).tolist() == [1, 1, 1, 1]
    # The first write failed: its children's copies do not count either.
    written = np.array([0, 1, 1, 1], dtype=np.uint8)
    kept = index.writeback_unmark(ids, np.arange(4, dtype=np.uint32), np.zeros(4, np.uint64), written)
    assert not kept.any()


def test_blocks_being_written_back_are_not_evicted(index):
    ids = put(index, random_keys(4))
    index.writeback_mark(ids, index.words(ids))
    assert index.evict_near(100 * SLOT, False, 0)[0] == 0
    index.remove(ids, core.REMOVED, 0)
    assert index.reap() == []
    index.writeback_unmark(ids, np.arange(4, dtype=np.uint32), np.zeros(4, np.uint64), np.ones(4, np.uint8))
    assert len(index.reap()[0][2]) == 4


def test_promotion_brings_a_block_near(index, leases):
    keys = random_keys(4)
    write_back(index, put(index, keys))
    index.evict_near(4 * SLOT, True, 0)
    grip = leases.acquire(keys)
    assert (grip.num_blocks, grip.num_near) == (4, 0)
    ids = grip.ids()
    assert index.promote_mark(ids).all() and not index.promote_mark(ids).any()
    kept = index.promote_unmark(ids, np.arange(50, 54, dtype=np.uint32), np.array([1, 1, 0, 1], np.uint8))
    assert kept.tolist() == [1, 1, 0, 1]
    assert index.match(keys) == (4, 2, 3)
    assert grip.near_places().tolist() == [50, 51]


def test_far_eviction_takes_leaves_only_and_spares_leases(index, leases):
    keys, other = random_keys(4, seed=1), random_keys(4, seed=2)
    write_back(index, put(index, keys))
    write_back(index, put(index, other), first_place=4)
    index.evict_near(8 * SLOT, True, 0)
    grip = leases.acquire(keys[:2])
    freed, ((tier, ns, places),) = index.evict_far(3 * SLOT, 0)
    assert (freed, tier, ns, places.tolist()) == (3 * SLOT, 1, 1, [3, 2, 7])
    freed, _ = index.evict_far(100 * SLOT, 0)
    assert freed == 3 * SLOT and index.match(keys)[0] == 2
    grip.release()


def test_removal_takes_everything_that_extends_a_block(index):
    trunk = random_keys(3)
    left, right = np.vstack([trunk, random_keys(2, seed=1)]), np.vstack([trunk, random_keys(2, seed=2)])
    put(index, left)
    put(index, right)
    assert index.remove(index.find(trunk[2:3]), core.REMOVED, 3) == 5
    assert index.match(left)[0] == 2 and index.match(right)[0] == 2
    assert index.ghosts(left[4:])[0] == (core.REMOVED, 3, None)


def test_removed_blocks_keep_their_memory_until_the_last_lease(index, leases):
    keys = random_keys(3)
    put(index, keys)
    grip = leases.acquire(keys)
    assert index.clear(1, 0) == 3
    assert index.match(keys)[0] == 0 and index.reap() == [] and index.num_removed == 3
    grip.release()
    assert len(index.reap()[0][2]) == 3 and index.num_removed == 0


def test_adopted_blocks_need_their_parents_in_any_order(index):
    keys = random_keys(4)
    parents = np.vstack([np.zeros((1, 32), np.uint8), keys[:3]])
    columns = np.ones(4, np.uint32), np.arange(4, dtype=np.uint32), np.zeros(4, np.uint64)
    order = [3, 0, 2, 1]
    ids = index.adopt(keys[order], parents[order], *columns)
    assert (ids != core.NONE).all()
    assert index.match(keys) == (4, 0, 0)
    other = random_keys(3, seed=1)
    ids = index.adopt(other[1:], other[:2], *(column[:2] for column in columns))
    assert (ids == core.NONE).all() and index.match(other[1:])[0] == 0 and index.check() == 0


def test_carried_blocks_keep_their_old_copy_until_the_end(index):
    keys = random_keys(2)
    ids = write_back(index, put(index, keys))
    index.evict_near(2 * SLOT, True, 0)
    assert walk.in_range(index, 1, 0, 2).tolist() == ids.tolist()
    assert index.carry_mark(ids).all()
    assert index.evict_far(100 * SLOT, 0)[0] == 0
    index.carry_unmark(ids, np.array([70, 71], np.uint32), np.array([1, 0], np.uint8))
    assert index.describe(ids)[1].tolist() == [70, 1]


@pytest.mark.parametrize(
    "keys",
    [
        np.zeros((2, 31), np.uint8),
        np.zeros((2, 32), np.uint16),
        np.zeros((2, 64), np.uint8)[:, ::2],
        b"x" * 33,
        None,
        [b"x" * 32],
        np.zeros((2, 2, 32), np.uint8),
    ],
)
def test_malformed_keys_are_named(index, leases, keys):
    for call in (index.match, index.find, leases.acquire, lambda bad: index.plan(bad, 0)):
        with pytest.raises(InvalidRequest, match="keys must be"):
            call(keys)


@pytest.mark.parametrize("entries_max", [0, -1, 2**31 + 1])
def test_sizes_out_of_range_are_refused(entries_max):
    with pytest.raises(InvalidRequest, match="entries_max"):
        Index(entries_max)


def test_ids_that_were_never_handed_out_are_refused(index):
    with pytest.raises(InvalidRequest, match="never handed out"):
        index.words(np.array([17], np.uint32))


def test_an_index_can_be_filled_to_the_last_entry():
    index = Index(500)
    index.set_namespace(1, SLOT, 1)
    for seed in range(50):
        assert len(put(index, random_keys(10, seed))) == 10
    _, ids = reserve(index, random_keys(1, 99))
    assert ids.tolist() == [core.NONE] and index.num_free == 0
    index.evict_near(20 * SLOT, False, 0)
    assert len(put(index, random_keys(10, 100))) == 10
    assert index.check() == 0


def test_metadata_stays_under_100_bytes_per_block():
    assert Index(1 << 20).nbytes_per_entry <= 100


def test_a_key_that_comes_twice_is_reserved_once(index):
    keys = random_keys(3)[[0, 0, 1, 2, 1]]
    wanted, plan, ids = index.plan(keys, 0)
    assert wanted == 5
    assert index.begin(keys, 0, 1, plan, ids, np.arange(5, dtype=np.uint32)) == 3
    assert plan.tolist() == [core.WANTED, core.BUSY, core.WANTED, core.WANTED, core.BUSY]
    assert ids[1] == ids[0] and ids[4] == ids[2]
    index.commit(ids[plan == core.WANTED], 0)
    assert index.counts()["entries"] == 3 and index.match(keys)[0] == 5


def test_held_ids_keep_their_places_whatever_becomes_of_them(index, leases):
    _, ids = reserve(index, random_keys(70))
    grip = leases.hold(ids)
    assert (grip.ids() == ids).all() and leases.used == 128
    index.abandon(ids, 0)
    assert index.match(random_keys(70))[0] == 0 and index.reap() == []
    grip.release()
    assert len(index.reap()[0][2]) == 70 and leases.used == 0


def test_ids_that_do_not_fit_into_the_table_are_not_held_at_all(index):
    leases = LeaseTable(index, 64)
    _, ids = reserve(index, random_keys(65))
    with pytest.raises(LimitExceeded, match="leases_max=64"):
        leases.hold(ids)
    assert leases.used == 0
    leases.hold(ids[:64]).release()
    index.abandon(ids, 0)
    index.reap()


def test_blocks_of_another_namespace_are_not_found(index, leases):
    keys = random_keys(3)
    put(index, keys)
    assert index.match(keys, 1) == (3, 3, 3) and index.match(keys, 2) == (0, 0, 0)
    assert leases.acquire(keys, ns=1).num_blocks == 3
    assert leases.acquire(keys, ns=2).num_blocks == 0 and leases.used == 0
    assert (index.find(keys, 2) == core.NONE).all() and (index.find(keys, 1) != core.NONE).all()
    with pytest.raises(InvalidRequest, match="another namespace"):
        index.plan(keys, 0, 2)


def test_what_was_abandoned_says_when(index):
    keys = random_keys(2)
    _, ids = reserve(index, keys)
    index.abandon(ids, 0, 1234)
    assert index.ghosts(keys) == [(core.ABANDONED, 1234, None)] * 2
    index.reap()


def test_one_drain_of_many_touches_leaves_them_in_order(index, leases):
    """More chains than are fetched side by side, of different lengths, sharing blocks, one of them touched twice."""
    chains = [random_keys(1 + number % 5, seed=number) for number in range(80)]
    chains += [np.concatenate([chain[:2], random_keys(2, seed=1000 + number)]) for number, chain in enumerate(chains)]
    for number, chain in enumerate(chains):
        put(index, chain, places=np.arange(number * 8, number * 8 + 8, dtype=np.uint32))
    index.drain()
    order = np.random.default_rng(3).permutation(len(chains))
    order = np.concatenate([order, order[:1]])
    for number in order:
        leases.acquire(chains[number]).release()
    assert leases.touches == len(order)
    index.drain()
    assert leases.touches == 0
    last = {}
    for turn, number in enumerate(order):
        for depth, key in enumerate(chains[number]):
            last[key.tobytes()] = (turn, -depth)
    expected = sorted(last, key=last.__getitem__)
    while expected:
        gone = expected.pop(0)
        assert index.evict_near(SLOT, False, 0)[0] == SLOT
        assert index.match(np.frombuffer(gone, np.uint8).reshape(1, 32)) == (0, 0, 0)
        assert index.counts()["near"] == len(expected)


def test_what_hangs_on_an_abandoned_reservation_goes_however_the_reservations_lie(index):
    """A block of each of five writers, each on top of the one before; one that was reserved first leaves the order of
    reservations mixed."""
    other, keys = random_keys(1, seed=1), random_keys(4)
    _, dummy = reserve(index, other, places=np.array([9], dtype=np.uint32))
    ids = []
    for num_keys in range(1, 4):
        _, found = reserve(index, keys[:num_keys], places=np.array([num_keys], dtype=np.uint32))
        ids.append(int(found[-1]))
    index.abandon(dummy, 0)  # the last reservation takes its position
    _, found = reserve(index, keys, places=np.array([4], dtype=np.uint32))
    ids.append(int(found[-1]))
    index.abandon(np.array(ids[:1], dtype=np.uint32), 0)
    assert index.check() == 0
    _, committed = index.commit(np.array(ids[1:], dtype=np.uint32), 0)
    assert not committed.any()
    index.reap()
    assert index.check() == 0 and index.counts()["entries"] == 0


def test_a_plan_that_came_too_late_reserves_nothing_on_a_block_that_left(index):
    keys = random_keys(3)
    put(index, keys[:2])
    wanted, plan, ids = index.plan(keys, 0)
    assert wanted == 1
    index.evict_near(2 * SLOT, False, 0)
    put(index, random_keys(2, seed=5))  # other blocks have their ids now
    used = index.begin(keys, 0, 1, plan, ids, np.array([50], dtype=np.uint32))
    assert used == 0 and ids[2] == core.NONE


def test_blocks_committed_together_that_are_no_chain_are_all_evictable(index):
    keys = random_keys(3)
    put(index, keys[1:2])  # a first block, for the index
    put(index, keys)  # ... but here another comes before it
    assert index.check() == 0
    assert index.evict_near(3 * SLOT, False, 0)[0] == 3 * SLOT
