"""What one call and one client may take; the values that GetCapabilities advertises."""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from kvstore.errors import LimitExceeded

KEYS_MAX = 65_536
KEY_NBYTES = 32
PIECE_NBYTES_MAX = 2 << 20
MESSAGE_NBYTES_MAX = KEYS_MAX * KEY_NBYTES + (64 << 10)  # every key and some; a piece has room in it too
CALL_NBYTES_MAX = 1 << 30
HANDLES_MAX = 1024  # of one Watch
CONTROL_THREADS = 4  # left for calls that hold nothing, whatever the others do
CLIENTS_MAX = 256  # that hold nothing and are remembered for the statistics


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


@dataclass(slots=True)
class Client:
    """One client as the statistics show it; their names are those of the fields."""

    tenant: str = ""
    calls: int = 0
    long_calls: int = 0
    held_nbytes: int = 0
    leased_blocks: int = 0
    reserved_blocks: int = 0

    @property
    def holds(self) -> bool:
        """Has it calls under way that hold something?"""
        return self.long_calls > 0 or self.held_nbytes > 0

    def hold(self, nbytes: int, leased: int, reserved: int) -> None:
        """So much more, or less."""
        self.held_nbytes += nbytes
        self.leased_blocks += leased
        self.reserved_blocks += reserved


class Held:
    """What the calls under way hold, and whose they are. Safe to use from several threads."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._lock = threading.Lock()
        self._num_calls = 0
        self._clients: OrderedDict[str, Client] = OrderedDict()  # the one that called last is the last
        self._watches: Counter[str] = Counter()  # by tenant
        self._totals = Counter({"calls": 0, "refused": 0, "sent_nbytes": 0, "received_nbytes": 0})

    def seen(self, client: str, tenant: str) -> None:
        """A client has begun a call."""
        with self._lock:
            found = self._client(client)
            found.tenant = tenant
            found.calls += 1

    def _client(self, client: str) -> Client:
        """The row of a client, made for it if need be. Those that hold something are as many as calls can be under way;
        of the others the CLIENTS_MAX that called last are remembered. Caller holds the lock."""
        found = self._clients.get(client)
        if found is None:
            found = self._clients[client] = Client()
            idle = [name for name, one in self._clients.items() if one is not found and not one.holds]
            for name in idle[: max(0, len(self._clients) - CLIENTS_MAX)]:
                del self._clients[name]
        self._clients.move_to_end(client)
        return found

    @contextmanager
    def long_call(self, client: str) -> Iterator[None]:
        """One of the threads, for as long as it takes. Errors: LimitExceeded when only those for others are left."""
        with self._lock:
            if self._num_calls >= self._limits.long_calls_max:
                raise LimitExceeded(
                    f"{self._num_calls} reads, writes and waits are under way; serve.threads limits them"
                )
            found = self._client(client)
            found.long_calls += 1
            self._num_calls += 1
        try:
            yield
        finally:
            with self._lock:
                found.long_calls -= 1
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
    def blocks(self, client: str, nbytes: int, *, leased: int = 0, reserved: int = 0) -> Iterator[None]:
        """So many bytes of blocks for one client, that are `leased` or `reserved` blocks. Errors: LimitExceeded over
        client_nbytes_max; a call alone may."""
        with self._lock:
            found = self._client(client)
            if found.held_nbytes and found.held_nbytes + nbytes > self._limits.client_nbytes_max:
                raise LimitExceeded(
                    f"{nbytes} bytes more than the {found.held_nbytes} that this client holds are over "
                    f"serve.client_nbytes_max={self._limits.client_nbytes_max}"
                )
            found.hold(nbytes, leased, reserved)
        try:
            yield
        finally:
            with self._lock:
                found.hold(-nbytes, -leased, -reserved)

    def count(self, name: str, amount: int = 1) -> None:
        """Add to one of the totals that `counts` shows."""
        with self._lock:
            self._totals[name] += amount

    def counts(self) -> dict[str, int]:
        """Totals since the start; long calls under way, bytes of blocks they hold, and clients that hold any."""
        with self._lock:
            clients = self._clients.values()
            return dict(self._totals) | {
                "long_calls": self._num_calls,
                "held_nbytes": sum(one.held_nbytes for one in clients),
                "clients_holding": sum(one.held_nbytes > 0 for one in clients),
                "watches": self._watches.total(),
            }

    def clients(self) -> dict[str, dict[str, Any]]:
        """By client, the one that called last first: its tenant, calls so far, and what its calls under way hold. Those
        that hold nothing and called before CLIENTS_MAX others are left out."""
        with self._lock:
            return {name: asdict(one) for name, one in reversed(self._clients.items())}
