"""A store whose eviction policy lives in a trace's time: however fast that is played, it decides the same."""

from __future__ import annotations

from kvstore.config import Config
from kvstore.embedded import open_at
from kvstore.store import BlockStore


def open_timed(config: Config) -> BlockStore:
    """As kvstore.open; the eviction policy's time stands at 0 until `set_time`. Everything else goes by the clock."""
    return open_at(config, lambda: 0)


def set_time(store: BlockStore, now_ms: int) -> None:
    """From now on the eviction policy's time is this, until the next call."""
    with store.lock:
        store.mover.policy_ms = lambda: now_ms
        store.mover.tend()
