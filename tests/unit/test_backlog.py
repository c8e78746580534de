"""The queue of blocks that wait for their write-back, and a flush that waits for a part of it."""

import numpy as np
from store_helpers import BLOCK, FakeClock, ObedientTier, make_spec, make_store, put_chain, settle

from kvstore.backlog import Backlog, Dirty


def numbers(*values):
    return np.array(values, np.uint32), np.array(values, np.uint64)


def test_blocks_leave_in_the_order_in_which_they_came_cut_and_joined_within_a_namespace():
    backlog = Backlog(100)
    assert backlog.oldest is None and backlog.next_ns is None and not backlog
    for ns, values in ((1, (1, 2)), (1, (3, 4)), (2, (5,)), (1, (6,))):
        assert backlog.append(*numbers(*values), ns)
    assert (backlog.num_blocks, backlog.oldest, backlog.newest, backlog.next_ns) == (6, 1, 4, 1)
    taken = [backlog.take(3) for _ in range(4)]
    assert [(dirty.ids.tolist(), dirty.words.tolist(), dirty.ns, dirty.ticket) for dirty in taken] == [
        ([1, 2, 3], [1, 2, 3], 1, 1),
        ([4], [4], 1, 2),
        ([5], [5], 2, 3),
        ([6], [6], 1, 4),
    ]
    assert backlog.num_blocks == 0 and not backlog


def test_over_the_limit_nothing_is_queued():
    backlog = Backlog(2)
    assert backlog.append(*numbers(1), 1)
    assert not backlog.append(*numbers(2, 3), 1)
    assert backlog.num_blocks == 1 and backlog.newest == 1


def test_what_failed_holds_up_all_others_and_goes_first():
    backlog = Backlog(100)
    for value in (1, 2, 3):
        backlog.append(*numbers(value), value)
    first, second = backlog.take(1), backlog.take(1)
    backlog.fail(first)
    assert backlog.next_ns is None and backlog.oldest == 1
    backlog.fail(second)
    backlog.retry()
    assert [backlog.take(1).ticket for _ in range(3)] == [1, 2, 3]
    backlog.put_back(Dirty(*numbers(7), 1, 2))
    assert (backlog.oldest, backlog.num_blocks) == (2, 1)


class BusyClock(FakeClock):
    """Whenever somebody waits, others put one more block."""

    def __init__(self):
        super().__init__()
        self.put = None

    def wait(self, future, timeout_us):
        self.num_waits += 1
        assert self.num_waits < 100, "this waits for ever"
        self.us += 1_000
        self.put()
        return future.done()


def test_a_flush_does_not_wait_for_what_is_put_after_it_began():
    far, clock = ObedientTier(1024 * BLOCK), BusyClock()
    store = make_store(64, far, clock=clock)
    ns = store.namespace(make_spec())
    prompt = 100

    def put_and_let_go():
        nonlocal prompt
        prompt += 1
        far.let_go()
        far.holding = True  # one batch under way is done, and what is put now stays under way
        with store.lock:
            store.mover.step()
        put_chain(ns, 1, prompt)

    clock.put = put_and_let_go
    far.holding = True
    keys = put_chain(ns, 20)
    assert store.flush()
    assert store.stats()["mover"]["queued_blocks"] + store.stats()["mover"]["writes_under_way"] > 0
    ids = store.index.find(keys, ns.number)
    assert (store.index.describe(ids)[1] != 2**32 - 1).all()
    far.let_go()
    settle(store)
    store.check()
    store.close(0)
