"""A far tier that does everything the contract allows a tier to do: late, out of order, in part, wrongly, not at all.

Bookkeeping of places is the disk tier's own (kvstore.tiers.segments); device, manifest and journal are simulated. What
`Medium` holds is what a power cut leaves: the bytes at each place and the manifest rows that were committed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, fields
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvstore.errors import Unavailable
from kvstore.hashing import xxh3_64
from kvstore.tiers.base import ENTRY, Buffer, Entries, Outcome, Outcomes, Places, Usage, done
from kvstore.tiers.checks import check_batch, check_entries, check_size, pages_of_buffers
from kvstore.tiers.geometry import PLACES_PER_SEGMENT, Geometry
from kvstore.tiers.segments import SegmentTable, by_segment
from sim.clock import SimClock

RUBBISH = 0xEE
COMMIT_US = 1_000_000
STALL_US = 10_000_000


@dataclass(slots=True)
class Faults:
    """How often what goes wrong, per block or per call; all zero: a device that works."""

    io_error: float = 0.0  # of a block
    corrupt: float = 0.0  # of a block that is read
    rot: float = 0.0  # of a block that is written: damaged for good where it lies
    batch_error: float = 0.0  # of a whole batch
    stall: float = 0.0  # of a batch: no answer for STALL_US
    fewer: float = 0.0  # of an allocation: fewer places than there are
    commit: float = 0.0  # of a manifest commit: it fails and is tried again
    delay_us_max: int = 2_000

    def calm(self) -> None:
        for item in fields(self):
            if item.type == "float":
                setattr(self, item.name, 0.0)


@dataclass(slots=True)
class Medium:
    """What outlives a power cut."""

    geometry: Geometry
    content: dict[int, bytes] = field(default_factory=dict)  # by place
    rows: dict[int, Any] = field(default_factory=dict)  # committed entries, by place
    openings: dict[int, int] = field(default_factory=dict)  # of each segment with rows
    uses: dict[int, int] = field(default_factory=dict)  # seconds, by place
    names: dict[int, str] = field(default_factory=dict)
    quotas: dict[int, int] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class Job:
    """A batch under way."""

    places: Places
    buffers: Sequence[Buffer]
    future: Future[Outcomes]
    deadline_us: int | None
    entries: Entries | None = None  # of a write
    checksums: NDArray[np.uint64] | None = None  # of a read
    before: list[int] = field(default_factory=list)  # digests of what is being written


class SimFar:
    """The DurableTier contract, with faults."""

    name = "far"

    def __init__(
        self, clock: SimClock, rng: Random, medium: Medium, faults: Faults, note: Callable[[str], None]
    ) -> None:
        self._clock, self._rng, self._medium, self._faults, self._note = clock, rng, medium, faults, note
        recovered = sorted({place // PLACES_PER_SEGMENT for place in medium.rows})
        num_opened = max(medium.openings.values(), default=0)
        self._table = SegmentTable(medium.geometry, range(medium.geometry.num_segments), recovered, num_opened)
        self._jobs: list[Job] = []
        self._changes: list[tuple[str, Any]] = []
        self._commit_due = False
        self._flushes: list[tuple[Future[None], list[Job]]] = []  # and the writes each has to wait for
        self._reason = ""
        self._adopted = False
        self.dead = False

    # ---- places ----

    @property
    def block_nbytes_max(self) -> int:
        return self._medium.geometry.segment_nbytes

    def allocate(self, nbytes: int, num_blocks: int, *, moving: bool = False) -> Places:
        check_size(nbytes, num_blocks)
        if self._reason:
            return np.empty(0, dtype=np.uint32)
        if num_blocks and self._rng.random() < self._faults.fewer:
            num_blocks = self._rng.randrange(num_blocks)
        places = self._table.allocate(nbytes, num_blocks, moving=moving)
        self._clean()
        return places

    def free(self, places: Places, nbytes: int, *, forget: bool = False) -> None:
        if self.dead:
            return
        self._table.free(places, nbytes)
        if forget:
            self._journal("forget", places.tolist())
        self._clean()

    def vacate(self, nbytes: int) -> tuple[int, int] | None:
        return self._table.vacate(nbytes)

    def usage(self) -> Usage:
        table = self._table
        return Usage(table.num_blocks, table.used_nbytes, table.capacity_nbytes, not self._reason, self._reason)

    # ---- bytes ----

    def write(
        self, places: Places, entries: Entries, buffers: Sequence[Buffer], deadline_us: int | None = None
    ) -> Future[Outcomes]:
        pages, nbytes = pages_of_buffers(buffers, writable=False)
        check_batch(places, buffers)
        check_entries(entries, len(places))
        if self.dead:
            return done(np.full(len(places), Outcome.CLOSED, dtype=np.uint8))
        self._table.begin_write(places, pages)
        entries["offset"], entries["nbytes"] = places % PLACES_PER_SEGMENT, nbytes
        entries["time_s"][entries["time_s"] == 0] = self._clock.time_s()
        before = [xxh3_64(buffer) for buffer in buffers]
        return self._submit(Job(places, buffers, Future(), deadline_us, entries=entries, before=before))

    def read(
        self,
        places: Places,
        checksums: NDArray[np.uint64],
        buffers: Sequence[Buffer],
        deadline_us: int | None = None,
    ) -> Future[Outcomes]:
        pages_of_buffers(buffers, writable=True)
        check_batch(places, buffers)
        check_batch(checksums, buffers, name="checksums", dtype=np.dtype(np.uint64))
        if self.dead:
            return done(np.full(len(places), Outcome.CLOSED, dtype=np.uint8))
        for buffer in buffers:
            buffer[:] = bytes([RUBBISH]) * len(buffer)
        return self._submit(Job(places, buffers, Future(), deadline_us, checksums=checksums))

    def _submit(self, job: Job) -> Future[Outcomes]:
        delay_us = self._rng.randrange(1, self._faults.delay_us_max)
        if self._rng.random() < self._faults.stall:
            delay_us += STALL_US
        self._jobs.append(job)
        self._clock.after(delay_us, lambda: self._finish(job))
        return job.future

    def _finish(self, job: Job) -> None:
        if self.dead:
            return
        self._jobs.remove(job)
        late = job.deadline_us is not None and self._clock.now_us() >= job.deadline_us
        whole = self._reason or self._rng.random() < self._faults.batch_error
        outcomes = np.zeros(len(job.places), dtype=np.uint8)
        for i in range(len(job.places)):
            if late:
                outcomes[i] = Outcome.TIMEOUT
            elif whole or self._rng.random() < self._faults.io_error:
                outcomes[i] = Outcome.IO_ERROR
            elif job.entries is None:
                outcomes[i] = self._read_one(job, i)
            else:
                self._write_one(job, i)
        self._done(job, outcomes)

    def _done(self, job: Job, outcomes: Outcomes) -> None:
        if job.entries is not None:
            self._end_write(job, outcomes)
        self._note(f"{'read' if job.entries is None else 'wrote'} {job.places.tolist()}: {outcomes.tolist()}")
        job.future.set_result(outcomes)
        self._flush()

    def _read_one(self, job: Job, i: int) -> Outcome:
        buffer, content = job.buffers[i], self._medium.content.get(int(job.places[i]), b"")
        assert bytes(buffer) == bytes([RUBBISH]) * len(buffer), "the buffer of a read was given to somebody else"
        size = min(len(content), len(buffer))
        buffer[:size] = content[:size]
        if self._rng.random() < self._faults.corrupt:
            buffer[self._rng.randrange(len(buffer))] ^= 0x40
        assert job.checksums is not None
        good = len(content) == len(buffer) and xxh3_64(buffer) == job.checksums[i]
        return Outcome.OK if good else Outcome.CORRUPT

    def _write_one(self, job: Job, i: int) -> None:
        content = bytearray(job.buffers[i])
        assert job.entries is not None
        job.entries["checksum"][i] = xxh3_64(content)
        assert job.entries["checksum"][i] == job.before[i], "a block changed while it was written"
        if self._rng.random() < self._faults.rot:
            content[self._rng.randrange(len(content))] ^= 0x04
        self._medium.content[int(job.places[i])] = bytes(content)

    def _end_write(self, job: Job, outcomes: Outcomes) -> None:
        """Rows for what was written and still lives."""
        assert job.entries is not None
        pages = -(-job.entries["nbytes"].astype(np.int64) // 4096)
        for segment, positions in by_segment(job.places):
            living = self._table.end_write(segment, job.places[positions] % PLACES_PER_SEGMENT, pages[positions])
            kept = positions[living & (outcomes[positions] == Outcome.OK)]
            if kept.size:
                opening = int(self._table.opening[segment])
                self._journal("put", (opening, job.places[kept].tolist(), job.entries[kept].copy()))
        self._clean()

    # ---- the manifest ----

    def _journal(self, verb: str, what: Any, delay_us: int = COMMIT_US) -> None:
        self._changes.append((verb, what))
        if not self._commit_due or delay_us < COMMIT_US:
            self._commit_due = True
            self._clock.after(delay_us, self._commit)

    def _clean(self) -> None:
        for segment in self._table.take_to_clean():
            self._journal("clean", segment, delay_us=self._rng.randrange(1, 5_000))

    def _commit(self) -> None:
        if self.dead:
            return
        self._commit_due = False
        failed = self._rng.random() < self._faults.commit
        self._note(f"commit of {len(self._changes)}: {'failed' if failed else 'done'}")
        if not failed:
            self._apply_all()
        elif self._changes:
            self._commit_due = True
            self._clock.after(COMMIT_US, self._commit)
        self._answer(failed)

    def _answer(self, failed: bool) -> None:
        ready = [future for future, jobs in self._flushes if all(job.future.done() for job in jobs)]
        self._flushes = [flush for flush in self._flushes if flush[0] not in ready]
        for future in ready:
            if failed:
                future.set_exception(Unavailable("not durable: the device refused"))
            else:
                future.set_result(None)

    def _apply_all(self) -> None:
        changes, self._changes = self._changes, []
        for verb, what in changes:
            self._apply(verb, what)

    def _apply(self, verb: str, what: Any) -> None:
        medium = self._medium
        if verb == "put":
            opening, places, entries = what
            for place, entry in zip(places, entries, strict=True):
                medium.rows[place] = entry
                medium.openings[place // PLACES_PER_SEGMENT] = opening
        elif verb == "forget":
            for place in what:
                medium.rows.pop(place, None)
        elif verb == "name":
            medium.names[what[0]] = what[1]
        elif verb == "quota":
            medium.quotas[what[0]] = what[1]
        elif verb == "use":
            medium.uses.update(what)
        else:
            for place in [place for place in medium.rows if place // PLACES_PER_SEGMENT == what]:
                del medium.rows[place]
            for place in [place for place in medium.uses if place // PLACES_PER_SEGMENT == what]:
                del medium.uses[place]
            medium.openings.pop(what, None)
            self._table.set_clean(what)

    def flush(self) -> Future[None]:
        future: Future[None] = Future()
        if self.dead:
            future.set_result(None)
            return future
        self._flushes.append((future, [job for job in self._jobs if job.entries is not None]))
        self._flush()
        return future

    def _flush(self) -> None:
        """Commit soon if somebody waits for it and what he waits for was written."""
        if any(all(job.future.done() for job in jobs) for _, jobs in self._flushes):
            self._clock.after(self._rng.randrange(1, self._faults.delay_us_max), self._commit)

    # ---- restart ----

    num_dropped = 0

    @property
    def is_released(self) -> bool:
        return self.dead

    def namespaces(self) -> dict[int, str]:
        return dict(self._medium.names)

    def remember_namespace(self, number: int, text: str) -> None:
        self._journal("name", (number, text))

    def quotas(self) -> dict[int, int]:
        return dict(self._medium.quotas)

    def remember_quota(self, number: int, nbytes: int) -> None:
        self._journal("quota", (number, nbytes))

    def note_usage(self, places: Places, last_used_s: NDArray[np.uint32]) -> None:
        assert len(places) == len(last_used_s)
        if not self.dead:
            self._journal("use", dict(zip(places.tolist(), last_used_s.tolist(), strict=True)))

    def recover(self) -> Iterator[tuple[Places, Entries, NDArray[np.uint32]]]:
        assert not self._adopted
        for segment in sorted(self._medium.openings, key=lambda number: self._medium.openings[number]):
            places = sorted(place for place in self._medium.rows if place // PLACES_PER_SEGMENT == segment)
            if places:
                entries = np.array([self._medium.rows[place] for place in places], dtype=ENTRY)
                noted = np.array([self._medium.uses.get(place, 0) for place in places], dtype=np.uint32)
                yield np.array(places, dtype=np.uint32), entries, np.maximum(entries["time_s"], noted)

    def adopt(self, places: Places, nbytes: NDArray[np.uint32]) -> None:
        assert not self._adopted
        self._table.adopt(places, -(-nbytes.astype(np.int64) // 4096))
        self._adopted = True
        rest = self._medium.rows.keys() - set(places.tolist())
        self._journal("forget", [place for place in rest if self._table.holds_blocks(place // PLACES_PER_SEGMENT)])
        self._clean()

    # ---- what the world does to it ----

    def fall_ill(self, duration_us: int) -> None:
        """Not healthy for a while: every block of a batch that ends meanwhile fails, nothing can be allocated."""
        if not self.dead and not self._reason:
            self._reason = "ill"
            self._clock.after(duration_us, self.recuperate)

    def recuperate(self) -> None:
        if not self.dead:
            self._reason = ""

    def copies(self, key: bytes) -> set[int]:
        """Places with a row of this key, committed or on the way, that a power cut might bring back."""
        places = {place for place, row in self._medium.rows.items() if row["key"].tobytes() == key}
        for verb, what in self._changes:
            if verb == "put":
                places.update(p for p, row in zip(what[1], what[2], strict=True) if row["key"].tobytes() == key)
        return places

    def power_cut(self) -> None:
        """Everything that was not committed is gone; a place under a write holds anything."""
        for job in self._jobs:
            for i in range(len(job.places) if job.entries is not None else 0):
                if self._rng.random() < 0.5:
                    self._medium.content[int(job.places[i])] = bytes(self._rng.randbytes(len(job.buffers[i])))
        self.dead = True

    def close(self) -> None:
        """What is not done yet ends as CLOSED; what was written is committed."""
        if self.dead:
            return
        jobs, self._jobs = self._jobs, []
        for job in jobs:
            self._done(job, np.full(len(job.places), Outcome.CLOSED, dtype=np.uint8))
        self._apply_all()
        self._answer(failed=False)
        self.dead, self._reason = True, "closed"
