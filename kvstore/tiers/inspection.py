"""A disk tier's folder looked at from outside, while nobody has it open: what it holds, what is wrong with it, and how
to drop what is wrong. Opening the folder goes by the same rules (docs/formats.md), but reads no block for it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np

from kvstore.errors import Unavailable
from kvstore.tiers.base import PLACE_NBYTES, Outcome
from kvstore.tiers.contents import Contents, Mask
from kvstore.tiers.disk_folder import lock_folder
from kvstore.tiers.findings import EXAMPLES_MAX, Finding, Findings, Kind
from kvstore.tiers.geometry import PLACES_PER_SEGMENT
from kvstore.tiers.lineage import trace
from kvstore.tiers.manifest import change_records, set_aside
from kvstore.tiers.manifest_rows import ROW_KEY, SEGMENT_KEY, pack_row
from kvstore.tiers.segment_files import SegmentFiles
from kvstore.tiers.verifying import verify_blocks

MEDIA_ERRNOS = {errno.EIO, errno.ENODATA, errno.EILSEQ, errno.EREMOTEIO}  # the device has lost it


@dataclass(frozen=True, slots=True)
class Segment:
    """One segment as it was found. `state`: "filled", "dead" (rows, but no block that can be used), "free" (a file and
    no rows), or "unusable" (rows, but no file of the right size)."""

    number: int
    state: str
    num_blocks: int  # that can be used
    live_nbytes: int  # of these, each rounded up to PLACE_NBYTES
    opening: int  # its opening number; 0 without rows
    oldest_s: int  # unix seconds at which its blocks were written; 0 without blocks
    newest_s: int


class Inspection:
    """Owns the folder's lock until it is left. Making one reads the manifest; verify() reads the blocks.

    Errors: Unavailable when `path` holds no disk tier, is in use, or has a manifest of another format.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.findings = Findings()
        self.live: Mask = np.zeros(0, dtype=np.bool_)  # which blocks a start would use; known after verify()
        if not ((path / "manifest").is_dir() and (path / "segments").is_dir()):
            raise Unavailable(f"{path} holds no disk tier; wanted: a folder with manifest/ and segments/ in it")
        try:
            self._descriptor = lock_folder(path)
        except OSError as error:
            raise Unavailable(f"{path} cannot be locked: {error.strerror}") from error
        try:
            self.contents = Contents(path, self.findings)
        except OSError as error:
            self.close()
            raise Unavailable(f"{path} cannot be read: {error}") from error
        except BaseException:
            self.close()
            raise

    @property
    def num_to_verify(self) -> int:
        """How many blocks verify() is going to read."""
        return int(self.contents.good.sum())

    def verify(self, advance: Callable[[int], None]) -> None:
        """Read every block and compare its checksum; `advance` hears how many more are done. Once.

        Errors: Unavailable when segment files cannot be read for a reason that is not their device's.
        """
        contents = self.contents
        picked = np.flatnonzero(contents.good)
        entries = contents.entries[picked]
        places = (contents.segment_of[picked] * PLACES_PER_SEGMENT + entries["offset"]).astype(np.uint32)
        files = SegmentFiles(contents.files_folder, contents.segment_nbytes)
        try:
            outcomes, errnos = verify_blocks(files, places, entries, advance)
        finally:
            files.close()
        contents.blame(picked[outcomes == Outcome.CORRUPT], Kind.BLOCKS_CORRUPT)
        refused = outcomes == Outcome.IO_ERROR
        for number in np.unique(errnos[refused]).tolist():
            if number not in MEDIA_ERRNOS:  # says nothing about the blocks: nothing may be dropped for it
                raise Unavailable(f"{contents.files_folder} cannot be read: {os.strerror(number)}")
        reasons = [os.strerror(int(number)) for number in errnos[refused][:EXAMPLES_MAX]]
        contents.blame(picked[refused], Kind.BLOCKS_UNREADABLE, reasons)
        good = contents.good
        found = trace(contents.entries, good)
        self.live = good & ~(found.lost | found.unreachable | found.repeated)
        contents.blame(np.flatnonzero(found.lost), Kind.BLOCKS_LOST)
        contents.note(np.flatnonzero(found.unreachable), Kind.BLOCKS_UNREACHABLE)
        contents.note(np.flatnonzero(found.repeated), Kind.BLOCKS_REPEATED)

    def segments(self) -> list[Segment]:
        """Every segment that has a file or rows, by number. After verify()."""
        contents, live = self.contents, self.live
        holding = contents.holding
        numbers = np.array(sorted(contents.usable | holding), dtype=np.int64)
        at = np.searchsorted(numbers, contents.segment_of[live])
        times_s = contents.entries["time_s"][live]
        num_blocks = np.bincount(at, minlength=len(numbers))
        live_pages = np.bincount(at, contents.pages[live], minlength=len(numbers)).astype(np.int64)
        newest_s = np.zeros(len(numbers), dtype=np.uint32)
        oldest_s = np.full(len(numbers), np.iinfo(np.uint32).max, dtype=np.uint32)
        np.maximum.at(newest_s, at, times_s)
        np.minimum.at(oldest_s, at, times_s)
        opening = {segment: row.seq for segment, row in contents.rows}
        found = []
        for place, number in enumerate(numbers.tolist()):
            if number not in holding:
                state = "free"
            elif number not in contents.usable:
                state = "unusable"
            else:
                state = "filled" if num_blocks[place] else "dead"
            found.append(
                Segment(
                    number,
                    state,
                    int(num_blocks[place]),
                    int(live_pages[place]) * PLACE_NBYTES,
                    opening.get(number, 0),
                    int(oldest_s[place]) if num_blocks[place] else 0,
                    int(newest_s[place]),
                )
            )
        return found

    def repair(self, now_s: int) -> list[Finding]:
        """Drop everything that has a fault: rows of bad blocks and of what extends them, and records that cannot be
        used; a damaged manifest is set aside as a whole. Returns what was dropped. After verify(). Errors: Unavailable.
        """
        manifest = self.contents.manifest
        try:
            if self.contents.damage:
                set_aside(manifest, now_s, self.contents.damage)
                manifest.mkdir(mode=0o700)
            elif self.findings.faults:
                change_records(manifest, self._changes())
        except OSError as error:
            raise Unavailable(f"{manifest} cannot be changed: {error}") from error
        return self.findings.faults

    def _changes(self) -> list[tuple[bytes, bytes, bytes | None]]:
        """Records to put or, with None, to delete."""
        contents = self.contents
        changes: list[tuple[bytes, bytes, bytes | None]] = []
        changes += [(database, key, None) for database, key in contents.bad_records]
        good = contents.good
        starts = np.searchsorted(contents.row_of, np.arange(len(contents.rows) + 1))
        emptied, kept_in = set(), set()
        for number, (segment, row) in enumerate(contents.rows):
            kept = good[starts[number] : starts[number + 1]]
            key = ROW_KEY.pack(segment, row.batch)
            if kept.any():
                kept_in.add(segment)
                if not kept.all():
                    changes.append((b"rows", key, pack_row(key, row.seq, row.entries[kept])))
            else:
                emptied.add(segment)
                changes.append((b"rows", key, None))
        changes += [(b"usage", SEGMENT_KEY.pack(segment), None) for segment in sorted(emptied - kept_in)]
        return changes

    def close(self) -> None:
        """Let go of the folder. Idempotent."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Inspection:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
