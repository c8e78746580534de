"""What random calls or reading once found, as the shortest calls that show it."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest
from stepped_store import LEASES_MAX, TTL_MS, StepClock, SteppedStore

from kvstore.errors import LeaseExpired, LimitExceeded, Unavailable
from kvstore.namespace import NamespaceSpec
from kvstore.tiers.base import Outcome

NBYTES = 512 << 10  # eight fill the memory
SPEC = NamespaceSpec(model="a", block_nbytes=NBYTES, block_tokens=1)


@pytest.fixture
def make(tmp_path):
    made = []

    def one(kind: str) -> tuple[SteppedStore, Any]:
        store = SteppedStore.make(kind, tmp_path, StepClock())
        made.append(store)
        return store, store.namespace(SPEC)

    yield one
    for store in made:
        store.close(0)


def chain(space: Any, *tokens: int) -> Any:
    return space.keys(np.array(tokens, dtype=np.uint32))


def put(space: Any, *tokens: int) -> Any:
    keys = chain(space, *tokens)
    blocks = np.repeat(np.array(tokens, dtype=np.uint8)[:, None], NBYTES, axis=1)
    assert not space.put(keys, blocks).rejected
    return keys


class Interrupted:
    """A lock before which, once, something else happens."""

    def __init__(self, lock: Any, action: Any) -> None:
        self._lock, self._action = lock, action

    def __enter__(self) -> None:
        action, self._action = self._action, None
        if action is not None:
            action()
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def test_a_prefetch_ends_when_the_store_is_closed_before_it(make):
    store, space = make("memory")
    keys = put(space, 1)
    assert store.flush()
    put(space, *range(10, 18))
    assert space.match(keys).by_tier == {"memory": 1}
    future = space.prefetch(keys)
    assert not future.done()
    store.close(0)
    with pytest.raises(Unavailable):
        future.result(0)


def test_a_block_that_was_leased_at_its_removal_does_not_come_back_at_restart(make):
    store, space = make("disk")
    keys = put(space, 1)
    lease = space.lease(keys)
    assert store.flush()
    space.remove(keys)
    lease.release()
    store.step()  # its places are freed only now
    store.close()
    _, space = make("disk")
    assert space.match(keys).num_blocks == 0


def test_a_block_that_was_evicted_before_its_removal_does_not_come_back_at_restart(make):
    store, space = make("disk")
    keys = put(space, 1)
    with space.lease(put(space, 2)):  # lies beside it, so that their segment is not recycled at once
        for token in range(10, 30):
            put(space, token)
            store.step()
            if not space.match(keys):
                break
            assert store.flush()
    assert space.explain(keys)[0].startswith("evicted")
    assert space.remove(keys) == 0
    store.close(0)
    _, space = make("disk")
    assert space.match(keys).num_blocks == 0


def test_a_block_that_was_leased_until_just_before_the_end_does_not_come_back(make):
    store, space = make("disk")
    keys = put(space, 1)
    assert store.flush()
    with space.lease(keys):
        space.remove(keys)
    store.close(0)
    _, space = make("disk")
    assert space.match(keys).num_blocks == 0


def test_a_view_that_outlives_the_commit_protects_blocks_that_are_not_visible(make):
    """One of two shards is committed, and the block removed while an array on its bytes is left."""
    store, _ = make("none")
    space = store.namespace(NamespaceSpec(model="b", block_nbytes=NBYTES, block_tokens=1, shards=2))
    room = space.reserve(chain(space, 1))
    array = np.frombuffer(room.views[0], np.uint8)
    array[:] = 77
    assert room.commit().stored == 1
    space.clear()
    keys = chain(space, *range(10, 16))
    for shard in (0, 1):
        space.put(keys, np.full((6, NBYTES // 2), 1, np.uint8), shard=shard)
    for shard in (0, 1):
        space.put(chain(space, 20, 21), np.full((2, NBYTES // 2), 2, np.uint8), shard=shard)
    assert (array == 77).all()
    del array, room
    store.step()
    space.clear()
    assert store.stats()["tiers"]["host"]["used_nbytes"] == store.stats()["lookups"]["leases_in_use"] == 0


def test_a_view_without_a_lease_to_protect_it_undoes_the_commit(make):
    store, space = make("none")
    keys = put(space, 1)
    grips = [space._leases.acquire(keys) for _ in range(LEASES_MAX // 64 - 1)]
    room = space.reserve(chain(space, 2))
    array = np.frombuffer(room.views[0], np.uint8)
    grips.append(space._leases.acquire(keys))
    with pytest.raises(LimitExceeded):
        room.commit()
    for grip in grips:
        grip.release()
    assert store.stats()["index"]["writing"] == 1  # until nobody sees it any more
    del array
    space.settle()
    assert store.stats()["index"]["writing"] == 0 and space.match(chain(space, 2)).num_blocks == 0


@pytest.mark.parametrize("fails_at_once", [True, False])
def test_a_block_is_written_back_after_its_parent_failed(make, fails_at_once):
    store, space = make("memory")
    keys = put(space, 1, 2, 3, 4, 5)
    store.step()
    far = store.far
    assert far is not None and len(far.held) == 2  # two batches of two blocks, the fifth waits
    if not fails_at_once:
        far.let_go(1)
    far.let_go(0, (0, Outcome.IO_ERROR))
    store.step()
    assert store.flush()
    assert store.stats()["index"]["far"] == 5 == space.match(keys).num_blocks


def test_what_is_committed_while_a_reservation_waits_for_the_lock_is_not_evicted_for_it(make):
    store, space = make("none")
    room = space.reserve(chain(space, 1))
    room.fill([np.full(NBYTES, 1, np.uint8)])

    def meanwhile() -> None:
        """Another thread commits the first block, and is followed by others that fill the memory."""
        room.commit()
        for first in range(10, 17):
            put(space, first)

    store.lock = Interrupted(store.lock, meanwhile)
    longer = space.reserve(chain(space, 1, 2, 3))
    store.check()
    assert longer.present == 1 and longer.wanted.tolist() == [1, 2]
    longer.release()
    store.check()


def test_a_removal_takes_no_block_that_got_the_number_of_another(make):
    store, space = make("none")
    keys = put(space, 1)

    def meanwhile() -> None:
        """Another thread removes the block first; the next one stored gets its number."""
        space.remove(keys)
        put(space, 2)

    space._lock = Interrupted(store.lock, meanwhile)
    assert space.remove(keys) == 0
    assert space.match(chain(space, 2)).num_blocks == 1


@pytest.mark.parametrize("what", ["lease", "room"])
def test_blocks_that_are_held_in_a_cycle_are_let_go_by_the_collector(make, what):
    store, space = make("none")
    keys = put(space, 1)
    for with_views in (False, True):
        held = space.lease(keys) if what == "lease" else space.reserve(chain(space, 1, 2))
        cycle = [held, held.views if with_views else None]
        cycle.append(cycle)
        del held, cycle
        gc.collect()
        store.check()
        stats = store.stats()
        assert stats["lookups"]["leases_in_use"] == stats["index"]["writing"] == 0


@pytest.mark.parametrize("how", ["release", "drop", "expire", "commit"])
def test_the_end_of_a_reservation_gives_back_what_a_removed_block_had_far(make, how):
    """The core lets go of the removed block then, without the store; the tier is to hear of it at once."""
    store, space = make("memory")
    other = store.namespace(NamespaceSpec(model="c", block_nbytes=60_000, block_tokens=1))
    keys, mine = chain(other, 1), chain(space, 1)
    kept = other.reserve(keys)
    view = np.frombuffer(kept.views[0], np.uint8)
    kept.commit()
    room = space.reserve(mine)
    assert store.flush() and store.stats()["index"]["far_nbytes"] == 61440
    other.remove(keys)
    if how == "commit":
        space.remove(mine)
    del view, kept
    gc.collect()
    if how == "release":
        room.release()
    elif how == "commit":
        with pytest.raises(LeaseExpired):
            room.commit()
    else:
        store.clock.us += (TTL_MS + 1) * 1000 * (how == "expire")
        if how == "drop":
            del room
            gc.collect()
        space.reserve(chain(space, 2)).release()
    stats = store.stats()
    assert stats["tiers"]["memory"]["used_nbytes"] == stats["index"]["far_nbytes"] == 0
