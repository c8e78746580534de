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
    tried again, and with the data behind it, which is not; "" is nothing, None that there was none. All three are
    called on the journal's thread without its lock.
    """

    def __init__(
        self,
        manifest: Manifest,
        sync: Callable[[int], None],
        cleaned: Callable[[list[int]], None],
        reported: Callable[[str, str | None], None],
    ) -> None:
        self._manifest = manifest
        self._sync, self._cleaned, self._reported = sync, cleaned, reported
        self._wake = threading.Condition()  # guards everything below
        self._changes: list[Change] = []
        self._nbytes = 0
        self._waiting: list[Future[None]] = []
        self._first_s = 0.0  # when the oldest of _changes came
        self._urgent = False
        self._closed = False
        self._lost = ""  # a sync that failed and that no flush has heard of yet; the thread's own
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
        """Finish `future` when every earlier change is durable. It gets Unavailable when the commit fails, or when
        blocks were lost to a failed sync since the flush before."""
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
                self._answer(waiting, reason or self._lost)
                self._lost = ""
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
            if cleaned:
                self._cleaned(cleaned)
        self._reported(reason, unsynced)
        return reason or unsynced or ""

    def _sync_data(self, changes: list[Change]) -> str | None:
        """Sync every segment written to; None when there is none, else "" or what went wrong. Blocks of one that fails
        never get a row: after a failed sync nobody knows what the device holds, and a second one that succeeds says
        nothing about the first."""
        lost, reason = set(), ""
        written = sorted({change.segment for change in changes if isinstance(change, Put)})
        for segment in written:
            try:
                self._sync(segment)
            except OSError as error:
                lost.add(segment)
                reason = f"sync of segment {segment}: {error.strerror}"
        if lost:
            self._lost = reason
            changes[:] = [change for change in changes if not (isinstance(change, Put) and change.segment in lost)]
            log.error("%s: blocks just written there are lost at restart", reason)
        return reason if written else None

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
