"""Power cuts of the disk tier: what reached its folder is recorded while it works, and for any moment the folder can be
put together again as a device without power may have kept it.

Durable are a segment's bytes and size once an fdatasync that began after their write has ended, names once their folder
was synced, the manifest with each commit. Of all else the disk keeps what it likes: nothing, all, single writes in any
order, single pages of 4 KiB.
"""

from __future__ import annotations

import os
import random
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvstore.tiers import disk_folder, segment_files
from kvstore.tiers.disk_io import DiskIO
from kvstore.tiers.manifest import Manifest
from kvstore.tiers.segment_files import SegmentFiles

MIB = 1 << 20
PAGE_NBYTES = 4096
PAGES = MIB // PAGE_NBYTES  # of a segment
PLACES_PER_SEGMENT = 65_536

Event = tuple[Any, ...]


class Recorder:
    """What a tier does to its folder, as events in the order in which they happened:

    make name; rename old new; unlink name; write transfer segment page versions; done transfer; sync name began;
    folder name began; commit pages. `began`: how many events there were when the sync began. A write is noted before it
    starts, a sync after it ended. Versions are places of 4 KiB pages in `pages`; version 0 is zeros.
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.events: list[Event] = []
        self.pages = [bytes(PAGE_NBYTES)]
        self._manifest: list[bytes] = []
        self._lock = threading.Lock()
        self._watch_names(patch)
        self._watch_writes(patch)
        self._watch_commits(patch)

    def add(self, *event: Any) -> None:
        with self._lock:
            self.events.append(event)

    def _watch_names(self, patch: pytest.MonkeyPatch) -> None:
        recorder, init, make = self, SegmentFiles.__init__, SegmentFiles._make

        class RecordedPath(type(Path())):  # type: ignore[misc]
            def rename(self, target: Any) -> Any:
                result = super().rename(target)
                recorder.add("rename", self.name, Path(target).name)
                return result

            def unlink(self, missing_ok: bool = False) -> None:
                super().unlink(missing_ok)
                recorder.add("unlink", self.name)

        def recorded_make(files: SegmentFiles, path: Path) -> int:
            descriptor = make(files, path)
            recorder.add("make", path.name)
            return descriptor

        patch.setattr(SegmentFiles, "__init__", lambda files, folder, *rest: init(files, RecordedPath(folder), *rest))
        patch.setattr(SegmentFiles, "_make", recorded_make)
        patch.setattr(segment_files, "os", RecordedOs(self))
        patch.setattr(disk_folder, "os", RecordedOs(self))

    def _watch_writes(self, patch: pytest.MonkeyPatch) -> None:
        begin, end = DiskIO._begin, DiskIO._end

        def recorded_begin(io: DiskIO, transfer: Any, descriptors: Any) -> None:
            if transfer.writing:
                for place, buffer in zip(transfer.places.tolist(), transfer.buffers, strict=True):
                    segment, page = divmod(place, PLACES_PER_SEGMENT)
                    self.add("write", id(transfer.future), segment, page, self._kept(bytes(buffer)))
            begin(io, transfer, descriptors)

        def recorded_end(io: DiskIO, transfer: Any, result: Any) -> None:
            if transfer.writing:
                self.add("done", id(transfer.future))
            end(io, transfer, result)

        patch.setattr(DiskIO, "_begin", recorded_begin)
        patch.setattr(DiskIO, "_end", recorded_end)

    def _kept(self, block: bytes) -> list[int]:
        with self._lock:
            first = len(self.pages)
            for start in range(0, len(block), PAGE_NBYTES):
                self.pages.append(block[start : start + PAGE_NBYTES].ljust(PAGE_NBYTES, b"\0"))
            return list(range(first, len(self.pages)))

    def _watch_commits(self, patch: pytest.MonkeyPatch) -> None:
        for name in ("apply", "initialise"):
            original = getattr(Manifest, name)

            def recorded(manifest: Manifest, *arguments: Any, _original: Any = original) -> None:
                _original(manifest, *arguments)
                self._commit(manifest._path / "data.mdb")

            patch.setattr(Manifest, name, recorded)

    def _commit(self, path: Path) -> None:
        data = path.read_bytes()
        now = [data[start : start + PAGE_NBYTES] for start in range(0, len(data), PAGE_NBYTES)]
        before = self._manifest + [b""] * (len(now) - len(self._manifest))
        self._manifest = now
        self.add("commit", {number: page for number, page in enumerate(now) if page != before[number]})


class RecordedOs:
    """The os module for code that opens files, with its syncs recorded."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._names: dict[int, str] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def open(self, path: Path, flags: int, mode: int = 0o777) -> int:
        descriptor = os.open(path, flags, mode)
        self._names[descriptor] = path.name
        return descriptor

    def fdatasync(self, descriptor: int) -> None:
        began = len(self._recorder.events)
        os.fdatasync(descriptor)
        self._recorder.add("sync", self._names[descriptor], began)

    def fsync(self, descriptor: int) -> None:
        began = len(self._recorder.events)
        os.fsync(descriptor)
        self._recorder.add("folder", self._names[descriptor], began)


@dataclass(eq=False)
class File:
    """A segment file whatever its name is: the versions of its pages that are durable."""

    durable: np.ndarray = field(default_factory=lambda: np.zeros(PAGES, dtype=np.int64))
    sized: bool = False  # its length is durable


@dataclass(eq=False)
class Write:
    """Pages that are on their way to the disk."""

    transfer: int
    file: File
    page: int
    versions: list[int]
    done_at: int | None = None


Image = dict[str, tuple[File, np.ndarray | None]]  # name → the file and its pages; None: a file of length 0


class Device:
    """What of the events so far is durable, and what the disk may have kept."""

    def __init__(self, folder: Path) -> None:
        self._manifest: list[bytes] = []
        self._synced: set[str] = set()  # folders whose names are durable
        self._ways = {"manifest", folder.name, folder.parent.name}  # to the manifest
        self._num_events = 0
        self._now: dict[str, File] = {}  # as the process sees it
        self._durable: dict[str, File] = {}
        self._names: list[tuple[int, File, str, str]] = []  # not durable: event, file, old name, new name
        self._writes: list[Write] = []

    def apply(self, event: Event) -> None:
        """One more event has happened. AssertionError for one that must not."""
        kind, *rest = event
        getattr(self, f"_on_{kind}", lambda *_: None)(*rest)
        self._num_events += 1

    def _rename_to(self, file: File, old: str, new: str) -> None:
        self._names.append((self._num_events, file, old, new))
        move(self._now, file, old, new)

    def _on_make(self, name: str) -> None:
        self._rename_to(File(), "", name)

    def _on_unlink(self, name: str) -> None:
        if name in self._now:
            self._rename_to(self._now[name], name, "")

    def _on_rename(self, old: str, new: str) -> None:
        assert self._now[old].sized, f"{new} looks like a finished file before it is one"
        self._rename_to(self._now[old], old, new)

    def _on_write(self, transfer: int, segment: int, page: int, versions: list[int]) -> None:
        self._writes.append(Write(transfer, self._now[f"{segment:05d}.seg"], page, versions))

    def _on_done(self, transfer: int) -> None:
        for write in self._writes:
            if write.transfer == transfer and write.done_at is None:
                write.done_at = self._num_events

    def _on_sync(self, name: str, began: int) -> None:
        file = self._now[name]
        file.sized = True
        left = []
        for write in self._writes:
            if write.file is file and write.done_at is not None and write.done_at < began:
                file.durable[write.page : write.page + len(write.versions)] = write.versions
            else:
                left.append(write)
        self._writes = left

    def _on_folder(self, name: str, began: int) -> None:
        self._synced.add(name)
        if name != "segments":
            return
        for _, file, old, new in [change for change in self._names if change[0] < began]:
            move(self._durable, file, old, new)
        self._names = [change for change in self._names if change[0] >= began]

    def _on_commit(self, pages: dict[int, bytes]) -> None:
        self._manifest += [b""] * (max(pages, default=-1) + 1 - len(self._manifest))
        for number, page in pages.items():
            self._manifest[number] = page

    def manifest(self, rng: random.Random) -> list[bytes]:
        """The manifest's pages after a cut at this moment; none when it is not to be found."""
        return self._manifest if self._ways <= self._synced or rng.random() < 0.5 else []

    def segments(self, rng: random.Random) -> Image:
        """The segment files that one disk could hold after a cut at this moment."""
        names = dict(self._durable)
        luck = rng.choice((0.0, 0.5, 1.0))
        for _, file, old, new in self._names:
            if rng.random() < luck:
                move(names, file, old, new)
        contents = self._contents(rng)
        return {
            name: (file, None if not file.sized and rng.random() < 0.5 else contents.get(file, file.durable))
            for name, file in names.items()
        }

    def _contents(self, rng: random.Random) -> dict[File, np.ndarray]:
        """Of files with writes under way: which version of each page the disk has."""
        how = rng.choice(("none", "all", "writes", "pages", "last torn"))
        contents: dict[File, np.ndarray] = {}
        for write in self._writes:
            pages = contents.setdefault(write.file, write.file.durable.copy())
            is_torn = how == "pages" or (how == "last torn" and write is self._writes[-1])
            if how == "none" or (how == "writes" and rng.random() < 0.5):
                continue
            for number, version in enumerate(write.versions, write.page):
                if not is_torn or rng.random() < 0.5:
                    pages[number] = version
        return contents


def move(names: dict[str, File], file: File, old: str, new: str) -> None:
    """Make (no old name), rename, or unlink (no new name)."""
    if old and names.get(old) is file:
        del names[old]
    if new:
        names[new] = file


class Folder:
    """A real folder that is made equal to one image after the other; only what differs is written."""

    def __init__(self, path: Path, pages: list[bytes]) -> None:
        self.path, self._pages = path, pages
        self._segments, self._manifest = path / "segments", path / "manifest"
        self._segments.mkdir(parents=True)
        self._manifest.mkdir()
        self._held: dict[str, tuple[File, np.ndarray]] = {}

    def become(self, image: Image, manifest: list[bytes]) -> None:
        for path in self._manifest.iterdir():
            path.unlink()
        if manifest:
            (self._manifest / "data.mdb").write_bytes(b"".join(manifest))
        there = {path.name for path in self._segments.iterdir()}
        for name in there - {name for name, (_, pages) in image.items() if pages is not None}:
            (self._segments / name).unlink()
        self._held = {name: held for name, held in self._held.items() if name in there and name in image}
        for name, (file, pages) in image.items():
            if pages is None:
                self._held.pop(name, None)
                (self._segments / name).touch()
            else:
                self._fill(name, file, pages)

    def _fill(self, name: str, file: File, pages: np.ndarray) -> None:
        _, old = self._held.get(name, (file, np.full(PAGES, -1)))
        changed = np.flatnonzero(old != pages)
        if changed.size:
            descriptor = os.open(self._segments / name, os.O_RDWR | os.O_CREAT, 0o600)
            os.ftruncate(descriptor, MIB)
            for number in changed.tolist():
                os.pwrite(descriptor, self._pages[pages[number]], number * PAGE_NBYTES)
            os.close(descriptor)
        self._held[name] = (file, pages.copy())
