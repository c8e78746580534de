"""Feed: the events of one store's index, for any number of watches. Each keeps its position and nothing else."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future
from contextlib import AbstractContextManager
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kvstore._core import events as core
from kvstore._core.index import Index
from kvstore.clock import Clock
from kvstore.errors import LimitExceeded
from kvstore.events import IDLE_MS, ZERO_KEY, Cleared, Event, Position, Reason, Removed, Stored, cut_keys

BATCH_MAX = 4096  # events of one batch, so that reading them holds the lock for microseconds

Rows = NDArray[Any]  # core.EVENT


class Batch(NamedTuple):
    """Events up to `position`, whether some before them are lost, and the titles of their namespaces by number."""

    position: Position
    gap: bool
    rows: Rows
    titles: Mapping[int, str] = {}


class Run(NamedTuple):
    """Events that are told as one: blocks of a chain, or blocks that went for one reason."""

    kind: int
    ns: int
    reason: int
    keys: bytes
    parent: bytes  # of the first; empty where it has none


class Feed:
    """Reads events and waits for them. Takes the store's lock itself, but for `step`. Errors of every reading: whatever
    `check_open` raises, LimitExceeded where no events are kept."""

    def __init__(
        self, index: Index, lock: AbstractContextManager[Any], clock: Clock, check_open: Callable[[], None]
    ) -> None:
        self.epoch = int.from_bytes(os.urandom(8), "little") | 1  # never 0: that is nobody's
        self._index, self._lock, self._clock, self._check_open = index, lock, clock, check_open
        self._news: Future[None] | None = None  # given to all who wait
        self._waited_from = 0  # number of the latest event when they began to

    @property
    def num_kept(self) -> int:
        """How many events are kept; 0: none, and nobody can watch."""
        return core.capacity(self._index)

    @property
    def num_events(self) -> int:
        """How many there have been in this life."""
        return core.newest(self._index)

    def require_kept(self) -> None:
        """Errors: LimitExceeded where no events are kept."""
        if not self.num_kept:
            raise LimitExceeded("index.events_max=0: no events are kept")

    def idle_us(self) -> int:
        """When a watch that begins to wait now has to say something."""
        return self._clock.now_us() + IDLE_MS * 1000

    def read(
        self,
        since: Position,
        until_us: int,
        choose: Callable[[Collection[int]], Mapping[int, str]],
        ended: Callable[[], bool] = lambda: False,
    ) -> Batch:
        """What is behind `since`: as soon as there is something, and at `until_us` in any case.

        `choose`: of the namespaces with these numbers, those that count, with their titles; asked after each look,
        without the lock. `ended`: no longer wait; asked under the lock, and `wake` has to be called when it changes.
        """
        while True:
            with self._lock:
                self._check_open()
                self.require_kept()
                batch = self._look(since)
                is_over = self._clock.now_us() >= until_us or ended()
                news = None if len(batch.rows) or batch.gap or is_over else self._await()
            numbers = np.unique(batch.rows["ns"]).tolist()
            titles = choose(numbers)
            rows = batch.rows if len(titles) == len(numbers) else batch.rows[np.isin(batch.rows["ns"], list(titles))]
            batch = batch._replace(rows=rows, titles=titles)
            if len(batch.rows) or batch.gap or is_over:
                return batch
            since = batch.position
            if news is not None:
                self._clock.wait(news, until_us - self._clock.now_us())

    def _look(self, since: Position) -> Batch:
        oldest, newest = core.bounds(self._index)
        seq, gap = since.seq, False
        if since.epoch != self.epoch or seq > newest:
            seq, gap = oldest, since.epoch != 0 or oldest > 0
        elif seq < oldest:
            # Whoever was overtaken would be at once again, at the oldest: it gets half of the ring as a lead.
            seq, gap = newest - (newest - oldest) // 2, True
        rows = core.read(self._index, seq, BATCH_MAX)
        return Batch(Position(self.epoch, seq + len(rows)), gap, rows)

    def _await(self) -> Future[None]:
        if self._news is None:
            self._news, self._waited_from = Future(), core.newest(self._index)
        return self._news

    def step(self) -> None:
        """Let those look who wait, if there is anything new. Caller holds the lock."""
        if self._news is not None and core.newest(self._index) != self._waited_from:
            self._tell()

    def wake(self) -> None:
        """Let those look who wait, in any case."""
        with self._lock:
            self._tell()

    def _tell(self) -> None:
        news, self._news = self._news, None
        if news is not None:
            news.set_result(None)


def runs(rows: Rows) -> Iterator[Run]:
    """Events as few runs as possible, in their order."""
    if not len(rows):
        return
    one, other = rows[:-1], rows[1:]
    breaks = (one["kind"] != other["kind"]) | (one["ns"] != other["ns"]) | (one["reason"] != other["reason"])
    breaks |= (other["kind"] == core.STORED) & (one["key"] != other["parent"])
    breaks |= other["kind"] == core.CLEARED
    edges = [0, *(np.flatnonzero(breaks) + 1).tolist(), len(rows)]
    for first, last in pairwise(edges):
        head = rows[first]
        parent = head["parent"].tobytes()
        kind, ns, reason = int(head["kind"]), int(head["ns"]), int(head["reason"])
        keys = b"" if kind == core.CLEARED else rows["key"][first:last].tobytes()
        yield Run(kind, ns, reason, keys, b"" if parent == ZERO_KEY else parent)


def told(batch: Batch) -> tuple[Event, ...]:
    """Events as an application gets them."""
    return tuple(_event(run, batch.titles[run.ns]) for run in runs(batch.rows))


def _event(run: Run, title: str) -> Event:
    if run.kind == core.STORED:
        return Stored(title, cut_keys(run.keys), run.parent or None)
    if run.kind == core.REMOVED:
        return Removed(title, cut_keys(run.keys), Reason(run.reason))
    return Cleared(title)
