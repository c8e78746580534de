"""When what is stored is safe: written to a far tier that outlives the process, and named there."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from kvstore._core import index as core
from kvstore.arrays import Keys
from kvstore.checks import duration_us
from kvstore.tiers.base import DurableTier

if TYPE_CHECKING:
    from kvstore.store import BlockStore

log = logging.getLogger("kvstore")

DURABLE_PUT_US = 30_000_000  # what a durable put without a deadline waits for
ROUNDS_MAX = 3


def wait_us(deadline_ms: float | None) -> int:
    """How long a durable put may take. Errors: InvalidRequest."""
    return DURABLE_PUT_US if deadline_ms is None else duration_us("deadline_ms", deadline_ms)


def flush(store: BlockStore, deadline_us: int | None) -> bool:
    """As BlockStore.flush."""
    if store.far is None:
        return not store.attachment.is_detached  # a store of memory only has nothing to write
    return store.mover.flush(deadline_us) and commit(store, deadline_us)


def make_durable(store: BlockStore, keys: Keys, ns: int, deadline_us: int) -> bool:
    """Whether all blocks of `keys` are safe before the deadline. What was not queued for its write-back, because the
    queue was full, is queued now."""
    if not isinstance(store.far, DurableTier) or not store.mover.flush(deadline_us):
        return False
    for _ in range(ROUNDS_MAX):
        with store.lock:
            store.check_open()
            ids = store.index.find(keys, ns)
            if (ids == core.NONE).any() or ((store.index.words(ids) & 0xFF) != core.VALID).any():
                return False  # evicted or removed meanwhile, or other ranks have not written their parts
            _, far_places, *_ = store.index.describe(ids)
            missing = ids[far_places == core.NONE]
            if len(missing):
                store.mover.enqueue(missing, ns)
        if not len(missing):  # what has a place by now is named by the next commit
            return commit(store, deadline_us)
        if not store.mover.flush(deadline_us):
            return False
    return False


def commit(store: BlockStore, deadline_us: int | None) -> bool:
    """Whether the far tier has made durable what it was given and told by now, before the deadline."""
    removals = store.attachment.removals
    with store.lock:
        far = store.far
        told = {} if store.index.num_removed or store.mover.put.has_freed_far else removals.unconfirmed
    if far is None:  # detached meanwhile
        return False
    durable = far.flush()
    if not store.clock.wait(durable, None if deadline_us is None else deadline_us - store.clock.now_us()):
        return False
    error = durable.exception()
    if error is not None:
        log.warning("flush: %s", error)
        return False
    with store.lock:
        removals.confirm(told)
    return True
