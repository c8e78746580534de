"""What is known of a device's health, and in which words: it refuses, it does not answer, its manifest cannot be
written."""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import Callable

import numpy as np

from kvstore.tiers.base import Outcome
from kvstore.tiers.breaker import FAILURES_MAX, Breaker
from kvstore.tiers.disk_io import Result

NO_ROOM_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
STALL_US = 5_000_000  # without an answer for so long, and for as long as what is under way takes at STALL_NBYTES_PER_S
STALL_NBYTES_PER_S = 64 << 20

log = logging.getLogger(__name__)


class Health:
    """Breakers for reads, writes and syncs, a watch over answers, and a latch for the manifest.

    Thread-safe, never blocks. The breakers let attempts through after their pause. A device that does not answer is
    well again with its first answer, and the manifest with its first commit, since both are tried without being asked.
    What changes is logged once, without a lock: the log may lie on the device that does not answer. `name` begins each
    line.
    """

    def __init__(self, name: str, clock_us: Callable[[], int]) -> None:
        self._name, self._clock_us = name, clock_us
        self._lock = threading.Lock()  # guards everything below
        self._writes, self._reads, self._syncs = Breaker(), Breaker(), Breaker()
        self._num_failed_commits = 0
        self._num_under_way = self._nbytes_under_way = 0
        self._answered_us = 0  # when the device answered last, or was asked first after it had nothing to do
        self._told_stall = False
        self._not_durable = ""

    @property
    def not_durable(self) -> str:
        """Why what was written last may be lost at restart; "" when it is durable."""
        with self._lock:
            return self._not_durable

    def reason(self) -> str:
        """Why the device is not to be used now; "" when it is."""
        now_us = self._clock_us()
        with self._lock:
            if self._num_failed_commits >= FAILURES_MAX:
                return f"{self._num_failed_commits} failures in a row, the last: {self._not_durable}"
            opened = (breaker.reason(now_us) for breaker in (self._writes, self._syncs, self._reads))
            return self._stall(now_us) or next(filter(None, opened), "")

    def began(self, nbytes: int) -> None:
        """A transfer is handed to the device."""
        now_us = self._clock_us()
        with self._lock:
            if not self._num_under_way:
                self._answered_us = now_us
            self._num_under_way += 1
            self._nbytes_under_way += nbytes

    def ended(self, result: Result, nbytes: int, *, writing: bool) -> None:
        """How a transfer went. That there is no room for a new file says nothing about the device."""
        now_us = self._clock_us()
        failed = result.errnos[result.outcomes == Outcome.IO_ERROR]
        no_room = bool(result.refused) and failed.size > 0 and bool(np.isin(failed, NO_ROOM_ERRNOS).all())
        verb = "write" if writing else "read"
        told = ""
        with self._lock:
            self._num_under_way -= 1
            self._nbytes_under_way -= nbytes
            self._answered_us = now_us
            breaker = self._writes if writing else self._reads
            if failed.size and not no_room:
                told = self._fail(breaker, f"{verb}: {os.strerror(int(failed[0]))}", now_us)
            elif not failed.size and (result.outcomes == Outcome.OK).any() and breaker.succeed():
                told = f"the device can {verb} again"
        self._tell(told)

    def reported(self, commit: str, sync: str | None) -> None:
        """What went wrong with a commit of the manifest, and with the data behind it; "" is nothing, None: no data."""
        now_us = self._clock_us()
        with self._lock:
            before, self._num_failed_commits = self._num_failed_commits, self._num_failed_commits + 1 if commit else 0
            self._not_durable = commit or sync or ""
            told = [f"{commit}: kept, and tried again every second"] if commit and not before else []
            if before and not commit:
                told.append(f"the manifest can be written again, after {before} failures")
            if sync:
                told.append(self._fail(self._syncs, sync, now_us))
            elif sync is not None and self._syncs.succeed():
                told.append("what is written can be made durable again")
        self._tell(*told)

    def given_up(self, reason: str) -> None:
        """The tier closes and leaves behind what is under way."""
        with self._lock:
            self._not_durable = reason
            told = f"{reason}; {self._num_under_way} transfers are left under way"
        self._tell(told)

    def watch(self) -> None:
        """Log whether the device began or ceased to be silent since this was last called."""
        now_us = self._clock_us()
        told = ""
        with self._lock:
            stall = self._stall(now_us)
            if bool(stall) != self._told_stall:
                self._told_stall = bool(stall)
                told = f"at rest: {stall}" if stall else "the device answers again"
        self._tell(told)

    def _stall(self, now_us: int) -> str:
        silent_us = now_us - self._answered_us
        patience_us = STALL_US + self._nbytes_under_way * 1_000_000 // STALL_NBYTES_PER_S
        if not self._num_under_way or silent_us < patience_us:
            return ""
        return f"no answer for {silent_us // 1_000_000} s, {self._num_under_way} transfers under way"

    @staticmethod
    def _fail(breaker: Breaker, reason: str, now_us: int) -> str:
        return f"at rest: {breaker.reason(now_us)}" if breaker.fail(reason, now_us) else ""

    def _tell(self, *texts: str) -> None:
        for text in texts:
            if text:
                log.warning("%s: %s", self._name, text)
