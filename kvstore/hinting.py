"""Hinting: what callers know and want of a namespace's blocks."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from kvstore.arrays import Keys
from kvstore.checks import checked_keys, computed_tokens
from kvstore.errors import InvalidRequest
from kvstore.hint import Hint, checked_hint, seconds_us
from kvstore.joining import Step

if TYPE_CHECKING:
    from kvstore.recording import Note
    from kvstore.store import BlockStore


class Hinting:
    """The verbs `hint`, `pin`, `unpin` and `computed` of Namespace."""

    _store: BlockStore
    _lock: threading.RLock
    _note: Note | None
    number: int

    def hint(self, keys: Keys, hint: Hint) -> int:
        """Say what is known of the request behind the stored prefix of `keys`; how many blocks that is. It is no use of
        them. Errors: InvalidRequest."""
        self._store.check_open()
        keys = checked_keys(keys)
        if checked_hint(hint) is None:
            raise InvalidRequest("hint=None says nothing; give a kvstore.Hint")
        if self._note is not None:
            self._note(Step.TELL, keys, hint)
        return self._store.hints.known(self.number, keys, hint)

    def pin(self, keys: Keys, ttl_s: float) -> int:
        """Keep the stored prefix of `keys` from eviction and expiry for so long, or until `unpin`; how many blocks that
        is. By the same keys again it begins anew. Removal takes pinned blocks all the same; a restart forgets pins.
        Errors: InvalidRequest; LimitExceeded over policy.pins_nbytes_max or index.leases_max, and nothing has changed.
        """
        self._store.check_open()
        keys, ttl_us = checked_keys(keys), seconds_us("ttl_s", ttl_s)
        with self._lock:
            return self._store.hints.pins.pin(self.number, keys, ttl_us)

    def unpin(self, keys: Keys) -> int:
        """End the pins that were asked for by these keys, or a beginning of them; how many blocks no pin is on now."""
        self._store.check_open()
        keys = checked_keys(keys)
        with self._lock:
            return self._store.hints.pins.unpin(self.number, keys)

    def computed(self, num_tokens: int, elapsed_us: float) -> None:
        """So many tokens of prompts of this namespace were computed in this time, just now. By the recent past it is
        judged whether far blocks are worth loading, where neither call nor configuration say how fast. Errors:
        InvalidRequest."""
        num_tokens, elapsed_us = computed_tokens(num_tokens, elapsed_us)
        with self._lock:
            self._store.check_open()
            self._store.prefill.computed(self.number, num_tokens, elapsed_us)
