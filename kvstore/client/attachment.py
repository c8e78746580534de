"""Attachment: a daemon's memory in this process, and the line to the daemon beside it."""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable

from kvstore._core.arena import Arena
from kvstore._core.lease import LeaseTable
from kvstore._core.link import Link, SharedIndex
from kvstore.errors import KVStoreError, Unavailable

log = logging.getLogger("kvstore.client")

PAUSE_S_MIN, PAUSE_S_MAX = 0.1, 5.0


class Attachment:
    """One life of a daemon: its index and arena, mapped, and this process's lease table. Safe to use from several
    threads. Once `is_over` nothing is looked up in it any more; what is leased stays mapped until it is let go of."""

    def __init__(self, path: str, ticket: bytes, timeout_ms: int) -> None:
        """Errors: Unavailable, AccessDenied, LimitExceeded."""
        self.link = Link(path, timeout_ms)
        number, rights, nbytes, *_, fds = self.link.open(ticket)
        try:
            if len(fds) != 3:
                raise Unavailable(f"{path} sent {len(fds)} descriptors instead of three")
            self.index = SharedIndex(fds[0])
            self.leases = LeaseTable(self.index, fd=fds[1])
            self.arena = Arena(nbytes, fd=fds[2], writable=bool(rights & 2))
        except BaseException:
            self.link.end()
            raise
        finally:
            _close(fds)
        self._nbytes = nbytes
        self.first_number = number
        self.is_over = False
        self.ended = threading.Event()
        self.left: deque[int] = deque()  # reservations that were abandoned; noted by whoever lets go of them
        _alive.add(self)
        threading.Thread(target=self._watch, name="kvstore-attached", daemon=True).start()

    def open(self, ticket: bytes) -> int:
        """Another namespace; its number. Errors: as the constructor."""
        number, rights, _, *_, fds = self.link.open(ticket)
        try:
            if fds:
                self.arena = Arena(self._nbytes, fd=fds[0], writable=bool(rights & 2))
        finally:
            _close(fds)
        return number

    def _watch(self) -> None:
        self.link.watch()
        self.end()

    def end(self) -> None:
        """Hang up. The daemon takes back what is leased or reserved here when this process ends. Idempotent."""
        self.is_over = True
        self.ended.set()
        self.link.end()

    def settle(self) -> None:
        """Give back what was abandoned. Nobody is there any more: then that is the daemon's to do."""
        while self.left and not self.is_over:
            try:
                self.link.abandon(self.left.popleft())
            except IndexError:  # another thread was faster
                return
            except KVStoreError as error:
                log.debug("a reservation ends by itself: %s", error)

    def forget(self) -> None:
        """In a child after a fork: everything here is the parent's."""
        self.is_over = True
        self.ended = threading.Event()  # a thread of the parent may have had its lock
        self.ended.set()
        self.link.disown()
        self.leases.disown()


_alive: weakref.WeakSet[Attachment | Attachments] = weakref.WeakSet()


def _after_fork() -> None:
    for one in list(_alive):
        one.forget()


os.register_at_fork(after_in_child=_after_fork)


def _close(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


class Attachments:
    """The current attachment of one connected store, made again after each life of the daemon. Safe to use from several
    threads."""

    def __init__(self, timeout_s: float, now_us: Callable[[], int]) -> None:
        self._timeout_ms, self._now_us = max(1, int(timeout_s * 1000)), now_us
        self._lock = threading.Lock()
        self._current: Attachment | None = None
        self._pause_s, self._ready_us = PAUSE_S_MIN, 0
        self._ended = False
        _alive.add(self)

    def forget(self) -> None:
        """In a child after a fork: nothing is attached, nor will be."""
        self._lock = threading.Lock()  # a thread of the parent may have had it
        self._current, self._ended = None, True

    def ready(self) -> bool:
        """May it be tried now? After a failure it may not for a while."""
        return not self._ended and self._now_us() >= self._ready_us

    def open(self, path: str, ticket: bytes) -> tuple[Attachment, int]:
        """An attachment and the number of the namespace that the ticket is for. Errors: Unavailable, AccessDenied,
        LimitExceeded."""
        with self._lock:
            if self._ended:
                raise Unavailable("the store is closed")
            current = self._current
            if current is not None and not current.is_over:
                return current, current.open(ticket)
            self._current = Attachment(path, ticket, self._timeout_ms)
            log.info("attached to %s", path)
            self._pause_s = PAUSE_S_MIN
            return self._current, self._current.first_number

    def failed(self, error: Exception) -> None:
        """It could not be had: everything goes by calls until it is tried again."""
        with self._lock:
            self._ready_us = self._now_us() + int(self._pause_s * 1e6)
            self._pause_s = min(2 * self._pause_s, PAUSE_S_MAX)
        log.info("not attached, calls go on by gRPC: %s", error)

    def end(self) -> None:
        """Hang up for good. Idempotent."""
        with self._lock:
            self._ended = True
            current, self._current = self._current, None
        if current is not None:
            current.settle()  # afterwards there is no line to say it on
            current.end()
