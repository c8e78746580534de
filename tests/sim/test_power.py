"""The disk tier without power: every moment of a load, and what the disk may have kept of it by then.

POWER_SEED=<n> draws another load (and other luck of the disk), POWER_EVENTS=<n> a longer one.
"""

from __future__ import annotations

import os
import random
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from kvstore._core import blockio
from kvstore.tiers import preparer
from kvstore.tiers.changes import Clean, Forget
from kvstore.tiers.disk import DiskTier
from kvstore.tiers.disk_folder import DiskFolder
from kvstore.tiers.journal import Journal
from kvstore.tiers.segment_files import SegmentFiles
from sim.power import MIB, Device, Folder, Recorder
from sim.power_load import CAPACITIES, Expected, Load, check

SEED = int(os.environ.get("POWER_SEED", time.time_ns() // 1_000_000))
NUM_EVENTS = int(os.environ.get("POWER_EVENTS", "3000"))
MEMORY = Path("/dev/shm")
RECORDED = "recorded"
LOADS_MAX = 6  # a broken order shows only where the load comes to it


@pytest.fixture
def folder() -> Iterator[Path]:
    """In memory where that can be had: what is durable is decided here, not by the machine's disk."""
    with tempfile.TemporaryDirectory(dir=MEMORY if os.access(MEMORY, os.W_OK) else None) as path:
        yield Path(path)


def recorded(folder: Path, seed: int, num_events: int, break_it: Callable[[pytest.MonkeyPatch], None]) -> Recorder:
    with pytest.MonkeyPatch.context() as patch:
        break_it(patch)
        recorder = Recorder(patch)
        Load(folder, recorder, random.Random(seed)).run(num_events)
    return recorder


def cut_everywhere(recorder: Recorder, path: Path, seed: int) -> tuple[int, int]:
    """Cut the power after every event: the number of cuts, and of blocks that had to be there, all cuts together."""
    device, expected, folder = Device(path.parent / RECORDED), Expected(), Folder(path, recorder.pages)
    num_cuts = num_kept = 0
    for number, event in enumerate(recorder.events):
        try:
            device.apply(event)
            expected.apply(event)
            if event[0] in ("free", "flush", "done"):
                continue  # nothing reached the disk
            rng = random.Random(f"{seed}/{number}")
            folder.become(device.segments(rng), device.manifest(rng))
            tier = DiskTier(path, capacity_nbytes=CAPACITIES[1], segment_nbytes=MIB, io_threads=1)
            try:
                check(tier, expected)
            finally:
                tier.close()
        except BaseException as error:
            raise AssertionError(f"POWER_SEED={seed}: cut after event {number} ({event[0]}): {error}") from error
        num_cuts += 1
        num_kept += len(expected.kept)
    return num_cuts, num_kept


def test_whenever_power_fails_nothing_flushed_is_lost_and_nothing_wrong_is_found(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    print(f"POWER_SEED={SEED}")
    recorder = recorded(folder / RECORDED, SEED, NUM_EVENTS, lambda _: None)
    monkeypatch.setattr(preparer, "READY_SEGMENTS", 0)  # a tier that is looked at makes no files
    num_cuts, num_kept = cut_everywhere(recorder, folder / "cut", SEED)
    assert num_cuts > NUM_EVENTS / 2 and num_kept > 10 * num_cuts


# ---- what the simulator has to find: each order of the crash protocol, broken


def no_sync_before_the_commit(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SegmentFiles, "sync", lambda files, segment: None)


def segments_overwritten_before_they_are_clean(patch: pytest.MonkeyPatch) -> None:
    def clean(tier: DiskTier) -> None:
        for segment in tier._table.take_to_clean():
            tier._journal.add(Clean(segment))
            tier._table.set_clean(segment)

    patch.setattr(DiskTier, "_clean", clean)
    patch.setattr(DiskTier, "_cleaned", lambda tier, segments: None)


def new_segments_renamed_before_their_sync(patch: pytest.MonkeyPatch) -> None:
    def prepare(files: SegmentFiles, segment: int, cancel: Any) -> None:
        fresh = files.path(segment).with_suffix(".seg-new")
        descriptor = files._make(fresh)
        blockio.zero_fill(descriptor, 0, MIB, cancel=cancel)
        fresh.rename(files.path(segment))
        os.fdatasync(descriptor)
        os.close(descriptor)
        files._sync_folder()

    patch.setattr(SegmentFiles, "prepare", prepare)


def names_not_synced(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SegmentFiles, "_sync_folder", lambda files: None)


def folders_not_synced(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(DiskFolder, "sync", lambda folder: None)


def flush_answering_before_the_commit(patch: pytest.MonkeyPatch) -> None:
    flush = Journal.flush

    def early(journal: Journal, future: Future[None]) -> None:
        later: Future[None] = Future()
        flush(journal, later)
        future.set_result(None)

    patch.setattr(Journal, "flush", early)


def nothing_forgotten(patch: pytest.MonkeyPatch) -> None:
    add = Journal.add

    def forgetful(journal: Journal, change: Any, nbytes: int = 0, *, urgent: bool = False) -> None:
        if not isinstance(change, Forget):
            add(journal, change, nbytes, urgent=urgent)

    patch.setattr(Journal, "add", forgetful)


def rows_before_their_quota(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(DiskTier, "remember_quota", lambda tier, number, nbytes: tier._quotas.update({number: nbytes}))


def rows_before_their_namespace(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(DiskTier, "remember_namespace", lambda tier, number, text: tier._names.update({number: text}))


@pytest.mark.parametrize(
    ("break_it", "complaint"),
    [
        (no_sync_before_the_commit, "CORRUPT|rows could not be used"),
        (segments_overwritten_before_they_are_clean, "CORRUPT"),
        (new_segments_renamed_before_their_sync, "looks like a finished file"),
        (names_not_synced, "rows could not be used"),
        (folders_not_synced, "had been flushed"),
        (flush_answering_before_the_commit, "had been"),
        (nothing_forgotten, "had been forgotten"),
        (rows_before_their_namespace, "no namespace"),
        (rows_before_their_quota, "no quota"),
    ],
)
def test_a_broken_order_is_found(
    folder: Path, monkeypatch: pytest.MonkeyPatch, break_it: Callable[[pytest.MonkeyPatch], None], complaint: str
) -> None:
    complaints = []
    for seed in range(SEED, SEED + LOADS_MAX):
        there = folder / str(seed)
        there.mkdir()
        recorder = recorded(there / RECORDED, seed, NUM_EVENTS, break_it)
        with monkeypatch.context() as patch:
            patch.setattr(preparer, "READY_SEGMENTS", 0)
            try:
                cut_everywhere(recorder, there / "cut", seed)
            except AssertionError as error:
                complaints.append(str(error))
        if any(re.search(complaint, text) for text in complaints):
            return
    pytest.fail(f"{LOADS_MAX} loads never met it; they met {complaints}")
