"""The disk tier: blocks in recycled segment files, and a manifest that brings them back after a restart.

Nothing is overwritten before the manifest rows that speak of it are durably gone, no row is committed before
its data is durable, and every read is verified; docs/formats.md has the formats and the reasons. Bookkeeping
(segments.py) is guarded by one short lock; data moves on the engine's threads (disk_io.py), the manifest on its own
(journal.py), and one more thread writes new segment files once, ahead of their use.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kvstore.errors import ConfigInvalid, InvalidRequest, LimitExceeded, Unavailable
from kvstore.tiers.base import PLACE_NBYTES, Buffer, Entries, Outcome, Outcomes, Places, Usage, done
from kvstore.tiers.changes import Clean, Forget, Name, Put, Quota, Use
from kvstore.tiers.checks import check_batch, check_entries, check_places, pages_of_buffers
from kvstore.tiers.disk_folder import DiskFolder
from kvstore.tiers.disk_io import DiskIO, Result, Transfer, monotonic_us, when_all_done
from kvstore.tiers.geometry import NUM_SEGMENTS_MIN, PLACES_PER_SEGMENT, Geometry, capacity_for
from kvstore.tiers.health import NO_ROOM_ERRNOS, Health
from kvstore.tiers.holdings import open_holdings
from kvstore.tiers.journal import Journal
from kvstore.tiers.manifest_rows import USE
from kvstore.tiers.preparer import Preparer
from kvstore.tiers.recovery import last_uses, surviving_entries
from kvstore.tiers.segments import State, by_segment

__all__ = ["DiskTier", "capacity_for"]

NAMESPACE_TEXT_NBYTES_MAX = 65_536
CLOSE_WAIT_S = 30.0  # for a device that does not answer

log = logging.getLogger(__name__)


class DiskTier:
    """A durable Tier in a folder of its own (kvstore.tiers.base has the contract).

    `capacity_nbytes` limits the segment files; what blocks may take of it is usage().capacity_nbytes, see
    capacity_for(). `segment_nbytes`: a power of two from 1 MiB to 256 MiB, by default the one the folder was
    made with, else the largest of which there are 16; no block may be larger. No segment file is made that would leave
    the file system less than `free_nbytes_min`. Deadlines are in `clock_us`.
    Reopening: recover(), then adopt() once, then allocate(). Errors: ConfigInvalid, LimitExceeded,
    Unavailable; a tier that cannot be opened leaves nothing behind.
    """

    name = "disk"

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        capacity_nbytes: int,
        segment_nbytes: int | None = None,
        free_nbytes_min: int = 0,
        io_threads: int = 4,
        io_depth: int = 32,
        clock_us: Callable[[], int] = monotonic_us,
        time_s: Callable[[], float] = time.time,
    ) -> None:
        if not 1 <= io_threads <= 256:
            raise ConfigInvalid(f"disk io_threads={io_threads}; allowed: from 1 to 256")
        geometry = Geometry.choose(capacity_nbytes, segment_nbytes)
        self._clock_us, self._time_s = clock_us, time_s
        self._lock = threading.Lock()  # guards the table and what is declared below
        self._closed = False
        self.is_released = False  # every file and the lock are closed
        self._adopted = False
        self._recovered: list[Places] = []  # until adopt()
        self._writing: set[Future[Outcomes]] = set()
        self._folder = DiskFolder(Path(path).absolute(), NUM_SEGMENTS_MIN * geometry.segment_nbytes)
        try:
            held = open_holdings(self._folder, capacity_nbytes, segment_nbytes, free_nbytes_min, int(time_s()))
        except OSError as error:
            self._folder.abandon()
            raise Unavailable(f"disk path {path} cannot be used: {error}") from error
        except BaseException:
            self._folder.abandon()
            raise
        self._manifest, self._geometry, self._files = held.manifest, held.geometry, held.files
        self._table, self._names, self._quotas = held.table, held.names, held.quotas
        self.num_dropped = held.num_dropped  # entries, rows and whole manifests of the folder that cannot be used
        self._health = Health(str(self._folder.path), clock_us)
        self._io = DiskIO(self._files, io_threads, io_depth, watch=self._health.watch)
        if self._io.refusal:
            log.warning("disk I/O runs on %d threads: io_uring is refused (%s)", io_threads, self._io.refusal)
        else:
            log.info("disk I/O runs on %s", self._io.kind)
        self._journal = Journal(self._manifest, self._files.sync, self._cleaned, self._health.reported, self._doubted)
        self._preparer = Preparer(self._table, self._lock, self._files, self._io.cancel)

    @property
    def block_nbytes_max(self) -> int:
        """No larger block can be allocated."""
        return self._geometry.segment_nbytes

    def allocate(self, nbytes: int, num_blocks: int, *, moving: bool = False) -> Places:
        """As the contract says. Errors: InvalidRequest; LimitExceeded above block_nbytes_max."""
        if nbytes < 1 or num_blocks < 0:
            raise InvalidRequest(f"nbytes={nbytes}, num_blocks={num_blocks}; allowed: at least 1 byte, 0 blocks")
        if nbytes > self.block_nbytes_max:
            raise LimitExceeded(f"nbytes={nbytes}; the disk tier's largest block is {self.block_nbytes_max}")
        with self._lock:
            if self._reason():
                return np.empty(0, dtype=np.uint32)
            places = self._table.allocate(nbytes, num_blocks, moving=moving)
            self._clean()
            self._preparer.look()
        return places

    def free(self, places: Places, nbytes: int, *, forget: bool = False) -> None:
        """As the contract says; a forgotten block is gone for good once a later flush() is done.

        Errors: InvalidRequest for a place that holds no block of `nbytes`, and nothing is freed.
        """
        check_places(places)
        with self._lock:
            if self._closed:
                return
            self._table.free(places, nbytes)
            if forget:
                for segment, positions in by_segment(places):
                    self._journal.add(Forget(segment, places[positions] % PLACES_PER_SEGMENT))
            self._clean()

    def write(
        self, places: Places, entries: Entries, buffers: Sequence[Buffer], deadline_us: int | None = None
    ) -> Future[Outcomes]:
        """As the contract says. The entries' offset, nbytes and checksum are filled in, and time_s where it
        is 0.

        Errors: InvalidRequest for places that are not allocated for that size, and nothing is written.
        """
        pages, nbytes = pages_of_buffers(buffers, writable=False)
        check_batch(places, buffers)
        check_entries(entries, len(places))

        def finish(result: Result) -> None:
            self._wrote(result, places, pages, entries)

        with self._lock:
            if self._closed or len(places) == 0:
                return done(np.full(len(places), Outcome.CLOSED, dtype=np.uint8))
            self._table.begin_write(places, pages)
            entries["offset"] = places % PLACES_PER_SEGMENT
            entries["nbytes"] = nbytes
            entries["time_s"][entries["time_s"] == 0] = int(self._time_s())
            no_checksums = np.zeros(len(places), dtype=np.uint64)
            transfer = Transfer(True, places, buffers, no_checksums, self._until_us(deadline_us), finish)
            self._health.began(int(nbytes.sum()))
            self._writing.add(transfer.future)
            transfer.future.add_done_callback(self._forget_writing)
            return self._io.submit(transfer)

    def read(
        self,
        places: Places,
        checksums: NDArray[np.uint64],
        buffers: Sequence[Buffer],
        deadline_us: int | None = None,
    ) -> Future[Outcomes]:
        """As the contract says. Errors: InvalidRequest for what cannot be a place of such a block."""
        pages, nbytes = pages_of_buffers(buffers, writable=True)
        check_batch(places, buffers)
        check_batch(checksums, buffers, name="checksums", dtype=np.dtype(np.uint64))

        def finish(result: Result) -> None:
            self._health.ended(result, int(nbytes.sum()), writing=False)

        outside = places // PLACES_PER_SEGMENT >= self._geometry.num_segments
        outside |= places % PLACES_PER_SEGMENT + pages > self._geometry.pages_per_segment
        if outside.any():
            bad = int(np.flatnonzero(outside)[0])
            raise InvalidRequest(f"places[{bad}]={places[bad]} with {pages[bad]} pages; allowed: inside one segment")
        with self._lock:
            if self._closed or len(places) == 0:
                return done(np.full(len(places), Outcome.CLOSED, dtype=np.uint8))
            transfer = Transfer(False, places, buffers, checksums, self._until_us(deadline_us), finish)
            self._health.began(int(nbytes.sum()))
            return self._io.submit(transfer)

    def vacate(self, nbytes: int) -> tuple[int, int] | None:
        """As the contract says: the sealed segment with the least live bytes, while free segments run low."""
        if nbytes < 1:
            raise InvalidRequest(f"nbytes={nbytes}; allowed: at least 1")
        with self._lock:
            return None if self._closed else self._table.vacate(nbytes)

    def usage(self) -> Usage:
        """As Tier: space, and why nothing can be read or written now."""
        with self._lock:
            reason = self._reason()
            table = self._table
            facts = {
                "io_engine": self._io.kind,
                "io_engine_reason": self._io.refusal,
                "growth_reason": "" if table.absent_usable else self._preparer.refusal,
            }
            doubtful = bool(table.doubtful)
            return Usage(
                table.num_blocks, table.used_nbytes, table.capacity_nbytes, not reason, reason, facts, doubtful
            )

    def flush(self) -> Future[None]:
        """As the contract says. When the manifest or a segment cannot be made durable, the future has
        Unavailable: a flush that only seems done would be a lie."""
        future: Future[None] = Future()
        future.set_running_or_notify_cancel()
        with self._lock:
            if self._closed:
                reason = self._health.not_durable or ("a segment could not be synced" if self._table.doubtful else "")
                if reason:
                    future.set_exception(Unavailable(f"disk tier: not durable: {reason}"))
                else:
                    future.set_result(None)
                return future
            writing = list(self._writing)
        when_all_done(writing, lambda: self._journal.flush(future))
        return future

    def close(self) -> None:
        """As the contract says: blocks not yet begun are CLOSED, what was written is committed. A device that does not
        answer for CLOSE_WAIT_S is left alone, and the folder stays in use until it does or the process ends."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._io.cancel[0] = 1
        closer = threading.Thread(target=self._shut, name="kvstore-disk-close", daemon=True)
        closer.start()
        closer.join(CLOSE_WAIT_S)
        if closer.is_alive():
            self._health.given_up(f"the device did not answer for {CLOSE_WAIT_S:g} s when the tier was closed")

    def _shut(self) -> None:
        """Let go of everything, in the order in which it is used."""
        self._preparer.close()
        self._io.close()
        self._journal.close()
        self._manifest.close()
        self._files.close()
        self._folder.close()
        self.is_released = True

    def recover(self) -> Iterator[tuple[Places, Entries, NDArray[np.uint32]]]:
        """What the folder held when it was opened, in the order it was written, one segment at a time:
        places, their entries, and when each block was last used (its time_s where that was never noted), in
        seconds.

        To be read to its end before adopt(). What cannot be used is left out and counted in num_dropped.
        """
        if self._adopted:
            raise InvalidRequest("recover() after adopt(); allowed: before it")
        for segment in self._manifest.segments():
            if segment >= self._geometry.num_segments or self._table.state[segment] != State.RECOVERED:
                continue
            rows, num_bad_rows = self._manifest.rows(segment)
            entries, num_bad = surviving_entries(rows, self._geometry.pages_per_segment)
            self.num_dropped += num_bad_rows + num_bad
            if len(entries):
                places = (np.uint32(segment * PLACES_PER_SEGMENT) + entries["offset"]).astype(np.uint32)
                self._recovered.append(places)
                yield places, entries, last_uses(entries, self._manifest.uses(segment))

    def adopt(self, places: Places, nbytes: NDArray[np.uint32]) -> None:
        """Take over these recovered blocks as allocated; the rest of what was recovered is dead space from
        now on, and forgotten: a later start must not find what nobody could remove meanwhile.

        To be called once. Errors: InvalidRequest, and nothing is adopted.
        """
        check_places(places)
        check_batch(nbytes, places, name="nbytes", dtype=np.dtype(np.uint32))
        with self._lock:
            if self._adopted:
                raise InvalidRequest("adopt() a second time; allowed: once, with every block that lives")
            self._table.adopt(places, -(-nbytes.astype(np.int64) // PLACE_NBYTES))
            self._adopted = True
            rest = np.setdiff1d(np.concatenate([places[:0], *self._recovered]), places)
            self._recovered.clear()
            for segment, positions in by_segment(rest):
                if self._table.holds_blocks(segment):  # the others lose all their rows
                    self._journal.add(Forget(segment, rest[positions] % PLACES_PER_SEGMENT))
            self._clean()

    def note_usage(self, places: Places, last_used_s: NDArray[np.uint32]) -> None:
        """Remember when these blocks were last used, for recover() after a restart; durable with the next
        flush."""
        check_places(places)
        check_batch(last_used_s, places, name="last_used_s", dtype=np.dtype(np.uint32))
        with self._lock:
            for segment, positions in by_segment(places):
                if self._closed or not self._table.holds_blocks(segment):
                    continue
                rows = np.empty(positions.size, dtype=USE)
                rows["offset"] = places[positions] % PLACES_PER_SEGMENT
                rows["last_used_s"] = last_used_s[positions]
                self._journal.add(Use(segment, rows))

    def remember_namespace(self, number: int, text: str) -> None:
        """Keep `text` under the number that entries carry; durable before any block written after this
        call."""
        if not 0 <= number < 1 << 32:
            raise InvalidRequest(f"number={number}; allowed: from 0 to {(1 << 32) - 1}")
        if len(text.encode()) > NAMESPACE_TEXT_NBYTES_MAX:
            raise LimitExceeded(f"namespace text has more than {NAMESPACE_TEXT_NBYTES_MAX} bytes")
        with self._lock:
            if not self._closed:
                self._names[number] = text
                self._journal.add(Name(number, text))

    def namespaces(self) -> dict[int, str]:
        """As DurableTier: number → text of every namespace that was named."""
        with self._lock:
            return dict(self._names)

    def remember_quota(self, number: int, nbytes: int) -> None:
        """As DurableTier. Errors: InvalidRequest."""
        if not 0 <= number < 1 << 32 or not 0 <= nbytes < 1 << 64:
            raise InvalidRequest(f"number={number}, nbytes={nbytes}; allowed: 32 and 64 bits without sign")
        with self._lock:
            if not self._closed:
                self._quotas[number] = nbytes
                self._journal.add(Quota(number, nbytes))

    def quotas(self) -> dict[int, int]:
        """As DurableTier: number → bytes."""
        with self._lock:
            return dict(self._quotas)

    def _until_us(self, deadline_us: int | None) -> int | None:
        """A deadline of the tier's clock as one of CLOCK_MONOTONIC, which the workers look at."""
        return None if deadline_us is None else max(0, monotonic_us() + deadline_us - self._clock_us())

    def _reason(self) -> str:
        """Why the tier is not healthy; "" when it is. Caller holds the lock."""
        if self._closed:
            return "closed"
        if not self._table.capacity_nbytes:
            return f"no room for segments in the file system of {self._folder.path}: {self._preparer.refusal}"
        return self._health.reason()

    def _clean(self) -> None:
        """Have the rows of emptied segments deleted. Caller holds the lock."""
        for segment in self._table.take_to_clean():
            self._journal.add(Clean(segment), urgent=True)

    def _cleaned(self, segments: list[int]) -> None:
        with self._lock:
            for segment in segments:
                self._table.set_clean(segment)

    def _doubted(self, segments: list[int]) -> None:
        with self._lock:
            for segment in segments:
                self._table.doubt(segment)

    def _forget_writing(self, future: Future[Outcomes]) -> None:
        with self._lock:
            self._writing.discard(future)

    def _wrote(self, result: Result, places: Places, pages: NDArray[np.int64], entries: Entries) -> None:
        """Have rows made for what was written, unless it was freed meanwhile."""
        entries["checksum"] = result.checksums
        with self._lock:
            for segment, positions in by_segment(places):
                living = self._table.end_write(segment, places[positions] % PLACES_PER_SEGMENT, pages[positions])
                if segment in result.refused:
                    code = int(result.errnos[positions].max())
                    if code in NO_ROOM_ERRNOS:
                        self._table.refuse_absent(segment)
                        self._preparer.refuse(OSError(code, os.strerror(code)))
                    continue
                self._table.set_written(segment)
                kept = positions[living & (result.outcomes[positions] == Outcome.OK)]
                if kept.size:
                    # Under the same lock as end_write(): a Clean of this segment can only come after the Put.
                    put = Put(segment, int(self._table.opening[segment]), entries[kept])
                    self._journal.add(put, int(put.entries["nbytes"].sum()))
            self._clean()
        self._health.ended(result, int(entries["nbytes"].sum()), writing=True)
