"""Devices that are full, read-only, broken or silent: memory goes on serving, and everything heals by itself."""

import ctypes
import errno
import logging
import os
import re
import threading

import pytest
from disk_helpers import wait_until
from faulty_disk import EIO, ENOSPC, EROFS, MIB, FaultyDisk

from kvstore.tiers import disk as disk_module
from kvstore.tiers import preparer as preparer_module
from kvstore.tiers.base import Outcome


@pytest.fixture
def disk(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    disk = FaultyDisk(tmp_path)
    yield disk
    disk.close()


def said(caplog, text):
    """How often the log says so."""
    return sum(re.search(text, record.getMessage()) is not None for record in caplog.records)


@pytest.mark.parametrize("code", [EIO, ENOSPC, EROFS])
def test_writes_that_are_refused(disk, caplog, code):
    disk.engine.write_errno = code
    written = disk.put(4, 0)
    assert f"write: {os.strerror(code)}" in disk.rests()
    assert not disk.store.flush(0)
    for prompt in range(1, 5):
        disk.serves_from_memory(prompt)
    for _ in range(3):  # each probe fails
        failed = disk.moved["failed_writes"]
        disk.passes(60)
        wait_until(lambda failed=failed: disk.moved["failed_writes"] > failed)
    disk.engine.write_errno = 0
    disk.recovers()
    assert disk.moved["written_blocks"] == 20
    assert disk.is_right(written)
    assert (said(caplog, "at rest: .* failures in a row"), said(caplog, "can write again")) == (1, 1)


def test_reads_that_are_refused(disk, caplog):
    keys = disk.cold(1)
    disk.engine.read_errno = EIO
    for _ in range(3):
        with disk.ns.lease(keys, deadline_ms=60_000) as lease:
            assert (lease.num_blocks, lease.pending) == (0, 4)
    assert f"read: {os.strerror(EIO)}" in disk.rests()
    num_reads = disk.moved["failed_reads"]
    with disk.ns.lease(keys) as lease:  # nobody is asked, and nobody waits
        assert (lease.num_blocks, lease.pending) == (0, 4)
    match = disk.ns.match(keys)
    assert (match.num_blocks, match.by_tier, match.load_us) == (0, {}, 0)
    assert disk.moved["failed_reads"] == num_reads
    disk.serves_from_memory(2)
    disk.engine.read_errno = 0
    disk.passes(1)
    assert disk.ns.match(keys).by_tier == {"disk": 4}
    assert disk.is_right(keys)
    assert (said(caplog, "at rest: .* failures in a row"), said(caplog, "can read again")) == (1, 1)


def test_what_is_near_is_leased_and_matched_while_the_tier_rests(disk):
    keys = disk.cold(1)
    assert disk.is_right(keys[:2])
    disk.engine.read_errno = EIO
    for _ in range(3):
        disk.ns.lease(keys).release()
    disk.rests()
    assert disk.ns.match(keys).by_tier == {"host": 2}
    with disk.ns.lease(keys) as lease:
        assert (lease.num_blocks, lease.pending) == (2, 2)


def test_data_that_cannot_be_made_durable(disk, caplog):
    disk.sync_errno = EIO
    lost = []
    for prompt in range(3):
        lost.append(disk.put(2, prompt))
        assert not disk.store.flush(60_000)
    assert "sync of segment" in disk.rests() and os.strerror(EIO) in disk.disk["reason"]
    disk.serves_from_memory(10)
    assert not disk.ns.make_durable(lost[0], 100)
    disk.sync_errno = 0
    disk.recovers()
    assert all(disk.is_right(keys) for keys in lost)
    wait_until(lambda: disk.store.flush(60_000))  # no flush was True before all of it was written anew
    named = {entry["key"].tobytes() for entry in disk.named()}
    assert all(key.tobytes() in named for keys in lost for key in keys)
    assert all(disk.is_right(keys) and disk.ns.make_durable(keys, 60_000) for keys in lost)
    assert (said(caplog, "at rest: .* failures in a row"), said(caplog, "can be made durable again")) == (1, 1)


def test_a_manifest_that_cannot_be_committed(disk, caplog, monkeypatch):
    monkeypatch.setattr("kvstore.tiers.journal.RETRY_S", 0.01)
    disk.commit_errno = ENOSPC
    disk.put(4, 0)
    assert not disk.store.flush(60_000)
    assert os.strerror(ENOSPC) in disk.rests()
    disk.passes(1000)  # no half-open probe: the commit itself is tried all the time
    assert not disk.disk["healthy"]
    disk.serves_from_memory(1)
    disk.commit_errno = 0
    disk.recovers()
    assert disk.store.flush(60_000)
    assert (said(caplog, "manifest.*tried again every second"), said(caplog, "manifest can be written again")) == (1, 1)


def test_writes_that_succeed_do_not_hide_a_manifest_that_fails(disk, monkeypatch):
    """Else the changes that wait for it would grow without end."""
    monkeypatch.setattr("kvstore.tiers.journal.RETRY_S", 0.01)
    disk.commit_errno = EIO
    for prompt in range(200):
        disk.serves_from_memory(prompt)
        disk.store.flush(5)
        if not disk.disk["healthy"]:
            break
    assert os.strerror(EIO) in disk.rests()


def test_a_device_that_does_not_answer(disk, caplog):
    keys = disk.cold(1)
    disk.engine.gate.clear()
    with disk.ns.lease(keys, deadline_ms=50) as lease:
        assert (lease.num_blocks, lease.pending) == (0, 4)
        assert not disk.engine.gate.is_set()
    assert disk.disk["healthy"]  # so far it is only slow
    disk.serves_from_memory(2)
    disk.passes(10)
    assert re.match(r"no answer for \d+ s, \d+ transfers under way", disk.rests())
    num_held = disk.engine.num_held
    with disk.ns.lease(keys) as lease:  # without a deadline: and yet nobody waits for what may never come
        assert (lease.num_blocks, lease.pending) == (0, 4)
    assert disk.ns.match(keys).num_blocks == 0
    assert not disk.store.flush(50)
    for prompt in range(3, 8):
        disk.serves_from_memory(prompt)
    assert disk.engine.num_held == num_held  # and nothing more is asked of it
    disk.tier._health.watch()
    disk.tier._health.watch()
    disk.engine.answer()
    disk.recovers()
    assert disk.is_right(keys)
    disk.tier._health.watch()
    assert (said(caplog, "at rest: no answer"), said(caplog, "the device answers again")) == (1, 1)


def test_a_large_transfer_is_not_taken_for_silence(disk):
    health = disk.tier._health
    health.began(10 * 64 * MIB)  # ten seconds' worth
    disk.passes(14)
    assert health.reason() == ""
    disk.passes(2)
    assert "no answer" in health.reason()
    health.ended(result_of(Outcome.OK), 10 * 64 * MIB, writing=False)
    assert health.reason() == ""


def result_of(outcome):
    import numpy as np

    from kvstore.tiers.disk_io import Result

    return Result(np.array([outcome], np.uint8), np.zeros(1, np.uint64), np.zeros(1, np.int32))


def test_closing_on_a_device_that_does_not_answer_ends_and_says_what_is_lost(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(disk_module, "CLOSE_WAIT_S", 0.05)
    disk = FaultyDisk(tmp_path)
    cold = disk.cold(1)
    disk.engine.gate.clear()
    prefetch = disk.ns.prefetch(cold)
    disk.put(4, 2)
    wait_until(lambda: disk.engine.num_held == 2)
    disk.store.close(flush_ms=50)
    assert not disk.engine.gate.is_set()
    assert prefetch.done()
    assert said(caplog, "4 blocks were not written to the disk tier") == 1
    assert said(caplog, "did not answer for 0.05 s when the tier was closed; 2 transfers are left under way") == 1
    assert said(caplog, "8 blocks are still being moved: host memory is not given back") == 1
    disk.engine.answer()
    wait_until(lambda: not any(thread.name == "kvstore-disk-close" for thread in threading.enumerate()))
    disk = FaultyDisk(tmp_path)  # the folder is free, and what was durable is there
    assert disk.is_right(cold)
    disk.close()


def test_closing_says_what_a_refusing_device_did_not_take(tmp_path, caplog):
    disk = FaultyDisk(tmp_path)
    disk.engine.write_errno = EIO
    disk.put(4, 0)
    disk.rests()
    disk.store.close()
    assert said(caplog, "4 blocks were not written to the disk tier") == 1


# ---- file systems without room


def test_no_room_for_another_segment_file(tmp_path, caplog, monkeypatch):
    real, num_made = os.posix_fallocate, 0

    def refuse(descriptor, offset, nbytes):
        nonlocal num_made
        num_made += 1
        if refused and num_made > 5:
            raise OSError(ENOSPC, os.strerror(ENOSPC))
        real(descriptor, offset, nbytes)

    refused = True
    monkeypatch.setattr(os, "posix_fallocate", refuse)
    passed_us = 0  # only the preparer's time
    monkeypatch.setattr(preparer_module, "monotonic_us", lambda: passed_us)
    disk = FaultyDisk(tmp_path)
    for prompt in range(60):
        disk.serves_from_memory(prompt)
        disk.store.flush(2_000)
    assert disk.disk["healthy"] and disk.disk["reason"] == ""
    assert disk.disk["capacity_nbytes"] == 3 * MIB
    assert "No space left" in disk.disk["growth_reason"]
    assert said(caplog, "no more segments for now") == 1
    refused, passed_us = False, preparer_module.NO_ROOM_RETRY_US
    disk.tier._preparer._wake.set()
    wait_until(lambda: disk.disk["growth_reason"] == "" and disk.disk["capacity_nbytes"] == 14 * MIB)
    for prompt in range(100, 130):
        disk.serves_from_memory(prompt)
        disk.store.flush(2_000)
    assert said(caplog, "segments can be made again") == 1
    disk.close()


def test_somebody_who_asks_all_the_time_does_not_put_off_the_next_attempt(tmp_path, monkeypatch):
    monkeypatch.setattr(preparer_module, "NO_ROOM_RETRY_US", 200_000)
    disk = FaultyDisk(tmp_path, free_nbytes_min=1 << 60)
    num_looks, real = 0, disk.tier._files.prepare

    def count(*args):
        nonlocal num_looks
        num_looks += 1
        real(*args)

    monkeypatch.setattr(disk.tier._files, "prepare", count)
    stop = threading.Event()

    def ask():
        while not stop.wait(0.01):
            with disk.tier._lock:
                disk.tier._preparer._wake.set()

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        wait_until(lambda: num_looks >= 2)
    finally:
        stop.set()
        asking.join()
    assert num_looks >= 2
    disk.close()


def test_the_floor_of_the_file_system_is_kept(tmp_path, caplog, monkeypatch):
    free_nbytes = 1 << 40

    def statvfs(path):
        return type("System", (), {"f_bavail": free_nbytes // 4096, "f_frsize": 4096})()

    disk = FaultyDisk(tmp_path, free_nbytes_min=64 * MIB)
    wait_until(lambda: disk.tier._table.num_ready >= 2)
    monkeypatch.setattr(os, "statvfs", statvfs)
    monkeypatch.setattr(preparer_module, "NO_ROOM_RETRY_US", 1_000)
    free_nbytes = 65 * MIB - 4096
    for prompt in range(40):
        disk.serves_from_memory(prompt)
        disk.store.flush(1_000)
    num_files = len(list((tmp_path / "segments").glob("*.seg")))
    assert 2 <= num_files <= 4 and "disk.free_nbytes_min=67108864" in disk.disk["growth_reason"]
    assert said(caplog, "no more segments for now") == 1
    free_nbytes = 65 * MIB
    wait_until(lambda: disk.disk["growth_reason"] == "")
    disk.close()


def test_without_any_room_the_reason_says_why(tmp_path):
    disk = FaultyDisk(tmp_path, free_nbytes_min=1 << 60)
    assert "disk.free_nbytes_min" in disk.rests()
    assert disk.disk["capacity_nbytes"] == 0
    disk.serves_from_memory(0)
    disk.close()


@pytest.fixture
def small_file_system(tmp_path):
    """A tmpfs of 24 MiB of its own; needs root."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"tmpfs", str(tmp_path).encode(), b"tmpfs", 0, b"size=24m") != 0:
        pytest.skip(f"mount of a tmpfs: {os.strerror(ctypes.get_errno())}")
    yield tmp_path
    assert libc.umount2(str(tmp_path).encode(), 2) == 0


def test_a_real_file_system_that_is_full(small_file_system, monkeypatch):
    monkeypatch.setattr(preparer_module, "NO_ROOM_RETRY_US", 1_000)
    disk = FaultyDisk(small_file_system / "tier")
    wait_until(lambda: disk.tier._table.num_ready >= 2)
    ballast = small_file_system / "ballast"
    with ballast.open("wb") as file, pytest.raises(OSError, match="No space left") as refused:
        while True:
            file.write(bytes(64 << 10))
            file.flush()
    assert refused.value.errno == errno.ENOSPC
    for prompt in range(60):
        disk.serves_from_memory(prompt)
        disk.store.flush(500)
    assert disk.moved["defects"] == 0
    ballast.unlink()
    disk.recovers()
    wait_until(lambda: disk.disk["capacity_nbytes"] == 14 * MIB)
    keys = disk.cold(100)  # none of those before, some of which are on disk
    assert disk.is_right(keys)
    disk.store.check()
    disk.close()


# ---- what it runs on


@pytest.mark.parametrize("kind", ["io_uring", "threads"])
def test_the_engine_in_use_is_in_the_stats_and_in_the_log(tmp_path, caplog, monkeypatch, kind):
    from kvstore._core import blockio

    real = blockio.Engine
    if kind == "threads":
        monkeypatch.setattr(blockio, "Engine", lambda num, **options: real(num, **options | {"allow_ring": False}))
    elif real(1).kind != "io_uring":
        pytest.skip(f"io_uring: {real(1).refusal}")
    caplog.set_level(logging.INFO)
    disk = FaultyDisk(tmp_path)
    assert disk.disk["io_engine"] == kind
    assert said(caplog, rf"disk I/O runs on .*{kind}") == 1
    disk.close()
