"""The thread that commits changes to the manifest, in groups, after the data they speak of is durable.

Changes are applied in the order they were handed in. A group closes after GROUP_S, at GROUP_NBYTES of data,
or as soon as somebody waits for it. When a commit fails the group is kept and tried again; whoever waits for
it is told.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

from kvstore.errors import Unavailable
from kvstore.tiers.changes import Change, Clean, Put
from kvstore.tiers.manifest import Manifest, ManifestError

GROUP_S = 1.0
GROUP_NBYTES = 64 << 20
RETRY_S = 1.0

log = logging.getLogger(__name__)


class Journal:
    """Owns the only thread that writes to the manifest. All methods are thread-safe and return at once but
    close().

    `sync(segment)` makes a segment's data durable or raises OSError; `cleaned(segments)` hears which Clean
    changes are durable; `reported(commit, sync)` hears after each attempt what went wrong with the commit, which is
    tried again, and with the data behind it, which is not; "" is nothing, None that there was none. `doubted(segments)`
    hears before that which of them a sync failed for: nothing more is named in them until they are cleaned. All four
    are called on the journal's thread without its lock.
    """

    def __init__(
        self,
        manifest: Manifest,
        sync: Callable[[int], None],
        cleaned: Callable[[list[int]], None],
        reported: Callable[[str, str | None], None],
        doubted: Callable[[list[int]], None],
    ) -> None:
        self._manifest = manifest
        self._sync, self._cleaned, self._reported, self._doubted = sync, cleaned, reported, doubted
        self._wake = threading.Condition()  # guards everything below
        self._changes: list[Change] = []
        self._nbytes = 0
        self._waiting: list[Future[None]] = []
        self._first_s = 0.0  # when the oldest of _changes came
        self._urgent = False
        self._closed = False
        self._lost: dict[int, str] = {}  # segment → why it could not be synced; until it is cleaned; the thread's own
        self._thread = threading.Thread(target=self._run, name="kvstore-manifest", daemon=True)
        self._thread.start()

    def add(self, change: Change, nbytes: int = 0, *, urgent: bool = False) -> None:
        """`nbytes`: of the data behind the change; `urgent`: do not wait for others to join it."""
        with self._wake:
            if not self._changes:
                self._first_s = time.monotonic()
            self._changes.append(change)
            self._nbytes += nbytes
            self._urgent |= urgent
            self._wake.notify()

    def flush(self, future: Future[None]) -> None:
        """Finish `future` when every earlier change is durable. It gets Unavailable when the commit fails, and as long
        as there is a segment whose sync failed."""
        with self._wake:
            self._waiting.append(future)
            self._urgent = True
            self._wake.notify()

    def close(self) -> None:
        """Commit what there is, with one attempt, and stop."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._changes or self._waiting or self._closed)
                while not self._due():
                    self._wake.wait(max(0.0, self._first_s + GROUP_S - time.monotonic()))
                changes, self._changes = self._changes, []
                waiting, self._waiting = self._waiting, []
                nbytes, self._nbytes = self._nbytes, 0
                self._urgent = False
                closed = self._closed
            reason = self._commit(changes)
            if waiting:
                self._answer(waiting, reason or next(iter(self._lost.values()), ""))
            if closed:
                return
            if reason and changes:
                self._keep(changes, nbytes)

    def _due(self) -> bool:
        """Whether the group is to be committed now."""
        is_full = self._nbytes >= GROUP_NBYTES or time.monotonic() >= self._first_s + GROUP_S
        return self._closed or self._urgent or is_full

    def _commit(self, changes: list[Change]) -> str:
        """Make `changes` durable and leave in it what is to be tried again: "" or what went wrong."""
        if not changes:
            return ""
        unsynced, reason = self._sync_data(changes), ""
        try:
            self._manifest.apply(changes)
        except ManifestError as error:
            reason = f"manifest: {error}"
            try:
                self._manifest.reopen()
            except ManifestError as again:
                reason = f"manifest: {again}"
        else:
            cleaned = [change.segment for change in changes if isinstance(change, Clean)]
            changes.clear()
            for segment in cleaned:
                self._lost.pop(segment, None)
            if cleaned:
                self._cleaned(cleaned)
        self._reported(reason, unsynced)
        return reason or unsynced or ""

    def _sync_data(self, changes: list[Change]) -> str | None:
        """Sync every segment written to; None when there is none, else "" or what went wrong. Blocks of one that fails
        never get a row, nor do those that were under way to it at the time: after a failed sync nobody knows what the
        device holds, and a second one that succeeds says nothing about the first."""
        failed: dict[int, str] = {}
        written = sorted({change.segment for change in changes if isinstance(change, Put)} - self._lost.keys())
        for segment in written:
            try:
                self._sync(segment)
            except OSError as error:
                failed[segment] = f"sync of segment {segment}: {error.strerror}"
                log.error(
                    "%s: blocks just written there are lost at restart until they are written anew", failed[segment]
                )
        self._lost |= failed
        if failed:
            self._doubted(list(failed))
        changes[:] = [change for change in changes if not (isinstance(change, Put) and change.segment in self._lost)]
        return next(iter(failed.values()), "") if written else None

    def _answer(self, waiting: list[Future[None]], reason: str) -> None:
        for future in waiting:  # running ones, which nobody can cancel
            if reason:
                future.set_exception(Unavailable(f"disk tier: not durable: {reason}"))
            else:
                future.set_result(None)

    def _keep(self, changes: list[Change], nbytes: int) -> None:
        """Put a group that failed back in front, and give the device a pause."""
        with self._wake:
            self._changes[:0] = changes
            self._nbytes += nbytes
            self._wake.wait_for(lambda: self._closed, RETRY_S)
            self._first_s = time.monotonic() - GROUP_S
