"""The attach socket: processes of the same machine map the store's memory and need no call to read."""

from __future__ import annotations

import logging
import os
import socket
import threading
from concurrent.futures import Future
from contextlib import suppress

from kvstore._core import attach as core
from kvstore._core import put
from kvstore.arrays import Keys
from kvstore.checks import checked_keys
from kvstore.config import Config
from kvstore.errors import ConfigInvalid, Unavailable
from kvstore.hint import Hint, Numbers, hint_of
from kvstore.joining import Step
from kvstore.service.endpoints import UNIX_PATH_MAX, private_umask
from kvstore.store import BlockStore

log = logging.getLogger("kvstore.service")

SUFFIX = ".attach"  # behind the path of the socket for calls
TICKET_MS = 10_000
CLIENTS_PER_PROCESS_MAX = 8  # one for each connected store
RESERVATIONS_MAX = 4_096  # of one client


class Attaching:
    """Serves the attach socket beside `config.serve.socket`, from `start` to `stop`.

    One thread is the core's and never has the GIL; another one, `kvstore-attach-help`, does for it what only the store
    can: promotions, room that waits for a write-back, quotas. Errors: ConfigInvalid for a path that is too long,
    Unavailable.
    """

    def __init__(self, store: BlockStore, config: Config) -> None:
        self._store = store
        self.path = f"{config.serve.socket}{SUFFIX}"
        listening = _listen(self.path)
        limits = {
            "clients_max": config.serve.clients_max,
            "clients_per_process_max": CLIENTS_PER_PROCESS_MAX,
            "leases_max": config.serve.leases_max,
            "reservations_max": RESERVATIONS_MAX,
            "reserved_nbytes_max": int(config.serve.client_nbytes_max),
            "lease_ttl_ms": config.serve.lease_ms_max,
            "reservation_ttl_ms": config.mover.reservation_ttl_ms,
            "put_wait_ms": config.mover.put_wait_ms,
            "wait_ms_max": config.serve.call_ms_max,
        }
        try:
            self._socket = core.AttachSocket(store.mover.put, listening.fileno(), limits)
        except BaseException:
            listening.close()
            os.unlink(self.path)
            raise
        listening.detach()
        if store.recorder is not None:
            self._socket.record()
        self._threads = [
            threading.Thread(target=self._socket.serve, name="kvstore-attach", daemon=True),
            threading.Thread(target=self._help, name="kvstore-attach-help", daemon=True),
        ]

    def start(self) -> None:
        """Serve from now on."""
        for thread in self._threads:
            thread.start()

    def drain(self) -> None:
        """Nothing new is reserved; what is may be committed, and reads go on."""
        self._socket.drain()

    def stop(self) -> None:
        """Hang up on everybody and undo what was reserved. Leases count as long as this object lives: keep it until the
        store is closed."""
        self._socket.stop()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()
        with suppress(OSError):
            os.unlink(self.path)

    def ticket(self, number: int, *, may_write: bool) -> bytes:
        """16 bytes that let a process of this user, or root, open namespace `number`. Errors: LimitExceeded."""
        rights = core.READ | (core.WRITE if may_write else 0)
        ticket: bytes = self._socket.issue(os.geteuid(), number, rights, TICKET_MS)
        return ticket

    def set_wait(self, put_wait_ms: int) -> None:
        """How long a reservation waits for room when its client does not say."""
        self._socket.set_wait(put_wait_ms)

    def counts(self) -> dict[str, int]:
        """Clients, what they hold, and what was done for and against them."""
        found: dict[str, int] = self._socket.counts()
        return found

    # ---- what only the store can do ----

    def _help(self) -> None:
        while self._socket.wait():
            while (asked := self._socket.take()) is not None:
                try:
                    self._answer(*asked)
                except Exception:  # a defect: say so, and go on helping; who waits has a deadline
                    self._store.mover.defects += 1
                    log.exception("an attached client could not be helped")

    def _answer(
        self, kind: int, ns: int, client: int, turn: int, num_blocks: int, keys: bytes, hint: Numbers | None
    ) -> None:
        if kind == core.COLLECT:
            with self._store.lock:
                self._store.mover.collect()
        elif kind == core.PROMOTE:
            self._note(Step.MATCH, ns, keys)
            self._promote(ns, keys)
        elif kind == core.RECORD:
            self._note(Step.PUT, ns, keys, None if hint is None else hint_of(hint))
        else:
            num_fresh = self._store.mover.put.num_fresh
            flags, progress = self._make_room(kind, ns, num_blocks)
            if progress is None:
                self._socket.helped(client, turn, flags, num_fresh)
            else:
                self._socket.heard(client, turn)
                progress.add_done_callback(lambda _: self._socket.helped(client, turn, flags, num_fresh))

    def _note(self, step: Step, ns: int, keys: bytes, hint: Hint | None = None) -> None:
        if self._store.recorder is not None:
            self._store.recorder.of(ns, self._store.spec(ns).block_tokens)(step, checked_keys(keys), hint)

    def _promote(self, ns: int, keys: Keys | bytes) -> None:
        store = self._store
        grip = store.leases.acquire(keys, False, ns)
        try:
            with store.lock:
                store.mover.promote(grip.ids()[grip.num_near :], ns, None, drop_unwritten=False)
        finally:
            grip.release()

    def _make_room(self, kind: int, ns: int, num_blocks: int) -> tuple[int, Future[None] | None]:
        """Flags with which a reservation can go on, now or when the future is done (kvstore.reservation does the same
        for this process)."""
        store, mover = self._store, self._store.mover
        with store.lock:
            written = mover.written_blocks
            mover.step()  # what has been written by now may go, and what was committed since is written
            if kind == core.QUOTA:
                _, is_short = store.quotas.room(ns, num_blocks)
                progress = mover.progress() if is_short else None
                return (put.PAST_QUOTA if progress is None else 0), progress
            if kind == core.ENTRIES:
                store.entries_room(num_blocks, ns)
                return put.PAST_ENTRIES, None
            if mover.written_blocks > written:
                return 0, None  # there may be room now
            progress = mover.progress()
            return (put.LATE if progress is None else 0), progress


def _listen(path: str) -> socket.socket:
    """A socket that only this user, and root, can connect to. Whoever has the lock beside the other socket owns it."""
    if len(os.fsencode(path)) > UNIX_PATH_MAX:
        raise ConfigInvalid(f"serve.socket with {SUFFIX} behind, {path!r}, is longer than {UNIX_PATH_MAX} bytes")
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    try:
        with suppress(FileNotFoundError):
            os.unlink(path)
        with private_umask():
            listening.bind(path)
        listening.listen(64)
    except OSError as error:
        listening.close()
        raise Unavailable(f"cannot listen on {path}: {error}") from None
    return listening
