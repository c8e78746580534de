"""Hints: what callers say of their requests reaches the eviction policy, the times to live and the pins."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kvstore._core import hint as core
from kvstore.arrays import Keys
from kvstore.expiry import Expiry
from kvstore.hint import Hint, checked_hint
from kvstore.pins import Pins

if TYPE_CHECKING:
    from kvstore._core.lease import Grip
    from kvstore.store import BlockStore


class Hints:
    """Of one store. Methods take its lock themselves, but for `step` and `stats`."""

    def __init__(self, store: BlockStore) -> None:
        self._store, self._index = store, store.index
        limits = store.mover.limits
        self._expiry = Expiry(store.index, store.clock, limits.ttl_blocks_max)
        self.pins = Pins(store.mover)

    def held(self, ns: int, grip: Grip, hint: Hint) -> None:
        """About the chain that these leases are on. Errors: InvalidRequest for what is no Hint; they end then."""
        checked_hint(hint)
        ids = grip.ids()
        if len(ids):
            with self._store.lock:
                self._give(ns, int(ids[-1]), hint)

    def known(self, ns: int, keys: Keys, hint: Hint) -> int:
        """About the stored prefix of a chain; how long that is."""
        with self._store.lock:
            num_blocks: int = self._index.match(keys, ns)[0]
            for deepest in self._index.find(keys[max(0, num_blocks - 1) : num_blocks], ns).tolist():
                self._give(ns, deepest, hint)  # NONE: it has gone since
        return num_blocks

    def _give(self, ns: int, deepest: int, hint: Hint) -> None:
        core.tell(self._index, deepest, hint.numbers)
        if (ttl_us := hint.ttl_us) is not None:
            self._expiry.mark(ns, deepest, ttl_us)

    def step(self) -> None:
        """End what is over. Caller holds the lock."""
        for ns, keys in self._expiry.step(self.pins.ids):
            self._store.attachment.removals.note(ns, keys)
        self.pins.step()

    def stats(self) -> dict[str, Any]:
        """Numbers of the section `policy`. Caller holds the lock."""
        expiry = self._expiry
        return {
            "ttl_chains": expiry.num_chains,
            "ttl_blocks": expiry.num_blocks,
            "ttl_ignored": expiry.num_ignored,
            "expired_blocks": expiry.num_expired,
            **self.pins.stats(),
        }
