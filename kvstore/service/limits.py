"""What one call and one client may take; the values that GetCapabilities advertises."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from kvstore.errors import LimitExceeded

KEYS_MAX = 65_536
KEY_NBYTES = 32
PIECE_NBYTES_MAX = 2 << 20
MESSAGE_NBYTES_MAX = KEYS_MAX * KEY_NBYTES + (64 << 10)  # every key and some; a piece has room in it too
CALL_NBYTES_MAX = 1 << 30
HANDLES_MAX = 1024  # of one Watch
CONTROL_THREADS = 4  # left for calls that hold nothing, whatever the others do


@dataclass(frozen=True, slots=True)
class Limits:
    """As the messages of the protocol name them; `threads` serve, all but a few of them may be held for long."""

    threads: int
    client_nbytes_max: int
    call_ms_max: int
    watches_max: int = 0
    keys_max: int = KEYS_MAX
    piece_nbytes_max: int = PIECE_NBYTES_MAX
    call_nbytes_max: int = CALL_NBYTES_MAX

    @property
    def long_calls_max(self) -> int:
        """Calls that hold blocks or wait, at a time."""
        return max(1, self.threads - CONTROL_THREADS)

    def watches_of(self, tenant: str) -> int:
        """Watches of one tenant at a time; those of the operator are not limited further."""
        return (self.watches_max + 1) // 2 if tenant else self.watches_max


class Held:
    """What the calls under way hold. Safe to use from several threads."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._lock = threading.Lock()
        self._num_calls = 0
        self._nbytes: Counter[str] = Counter()
        self._watches: Counter[str] = Counter()  # by tenant
        self._totals = Counter({"calls": 0, "refused": 0, "sent_nbytes": 0, "received_nbytes": 0})

    @contextmanager
    def long_call(self) -> Iterator[None]:
        """One of the threads, for as long as it takes. Errors: LimitExceeded when only those for others are left."""
        with self._lock:
            if self._num_calls >= self._limits.long_calls_max:
                raise LimitExceeded(
                    f"{self._num_calls} reads, writes and waits are under way; serve.threads limits them"
                )
            self._num_calls += 1
        try:
            yield
        finally:
            with self._lock:
                self._num_calls -= 1

    @contextmanager
    def watch(self, tenant: str) -> Iterator[None]:
        """One of the threads that there are for it, for as long as somebody watches. Errors: LimitExceeded."""
        most = self._limits.watches_of(tenant)
        with self._lock:
            if self._watches.total() >= self._limits.watches_max or self._watches[tenant] >= most:
                raise LimitExceeded(f"{self._watches.total()} watches are under way; serve.watches_max limits them")
            self._watches[tenant] += 1
        try:
            yield
        finally:
            with self._lock:
                self._watches[tenant] -= 1
                if not self._watches[tenant]:
                    del self._watches[tenant]

    @contextmanager
    def blocks(self, client: str, nbytes: int) -> Iterator[None]:
        """So many bytes of blocks for one client. Errors: LimitExceeded over client_nbytes_max; a call alone may."""
        with self._lock:
            held = self._nbytes[client]
            if held and held + nbytes > self._limits.client_nbytes_max:
                raise LimitExceeded(
                    f"{nbytes} bytes more than the {held} that this client holds are over "
                    f"serve.client_nbytes_max={self._limits.client_nbytes_max}"
                )
            self._nbytes[client] += nbytes
        try:
            yield
        finally:
            with self._lock:
                self._nbytes[client] -= nbytes
                if not self._nbytes[client]:
                    del self._nbytes[client]

    def count(self, name: str, amount: int = 1) -> None:
        """Add to one of the totals that `counts` shows."""
        with self._lock:
            self._totals[name] += amount

    def counts(self) -> dict[str, int]:
        """Totals since the start; long calls under way, bytes of blocks they hold, and clients that hold any."""
        with self._lock:
            return dict(self._totals) | {
                "long_calls": self._num_calls,
                "held_nbytes": self._nbytes.total(),
                "clients_holding": len(self._nbytes),
                "watches": self._watches.total(),
            }
