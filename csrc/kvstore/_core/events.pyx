"""The events of an index, what became stored and what is stored no more: thin wrappers over events.h.

All of it is the writer's: each call takes the index's own lock, which threads without an interpreter write under.
"""

import errno as _errno

import numpy as np

from kvstore._core.index cimport Index
from kvstore._core.records cimport *

from kvstore.errors import Unavailable

STORED, REMOVED, CLEARED = KV_EVENT_STORED, KV_EVENT_REMOVED, KV_EVENT_CLEARED
EVENT = np.dtype([("key", "V32"), ("parent", "V32"), ("ns", "<u2"), ("kind", "u1"), ("reason", "u1")])
assert EVENT.itemsize == sizeof(kv_event)


def keep(Index index, uint32_t num_max):
    """From now on keep the latest `num_max` events of this index; 0: none. Errors: Unavailable without the memory."""
    cdef int code = kv_events_create(&index._index.events, num_max)
    if code < 0:
        raise Unavailable(f"no memory for {num_max} events: {_errno.errorcode.get(-code, code)}")


def read(Index index, uint64_t since, uint32_t most):
    """The events behind number `since` in their order, EVENT (n,): at most `most`, and none if `since` is not within
    `bounds`."""
    cdef uint64_t num_new = index._index.events.newest - since if index._index.events.newest > since else 0
    out = np.empty(min(num_new, most), dtype=EVENT)
    cdef const uint8_t[::1] rows
    cdef uint32_t num = 0
    if len(out):
        rows = out.view(np.uint8)
        kv_index_lock(&index._index)
        num = kv_events_read(&index._index.events, since, <uint32_t>rows.shape[0] // sizeof(kv_event),
                             <kv_event *>&rows[0])
        pthread_mutex_unlock(&index._index.lock)
    return out[:num]


def bounds(Index index):
    """(number behind which everything is kept, number of the latest event); 0 before the first."""
    cdef uint64_t oldest, newest
    kv_index_lock(&index._index)
    oldest, newest = kv_events_oldest(&index._index.events), index._index.events.newest
    pthread_mutex_unlock(&index._index.lock)
    return oldest, newest


def capacity(Index index):
    """How many events are kept; 0: none."""
    return index._index.events.capacity


def newest(Index index):
    """Number of the latest event."""
    return index._index.events.newest
