"""What may be written to the far tier, and when: bytes a second for the others' sake, bytes a day for the device's."""

from __future__ import annotations

import logging

from kvstore import policy

log = logging.getLogger("kvstore")


class WriteBudget:
    """Remembers what was written. It starts full and survives nothing: a restart gives the burst of a day's budget
    anew. Caller holds the store's lock."""

    def __init__(self, nbytes_per_s: int, nbytes_per_day: int) -> None:
        self._nbytes_per_s, self._nbytes_per_day = nbytes_per_s, nbytes_per_day
        self._ready_us = 0  # when the next byte is within the limit of a second
        self._full_us = 0  # when the budget of a day is full again
        self._is_told = False  # that it ran out; until it is full again

    def ready_us(self, now_us: int) -> int:
        """When the next batch may start: not later than now when it may."""
        return now_us + 1 if self.is_used_up(now_us) else self._ready_us

    def is_used_up(self, now_us: int) -> bool:
        """Is nothing left of the day's budget?"""
        return self._nbytes_per_day > 0 and self.left_nbytes(now_us) == 0

    def left_nbytes(self, now_us: int) -> int:
        """What may be written now of the day's budget; 0 also when there is no such limit."""
        return policy.endurance_left_nbytes(self._full_us, now_us, self._nbytes_per_day)

    def spend(self, nbytes: int, now_us: int) -> None:
        """A batch of write-back was started."""
        self._ready_us = policy.next_ready_us(self._ready_us, now_us, nbytes, self._nbytes_per_s)
        self.wear(nbytes, now_us)

    def wear(self, nbytes: int, now_us: int) -> None:
        """So much is written, for whatever reason."""
        self._is_told = self._is_told and now_us < self._full_us
        self._full_us = policy.endurance_full_us(self._full_us, now_us, nbytes, self._nbytes_per_day)
        if not self._is_told and self.is_used_up(now_us):
            self._is_told = True
            log.warning(
                "writes to the far tier pause: mover.write_nbytes_per_day=%d is used up; they go on as it refills",
                self._nbytes_per_day,
            )
