"""The disk tier: restart, recycling, damage, full devices, folders that cannot be used."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from disk_helpers import (
    CAPACITY_NBYTES,
    MIB,
    content,
    make_entries,
    open_tier,
    read,
    recover,
    recovered_seeds,
    seed_of,
    wait_until,
    write,
)

from kvstore.errors import ConfigInvalid, InvalidRequest, LimitExceeded, Unavailable
from kvstore.tiers.base import Outcome
from kvstore.tiers.breaker import FAILURES_MAX
from kvstore.tiers.disk import DiskTier, capacity_for
from kvstore.tiers.geometry import PLACES_PER_SEGMENT

KIB = 1 << 10
NBYTES = 60 * KIB + 17  # 16 pages with a tail


def segment_file(tier_path: Path, place: int) -> Path:
    return tier_path / "segments" / f"{place // PLACES_PER_SEGMENT:05d}.seg"


def overwrite(tier_path: Path, place: int, shift: int, data: bytes) -> None:
    with open(segment_file(tier_path, place), "r+b") as file:
        file.seek(place % PLACES_PER_SEGMENT * 4096 + shift)
        file.write(data)


# ---- restart


def test_blocks_come_back_in_write_order(tmp_path: Path) -> None:
    tier = open_tier(tmp_path)
    for first in range(0, 40, 4):
        write(tier, range(first, first + 4), NBYTES)
    tier.close()
    tier = open_tier(tmp_path)
    places, entries = recover(tier)
    assert [seed_of(entry) for entry in entries] == list(range(40))
    assert (entries["nbytes"] == NBYTES).all() and (entries["time_s"] > 0).all()
    tier.adopt(places, entries["nbytes"])
    outcomes, buffers = read(tier, places, entries)
    assert outcomes.tolist() == [Outcome.OK] * 40
    assert [bytes(buffer) for buffer in buffers] == [content(seed, NBYTES) for seed in range(40)]
    assert (tier.usage().num_blocks, tier.usage().used_nbytes) == (40, 40 * 16 * 4096)
    assert tier.num_dropped == 0
    tier.close()


def test_what_flush_promised_survives_without_close(tmp_path: Path) -> None:
    child = f"""
import os, sys
sys.path[:0] = {sys.path!r}
from disk_helpers import *
tier = open_tier(Path({str(tmp_path)!r}))
places, entries = write(tier, range(5), {NBYTES})
tier.free(places[:1], {NBYTES}, forget=True)
tier.flush().result(60)
os.kill(os.getpid(), 9)
"""
    assert subprocess.run([sys.executable, "-c", child], timeout=60).returncode == -9
    tier = open_tier(tmp_path)
    places, entries = recover(tier)
    assert [seed_of(entry) for entry in entries] == [1, 2, 3, 4]
    assert read(tier, places, entries)[0].tolist() == [Outcome.OK] * 4
    tier.close()


def test_rows_are_committed_without_being_asked_for(tmp_path: Path) -> None:
    tier = open_tier(tmp_path)
    write(tier, range(3), NBYTES)
    wait_until(lambda: tier._manifest.segments() == [0])
    assert len(tier._manifest.rows(0)[0]) == 1
    tier.close()


def test_removal_is_final_and_eviction_need_not_be(tmp_path: Path) -> None:
    tier = open_tier(tmp_path)
    places, _ = write(tier, range(6), NBYTES)
    tier.flush().result(60)
    tier.free(places[:2], NBYTES, forget=True)
    tier.free(places[2:3], NBYTES)
    tier.flush().result(60)
    tier.close()
    tier = open_tier(tmp_path)
    assert recovered_seeds(tier) == [2, 3, 4, 5]
    tier.close()


def test_a_block_freed_while_it_is_written_gets_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tier = open_tier(tmp_path)
    gate, collected = threading.Event(), tier._io._end

    def wait_and_end(*args: Any) -> None:
        assert gate.wait(60)
        collected(*args)

    monkeypatch.setattr(tier._io, "_end", wait_and_end)
    places, entries = tier.allocate(NBYTES, 2), make_entries([0, 1])
    future = tier.write(places, entries, [memoryview(content(seed, NBYTES)) for seed in (0, 1)])
    tier.free(places[:1], NBYTES, forget=True)
    flushed = tier.flush()
    assert not flushed.done()
    gate.set()
    assert future.result(60).tolist() == [0, 0]
    flushed.result(60)
    tier.close()
    tier = open_tier(tmp_path)
    assert recovered_seeds(tier) == [1]
    tier.close()


def test_recency_and_namespaces_survive(tmp_path: Path) -> None:
    tier = open_tier(tmp_path, time_s=lambda: 1000.0)
    places, _ = write(tier, range(3), NBYTES)
    tier.note_usage(places[:2], np.array([5000, 900], dtype=np.uint32))
    tier.note_usage(places[:1], np.array([6000], dtype=np.uint32))
    tier.remember_namespace(7, "seven")
    tier.remember_namespace(7, "Sieben")
    assert tier.namespaces() == {7: "Sieben"}
    tier.close()
    tier = open_tier(tmp_path)
    [(_, _, last_used_s)] = list(tier.recover())
    assert last_used_s.tolist() == [6000, 1000, 1000]
    assert tier.namespaces() == {7: "Sieben"}
    tier.close()


def test_adopting_is_checked_and_done_once(tmp_path: Path) -> None:
    tier = open_tier(tmp_path)
    write(tier, range(20), NBYTES)
    tier.close()
    tier = open_tier(tmp_path)
    places, entries = recover(tier)
    with pytest.raises(InvalidRequest, match="overlap"):
        tier.adopt(places[[0, 0]], entries["nbytes"][[0, 0]])
    with pytest.raises(InvalidRequest, match="places from recover"):
        tier.adopt(np.array([5 * PLACES_PER_SEGMENT], dtype=np.uint32), np.array([4096], dtype=np.uint32))
    assert tier.usage().num_blocks == 0
    tier.adopt(places[:3], entries["nbytes"][:3])
    assert tier.usage().num_blocks == 3
    with pytest.raises(InvalidRequest, match="second time"):
        tier.adopt(places[3:], entries["nbytes"][3:])
    with pytest.raises(InvalidRequest, match="after adopt"):
        list(tier.recover())
    tier.free(places[:3], NBYTES)
    assert tier.usage().num_blocks == 0
    tier.close()


def test_segments_of_which_nothing_is_adopted_are_recycled(tmp_path: Path) -> None:
    tier = open_tier(tmp_path)
    write(tier, range(20), NBYTES)
    tier.close()
    tier = open_tier(tmp_path)
    tier.adopt(np.empty(0, dtype=np.uint32), np.empty(0, dtype=np.uint32))
    tier.flush().result(60)
    tier.close()
    tier = open_tier(tmp_path)
    assert recovered_seeds(tier) == []
    tier.close()


def test_what_is_not_adopted_never_comes_back(tmp_path: Path) -> None:
    """A block whose parent a crash took was no hit in this life, so that nobody could remove it."""
    tier = open_tier(tmp_path)
    write(tier, range(20), NBYTES)
    tier.close()
    tier = open_tier(tmp_path)
    places, entries = recover(tier)
    tier.adopt(places[5:], entries["nbytes"][5:])
    tier.flush().result(60)
    tier.close()
    tier = open_tier(tmp_path)
    assert recovered_seeds(tier) == list(range(5, 20))
    tier.close()


# ---- recycling


def test_recycling_in_place_never_serves_old_bytes_as_new(tmp_path: Path) -> None:
    tier = open_tier(tmp_path)
    seed, held = 0, {}
    for _ in range(60):  # four times the capacity
        places, entries = write(tier, range(seed, seed + 16), NBYTES)
        for place, entry in zip(places.tolist(), entries, strict=True):
            held[place] = entry
        seed += 16
        drop = np.array(sorted(held, key=lambda place: seed_of(held[place]))[:-32], dtype=np.uint32)
        tier.free(drop, NBYTES)
        for place in drop.tolist():
            del held[place]
    stale_places, stale_entries = places.copy(), entries.copy()
    stale_entries["checksum"] ^= np.uint64(1)
    assert read(tier, stale_places, stale_entries)[0].tolist() == [Outcome.CORRUPT] * 16
    assert len(list((tmp_path / "segments").iterdir())) * MIB <= CAPACITY_NBYTES
    tier.close()
    tier = open_tier(tmp_path)
    places, entries = recover(tier)
    seeds = [seed_of(entry) for entry in entries]
    assert set(seeds) >= set(range(seed - 32, seed)) and len(seeds) == len(set(seeds))
    outcomes, buffers = read(tier, places, entries)
    assert outcomes.tolist() == [Outcome.OK] * len(seeds)
    assert [bytes(buffer) for buffer in buffers] == [content(number, NBYTES) for number in seeds]
    tier.close()


def test_rows_are_gone_before_their_segment_is_given_out_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tier = open_tier(tmp_path, capacity_nbytes=4 * MIB, segment_nbytes=MIB)
    gate, apply = threading.Event(), tier._manifest.apply
    places, _ = write(tier, range(2), MIB)
    tier.flush().result(60)

    def wait_and_apply(changes: object) -> None:
        assert gate.wait(60)
        apply(changes)  # type: ignore[arg-type]

    monkeypatch.setattr(tier._manifest, "apply", wait_and_apply)
    tier.free(places, MIB)
    seen = [int(place) // PLACES_PER_SEGMENT for place in tier.allocate(MIB, 2)]
    assert not set(seen) & {0}  # segment 0 is sealed and emptied; its rows are still there
    tier.free(np.array(seen, dtype=np.uint32) * np.uint32(PLACES_PER_SEGMENT), MIB)
    gate.set()
    tier.flush().result(60)
    assert 0 not in tier._manifest.segments()
    tier.close()


def test_full_vacate_and_room_again(tmp_path: Path) -> None:
    tier = open_tier(tmp_path)
    assert tier.vacate(NBYTES) is None
    places = tier.allocate(64 * KIB, 1000)
    usage = tier.usage()
    assert len(places) == usage.capacity_nbytes // (64 * KIB) == usage.num_blocks
    assert usage.used_nbytes == usage.capacity_nbytes == 14 * MIB
    assert len(tier.allocate(64 * KIB, 1)) == 0
    wait_until(lambda: tier._table.num_ready == 2)  # one that is just being prepared cannot be opened
    tier.free(places[20:24], 64 * KIB)
    wait_until(lambda: len(tier.allocate(64 * KIB, 4)) == 4)  # a segment that is being prepared cannot be opened yet
    first, last = tier.vacate(64 * KIB)
    assert (first, last) == (
        PLACES_PER_SEGMENT,
        PLACES_PER_SEGMENT + 256,
    )  # the segment with four dead blocks
    inside = places[(places >= first) & (places < last)]
    tier.free(np.setdiff1d(inside, places[20:24]).astype(np.uint32), 64 * KIB)
    assert len(tier.allocate(64 * KIB, 1000)) == 12
    tier.close()


# ---- damage


@pytest.mark.parametrize("how", ["torn", "flipped", "zeroed", "truncated", "swapped"])
def test_damaged_blocks_are_corrupt_and_others_are_not(tmp_path: Path, how: str) -> None:
    tier = open_tier(tmp_path)
    places, entries = write(tier, range(6), NBYTES)
    tier.flush().result(60)
    match how:
        case "torn":
            overwrite(tmp_path, places[2], 32 * KIB, content(99, NBYTES - 32 * KIB))
            bad = {2}
        case "flipped":
            overwrite(tmp_path, places[2], NBYTES - 1, bytes([content(2, NBYTES)[-1] ^ 1]))
            bad = {2}
        case "zeroed":
            overwrite(tmp_path, places[2], 0, bytes(NBYTES))
            bad = {2}
        case "truncated":
            os.truncate(segment_file(tmp_path, places[0]), int(places[4]) * 4096 + 100)
            bad = {4, 5}
        case "swapped":
            overwrite(tmp_path, places[2], 0, content(3, NBYTES))
            overwrite(tmp_path, places[3], 0, content(2, NBYTES))
            bad = {2, 3}
    outcomes, buffers = read(tier, places, entries)
    assert {number for number in range(6) if outcomes[number] == Outcome.CORRUPT} == bad
    for number in set(range(6)) - bad:
        assert outcomes[number] == Outcome.OK and bytes(buffers[number]) == content(number, NBYTES)
    tier.close()


@pytest.mark.parametrize("how", ["shorter", "missing"])
def test_a_segment_without_its_file_is_not_recovered(tmp_path: Path, how: str) -> None:
    tier = open_tier(tmp_path)
    places, _ = write(tier, range(20), NBYTES)  # 16 in the first segment
    tier.close()
    if how == "shorter":
        os.truncate(segment_file(tmp_path, 0), MIB - 4096)
    else:
        segment_file(tmp_path, 0).unlink()
    tier = open_tier(tmp_path)
    assert tier.num_dropped == 16
    assert recovered_seeds(tier) == [16, 17, 18, 19]
    tier.adopt(*(value[:0] for value in (places, places)))
    write(tier, range(100, 220), NBYTES)
    tier.close()


def test_less_capacity_removes_segments_and_more_adds_them(tmp_path: Path) -> None:
    tier = open_tier(tmp_path, capacity_nbytes=32 * MIB, segment_nbytes=MIB)
    places, entries = write(tier, range(20 * 16), NBYTES)
    kept = [seed_of(entry) for entry in entries[places < 16 * PLACES_PER_SEGMENT]]
    tier.close()
    tier = open_tier(tmp_path, capacity_nbytes=16 * MIB)
    assert recovered_seeds(tier) == kept and tier.num_dropped == 20 * 16 - len(kept) > 0
    assert {path.stem for path in (tmp_path / "segments").iterdir()} <= {f"{n:05d}" for n in range(16)}
    tier.close()
    tier = open_tier(tmp_path, capacity_nbytes=64 * MIB)
    assert recovered_seeds(tier) == kept and tier.block_nbytes_max == MIB
    assert tier.usage().capacity_nbytes == 57 * MIB
    tier.close()
    with pytest.raises(ConfigInvalid, match="was made with 1048576"):
        open_tier(tmp_path, capacity_nbytes=64 * MIB, segment_nbytes=4 * MIB)


# ---- devices that refuse


def test_a_refusing_device_opens_the_breaker_and_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_us = 10**9
    tier = open_tier(tmp_path, clock_us=lambda: now_us, io_threads=1)
    places, _ = write(tier, range(1), NBYTES)
    full = os.open("/dev/full", os.O_RDWR)
    real = tier._files._idle[0]
    tier._files._idle[0] = full
    entries = make_entries([0])
    for number in range(FAILURES_MAX):
        assert tier.usage().healthy and tier.usage().reason == "", number
        outcomes = tier.write(places, entries, [memoryview(content(0, NBYTES))]).result(60)
        assert outcomes.tolist() == [Outcome.IO_ERROR]
    usage = tier.usage()
    assert not usage.healthy and "No space left on device" in usage.reason
    assert len(tier.allocate(NBYTES, 1)) == 0
    now_us += 1_000_000
    assert tier.usage().healthy and len(tier.allocate(NBYTES, 1)) == 1
    tier.write(places, entries, [memoryview(content(0, NBYTES))]).result(60)
    now_us += 1_999_999
    assert not tier.usage().healthy  # the second pause is twice as long
    now_us += 1
    tier._files._idle[0] = real
    os.close(full)
    outcomes = tier.write(places, entries, [memoryview(content(0, NBYTES))]).result(60)
    assert outcomes.tolist() == [Outcome.OK] and tier.usage().healthy
    tier.close()


def test_a_file_system_without_room_for_more_segments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.posix_fallocate

    def refuse(descriptor: int, offset: int, nbytes: int) -> None:
        if len(list((tmp_path / "segments").iterdir())) > 6:  # counts the file about to be filled
            raise OSError(28, "No space left on device")
        real(descriptor, offset, nbytes)

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    tier = open_tier(tmp_path)
    done, failed = 0, 0
    for seed in range(300):
        places, entries = tier.allocate(NBYTES, 1), make_entries([seed])
        if len(places) == 0:
            break
        [outcome] = tier.write(places, entries, [memoryview(content(seed, NBYTES))]).result(60)
        done, failed = done + (outcome == Outcome.OK), failed + (outcome == Outcome.IO_ERROR)
        if outcome != Outcome.OK:
            tier.free(places, NBYTES)
    assert 4 * 16 <= done <= 6 * 16 and failed <= 1  # six segments; two become the reserve once that is known
    assert tier.usage().capacity_nbytes == 4 * MIB and tier.usage().healthy
    tier.free(np.zeros(1, dtype=np.uint32), NBYTES)  # the first that was written: now its segment is worth emptying
    assert tier.vacate(NBYTES) == (0, 256)
    tier.close()


def test_deadlines_are_in_the_tiers_clock(tmp_path: Path) -> None:
    tier = open_tier(tmp_path, clock_us=lambda: 500)
    places, entries = write(tier, range(1), NBYTES)
    buffer = [memoryview(bytearray(NBYTES))]
    checksums = entries["checksum"].copy()
    assert tier.read(places, checksums, buffer, deadline_us=400).result(60).tolist() == [Outcome.TIMEOUT]
    assert tier.read(places, checksums, buffer, deadline_us=60_000_500).result(60).tolist() == [Outcome.OK]
    tier.close()


# ---- wrong values, closing


def test_wrong_values_change_nothing(tmp_path: Path) -> None:
    tier = open_tier(tmp_path)
    places, entries = write(tier, range(4), NBYTES)
    block = memoryview(content(0, NBYTES))
    before = tier.usage()
    with pytest.raises(InvalidRequest, match="holds no block"):
        tier.free(places + np.uint32(1), NBYTES)
    with pytest.raises(InvalidRequest, match="holds no block"):
        tier.free(places, 2 * NBYTES)
    with pytest.raises(InvalidRequest, match="named twice"):
        tier.free(places[[0, 0]], NBYTES)
    with pytest.raises(InvalidRequest, match="uint32"):
        tier.free(places.astype(np.int64), NBYTES)
    with pytest.raises(InvalidRequest, match="holds no block"):
        tier.write(places[:1], entries[:1], [memoryview(bytes(2 * NBYTES))])
    with pytest.raises(InvalidRequest, match="places has 4 elements; allowed: 1"):
        tier.write(places, entries, [block])
    with pytest.raises(InvalidRequest, match="entries"):
        tier.write(places[:1], entries, [block])
    with pytest.raises(InvalidRequest, match="writable"):
        tier.read(places[:1], entries["checksum"][:1].copy(), [block])
    with pytest.raises(InvalidRequest, match="inside one segment"):
        tier.read(np.array([255], dtype=np.uint32), np.zeros(1, np.uint64), [memoryview(bytearray(8192))])
    with pytest.raises(InvalidRequest, match="nbytes=0"):
        tier.allocate(0, 1)
    with pytest.raises(LimitExceeded, match="largest block is 1048576"):
        tier.allocate(MIB + 1, 1)
    assert tier.usage() == before
    assert read(tier, places, entries)[0].tolist() == [Outcome.OK] * 4
    tier.free(places, NBYTES)
    with pytest.raises(InvalidRequest, match="holds no block"):
        tier.free(places, NBYTES)
    tier.close()


def test_after_close_everything_answers(tmp_path: Path) -> None:
    tier = open_tier(tmp_path)
    places, entries = write(tier, range(2), NBYTES)
    tier.close()
    tier.close()
    assert len(tier.allocate(NBYTES, 1)) == 0 and tier.vacate(NBYTES) is None
    tier.free(places, NBYTES)
    blocks = [memoryview(bytearray(NBYTES)) for _ in places]
    assert tier.write(places, entries, blocks).result(0).tolist() == [Outcome.CLOSED] * 2
    assert tier.read(places, entries["checksum"].copy(), blocks).result(0).tolist() == [Outcome.CLOSED] * 2
    assert tier.flush().result(0) is None
    assert (tier.usage().healthy, tier.usage().reason) == (False, "closed")


# ---- the folder


def test_one_process_at_a_time(tmp_path: Path) -> None:
    tier = open_tier(tmp_path)
    with pytest.raises(Unavailable, match=rf"in use by process {os.getpid()}$"):
        open_tier(tmp_path)
    write(tier, range(1), NBYTES)
    tier.close()
    open_tier(tmp_path).close()


def test_a_path_that_cannot_be_used_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"")
    for path in (file, file / "below"):
        with pytest.raises(ConfigInvalid, match=f"{file} is a file"):
            open_tier(path)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", refuse_mkdir)
        with pytest.raises(Unavailable, match=rf"{tmp_path}/new/tier cannot be used: Read-only file system"):
            open_tier(tmp_path / "new" / "tier")
    with monkeypatch.context() as patch:
        patch.setattr(os, "statvfs", lambda path: os.statvfs_result((4096, 4096, 0, 10, 10, 0, 0, 0, 0, 255)))
        with pytest.raises(LimitExceeded, match=r"room for 40960 bytes of segments; needed: at least 4194304"):
            open_tier(tmp_path / "new" / "tier")
    with monkeypatch.context() as patch:
        patch.setattr("lmdb.open", raise_lmdb_error)
        with pytest.raises(Unavailable, match="cannot be opened"):
            open_tier(tmp_path / "new" / "tier")
    assert os.listdir(tmp_path) == ["file"]


def refuse_mkdir(path: Path, **options: object) -> None:
    raise OSError(30, "Read-only file system", str(path))


def raise_lmdb_error(*args: object, **options: object) -> None:
    import lmdb

    raise lmdb.DiskError("no")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"capacity_nbytes": 16 * MIB - 1}, "at least 16777216"),
        ({"capacity_nbytes": 3 * MIB, "segment_nbytes": MIB}, "from 4194304"),
        ({"segment_nbytes": 3 * MIB}, "power of two"),
        ({"segment_nbytes": 512 * MIB}, "power of two"),
        ({"capacity_nbytes": 1 << 40, "segment_nbytes": MIB}, "to 68719476736"),
        ({"io_threads": 0}, "io_threads=0"),
    ],
)
def test_wrong_sizes_are_refused(tmp_path: Path, options: dict[str, int], text: str) -> None:
    with pytest.raises(ConfigInvalid, match=text):
        open_tier(tmp_path / "tier", **options)
    assert not (tmp_path / "tier").exists()


@pytest.mark.parametrize(("num_blocks", "nbytes"), [(1, 1), (5, 700 * KIB), (33, MIB), (200, NBYTES), (40, 2 * MIB)])
@pytest.mark.parametrize("segment_nbytes", [None, 2 * MIB])
def test_capacity_for_is_enough(tmp_path: Path, num_blocks: int, nbytes: int, segment_nbytes: int | None) -> None:
    capacity_nbytes = capacity_for(num_blocks, nbytes, segment_nbytes)
    tier = DiskTier(tmp_path, capacity_nbytes=capacity_nbytes, segment_nbytes=segment_nbytes)
    assert len(tier.allocate(nbytes, num_blocks)) == num_blocks
    tier.close()


def test_capacity_for_the_impossible() -> None:
    with pytest.raises(LimitExceeded):
        capacity_for(1, (256 << 20) + 1)
    with pytest.raises(InvalidRequest):
        capacity_for(0, 1)
