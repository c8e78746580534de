"""Stepper: a thread that steps when something is finished, and now and then anyway."""

from __future__ import annotations

import logging
import threading
import time
from abc import ABC, abstractmethod
from concurrent.futures import Future
from typing import Any

log = logging.getLogger("kvstore")

TICK_S = 0.05  # the thread looks at budgets, expiries and broken tiers at least this often
TICK_SHORT_S = 0.002  # while far room is short: it comes without notice, when the tier has cleaned a range


class Stepper(ABC):
    """Something with a `step` that runs under `lock` and never waits."""

    def __init__(self, lock: threading.RLock) -> None:
        self.lock = lock
        self.defects = 0  # steps that raised
        self._wake = threading.Event()
        self._stopping = False
        self._thread: threading.Thread | None = None

    @abstractmethod
    def step(self) -> None:
        """One step."""

    def rest(self) -> None:  # noqa: B027 - most have nothing that can wait
        """What comes after a step, without the lock: a bounded piece of what can wait."""

    @property
    def is_short(self) -> bool:
        """Whether it should step again very soon, without being told."""
        return False

    def notice(self, _future: Future[Any] | None = None) -> None:
        """Something was finished, or there is more to do: step soon."""
        self._wake.set()

    def start(self) -> None:
        """Step in a thread of its own from now on."""
        self._thread = threading.Thread(target=self._run, name="kvstore-mover", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stopping:
            self._wake.wait(TICK_SHORT_S if self.is_short else TICK_S)
            self._wake.clear()
            try:
                with self.lock:
                    self.step()
                self.rest()
            except Exception:  # a defect: say so, and go on serving what is in memory
                self.defects += 1
                log.exception("a step of the mover failed")
                time.sleep(TICK_S)

    def stop(self) -> None:
        """End the thread; what is under way stays so."""
        self._stopping = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join()
