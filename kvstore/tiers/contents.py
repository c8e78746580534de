"""What the manifest and the segment files of a folder say, without opening it: every block, and what is wrong with it
as far as can be told without reading its bytes. Changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kvstore.errors import InvalidRequest
from kvstore.namespace import NamespaceSpec
from kvstore.tiers.base import ENTRY, PLACE_NBYTES, Entries
from kvstore.tiers.findings import EXAMPLES_MAX, Findings, Kind
from kvstore.tiers.geometry import NUM_SEGMENTS_MAX, num_pages
from kvstore.tiers.manifest import find_damage, read_records
from kvstore.tiers.manifest_rows import (
    NAMESPACE_KEY,
    NAMESPACE_NUMBER_MAX,
    ROW_KEY,
    SEGMENT_KEY,
    U64,
    USE,
    Row,
    require_format,
    unpack_row,
)
from kvstore.tiers.recovery import overlapping
from kvstore.tiers.segment_files import SegmentFiles

KINDS = list(Kind)
GOOD = 255  # of `faults`: none; others are positions in KINDS

Mask = NDArray[np.bool_]
Positions = NDArray[np.int64]


class Contents:
    """Errors: Unavailable for a manifest of another format, OSError."""

    def __init__(self, folder: Path, findings: Findings) -> None:
        self.findings = findings
        self.manifest = folder / "manifest"
        self.files_folder = folder / "segments"
        self.segment_nbytes = 0  # 0 where there is no manifest that can be read
        self.rows: list[tuple[int, Row]] = []  # (segment, row) in the order in which segments were opened
        self.entries: Entries = np.empty(0, dtype=ENTRY)  # of all rows, one behind the other
        self.row_of: Positions = np.empty(0, dtype=np.int64)  # of each entry
        self.segment_of: Positions = np.empty(0, dtype=np.int64)
        self.faults: NDArray[np.uint8] = np.empty(0, dtype=np.uint8)  # of each entry
        self.bad_records: list[tuple[bytes, bytes]] = []  # (database, key) of what cannot be used at all
        self.usable: set[int] = set()  # segments with a file of the right size
        self.damage = find_damage(self.manifest)
        if not self.damage and (self.manifest / "data.mdb").exists():
            meta = dict(read_records(self.manifest, b"meta"))
            self.damage = require_format(self.manifest, meta)
            if meta and not self.damage:
                self.segment_nbytes = int(U64.unpack(meta[b"segment_nbytes"])[0])
                self._read()
        if self.damage:
            self.findings.add(Kind.MANIFEST_DAMAGED, 1, [self.damage])

    @property
    def good(self) -> Mask:
        """Which entries nothing was found against."""
        good: Mask = self.faults == GOOD
        return good

    @property
    def holding(self) -> set[int]:
        """Segments that have rows."""
        return {segment for segment, _ in self.rows}

    @property
    def pages(self) -> Positions:
        """How many places each block takes."""
        return -(-self.entries["nbytes"].astype(np.int64) // PLACE_NBYTES)

    def blame(self, positions: Positions, kind: Kind, reasons: Sequence[str] = ()) -> None:
        """Say what is wrong with these blocks, which were good so far; `reasons` go with the first of them."""
        self.faults[positions] = KINDS.index(kind)
        self.note(positions, kind, reasons)

    def note(self, positions: Positions, kind: Kind, reasons: Sequence[str] = ()) -> None:
        """Count these blocks without finding fault with them."""
        named = [self.name(int(position)) for position in positions[:EXAMPLES_MAX]]
        for number, reason in enumerate(reasons[: len(named)]):
            named[number] += f": {reason}"
        self.findings.add(kind, len(positions), named)

    def name(self, position: int) -> str:
        """A block for people: where it lies and the beginning of its key."""
        entry = self.entries[position]
        offset = int(entry["offset"]) * PLACE_NBYTES
        return f"segment {self.segment_of[position]} offset {offset:,}: key {bytes(entry['key'][:8]).hex()}…"

    def _read(self) -> None:
        self._read_rows()
        if self.rows:
            self.entries = np.concatenate([row.entries for _, row in self.rows])
            counts = [len(row.entries) for _, row in self.rows]
            self.row_of = np.repeat(np.arange(len(self.rows)), counts)
            self.segment_of = np.repeat([segment for segment, _ in self.rows], counts).astype(np.int64)
        self.faults = np.full(len(self.entries), GOOD, dtype=np.uint8)
        self._match_files()
        self._match_places()
        self._match_namespaces(self._read_namespaces())
        self._read_uses_and_quotas()

    def _read_rows(self) -> None:
        found: list[tuple[int, Row]] = []
        for key, value in read_records(self.manifest, b"rows"):
            row = unpack_row(key, value)
            if row is None:
                self._reject(b"rows", key, Kind.ROWS_MALFORMED, _row_name(key))
            else:
                found.append((int(ROW_KEY.unpack(key)[0]), row))
        newest: dict[int, int] = {}
        for segment, row in found:
            newest[segment] = max(row.seq, newest.get(segment, 0))
        for segment, row in found:
            if row.seq == newest[segment]:
                self.rows.append((segment, row))
            else:
                key = ROW_KEY.pack(segment, row.batch)
                self._reject(b"rows", key, Kind.ROWS_OUTDATED, f"{_row_name(key)} of opening {row.seq}")
        self.rows.sort(key=lambda item: (item[1].seq, item[0], item[1].batch))

    def _match_files(self) -> None:
        """Segments with rows need a file of the right size; files that are no segment's are left over."""
        files = SegmentFiles(self.files_folder, self.segment_nbytes)
        self.usable = files.existing(NUM_SEGMENTS_MAX)
        lost = sorted(self.holding - self.usable)
        for segment in lost:
            path = files.path(segment)
            if path.exists():
                sizes = f"{path.name} has {path.stat().st_size:,} bytes, not {self.segment_nbytes:,}"
                self.findings.add(Kind.SEGMENTS_MISSIZED, 1, [sizes])
            else:
                self.findings.add(Kind.SEGMENTS_MISSING, 1, [path.name])
        self.blame(np.flatnonzero(np.isin(self.segment_of, lost)), Kind.BLOCKS_WITHOUT_FILE)
        wanted = {files.path(segment).name for segment in self.usable | set(lost)}
        others = sorted(path.name for path in self.files_folder.glob("*.seg*") if path.name not in wanted)
        self.findings.add(Kind.LEFT_OVER, len(others), others)

    def _match_places(self) -> None:
        """Blocks lie inside their segment and apart from one another."""
        starts = self.entries["offset"].astype(np.int64)
        ends = starts + self.pages
        inside = (ends > starts) & (ends <= num_pages(self.segment_nbytes))
        self.blame(np.flatnonzero(self.good & ~inside), Kind.BLOCKS_OUTSIDE)
        picked = np.flatnonzero(self.good)
        order = picked[np.lexsort((starts[picked], self.segment_of[picked]))]
        shift = self.segment_of[order] << 20  # further apart than any block of a segment reaches
        touching = order[overlapping(starts[order] + shift, ends[order] + shift)]
        self.blame(np.sort(touching), Kind.BLOCKS_OVERLAPPING)

    def _read_namespaces(self) -> dict[int, NamespaceSpec]:
        specs = {}
        for key, value in read_records(self.manifest, b"namespaces"):
            number = int(NAMESPACE_KEY.unpack(key)[0]) if len(key) == NAMESPACE_KEY.size else -1
            if not 1 <= number <= NAMESPACE_NUMBER_MAX:
                self._reject(b"namespaces", key, Kind.NAMESPACES_UNREADABLE, f"key {key.hex()}")
                continue
            try:
                specs[number] = NamespaceSpec.from_text(value.decode(errors="replace"))
            except InvalidRequest as error:
                self._reject(b"namespaces", key, Kind.NAMESPACES_UNREADABLE, f"number {number}: {error!s:.80}")
        return specs

    def _match_namespaces(self, specs: dict[int, NamespaceSpec]) -> None:
        """Blocks have a namespace that can be read, and its size."""
        numbers = self.entries["namespace"]
        sizes = np.zeros(len(numbers), dtype=np.int64)
        for number, spec in specs.items():
            sizes[numbers == number] = spec.block_nbytes
        self.blame(np.flatnonzero(self.good & (sizes == 0)), Kind.BLOCKS_UNKNOWN)
        self.blame(np.flatnonzero(self.good & (sizes != self.entries["nbytes"])), Kind.BLOCKS_MISSIZED)

    def _read_uses_and_quotas(self) -> None:
        for key, value in read_records(self.manifest, b"usage"):
            if len(key) != SEGMENT_KEY.size or len(value) % USE.itemsize:
                self._reject(b"usage", key, Kind.USES_MALFORMED, f"key {key.hex()}")
        for key, value in read_records(self.manifest, b"quotas"):
            if len(key) != NAMESPACE_KEY.size or len(value) != U64.size:
                self._reject(b"quotas", key, Kind.QUOTAS_MALFORMED, f"key {key.hex()}")

    def _reject(self, database: bytes, key: bytes, kind: Kind, name: str) -> None:
        self.bad_records.append((database, key))
        self.findings.add(kind, 1, [name])


def _row_name(key: bytes) -> str:
    """A row for people."""
    if len(key) != ROW_KEY.size:
        return f"key {key.hex()}"
    segment, batch = ROW_KEY.unpack(key)
    return f"segment {segment} row {batch}"
