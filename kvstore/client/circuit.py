"""A circuit: while a daemon is gone nobody waits for it but one thread that asks whether it is back."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from kvstore.errors import Unavailable

log = logging.getLogger("kvstore.client")

PAUSE_S_MIN, PAUSE_S_MAX = 0.05, 2.0


class Circuit:
    """Closed: calls go through. Open: they are Unavailable at once. `probe` says whether the daemon answers."""

    def __init__(self, probe: Callable[[], bool]) -> None:
        self._probe = probe
        self._reason: str | None = None  # read without the lock: a call too many does no harm
        self._lock = threading.Lock()
        self._ended = threading.Event()

    def require_closed(self) -> None:
        """Errors: Unavailable while the daemon is gone."""
        if self._reason is not None:
            raise Unavailable(self._reason)

    @property
    def is_open(self) -> bool:
        """Is the daemon taken for gone?"""
        return self._reason is not None

    def trip(self, reason: str) -> None:
        """The daemon did not answer; from now on a thread asks it, until it does or `end` is called."""
        with self._lock:
            if self._reason is not None or self._ended.is_set():
                return
            self._reason = reason
        log.warning("%s; lookups are misses until it is back", reason)
        threading.Thread(target=self._wait_for_it, name="kvstore-reconnect", daemon=True).start()

    def _wait_for_it(self) -> None:
        pause_s = PAUSE_S_MIN
        while not self._ended.wait(pause_s):
            if self._probe():
                log.warning("the daemon is back")
                self._reason = None
                return
            pause_s = min(2 * pause_s, PAUSE_S_MAX)

    def end(self) -> None:
        """Stop asking. Idempotent."""
        self._ended.set()
