"""The disk I/O engine: alignment, padding, short files, outcomes, order, stop; over io_uring and over threads."""

from __future__ import annotations

import errno
import mmap
import os
import select
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvstore._core import blockio
from kvstore._core.blockio import Batch, Engine
from kvstore.errors import InvalidRequest, Unavailable
from kvstore.tiers.base import Outcome
from kvstore.tiers.segment_files import open_direct

GO = np.zeros(1, dtype=np.int32)
PAGE = 4096


@pytest.fixture(params=["io_uring", "threads"])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    made = Engine(3, allow_ring=request.param == "io_uring")
    if made.kind != request.param:
        pytest.skip(f"io_uring is refused here: {made.refusal}")
    yield made
    made.stop()


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    descriptor = open_direct(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    os.ftruncate(descriptor, 8 << 20)
    yield descriptor
    os.close(descriptor)


def fds_and_offsets(fd: int, *offsets: int) -> tuple[np.ndarray, np.ndarray]:
    return np.full(len(offsets), fd, dtype=np.int32), np.array(offsets, dtype=np.int64)


def run(engine: Engine, *arguments: Any, **options: Any) -> Batch:
    batch = Batch(*arguments, **options)
    engine.submit(batch)
    assert engine.take(60_000_000) is batch
    return batch


def raw(tmp_path: Path, offset: int, nbytes: int) -> bytes:
    with open(tmp_path / "file", "rb") as file:
        file.seek(offset)
        return file.read(nbytes)


@pytest.mark.parametrize("nbytes", [1, 511, 4095, 4096, 4097, 65_536, (1 << 20) + 5, (3 << 20) + 8192])
@pytest.mark.parametrize("shift", [0, 1, 512])
def test_round_trip_at_any_size_and_alignment(engine: Engine, fd: int, tmp_path: Path, nbytes: int, shift: int) -> None:
    memory = memoryview(mmap.mmap(-1, 8 << 20))
    memory[:] = b"\xee" * len(memory)
    block = memory[shift : shift + nbytes]
    block[:] = np.random.default_rng(nbytes).bytes(nbytes)
    wanted = bytes(block)
    fds, offsets = fds_and_offsets(fd, PAGE)
    written = run(engine, True, fds, offsets, [block])
    assert (written.outcomes.tolist(), written.errnos.tolist()) == ([Outcome.OK], [0])
    padded_nbytes = -(-nbytes // PAGE) * PAGE
    assert raw(tmp_path, PAGE, padded_nbytes) == wanted + bytes(padded_nbytes - nbytes)
    assert raw(tmp_path, 0, PAGE) == bytes(PAGE)
    assert raw(tmp_path, PAGE + padded_nbytes, PAGE) == bytes(PAGE)
    assert memory[shift + nbytes] == 0xEE

    block[:] = bytes(nbytes)
    read = run(engine, False, fds, offsets, [block], checksums=written.checksums)
    assert (read.outcomes.tolist(), read.errnos.tolist()) == ([Outcome.OK], [0])
    assert bytes(block) == wanted
    assert memory[shift + nbytes] == 0xEE


def test_each_block_has_its_own_outcome(engine: Engine, fd: int) -> None:
    fds, offsets = fds_and_offsets(fd, 0, 2 * PAGE, 4 * PAGE)
    blocks = [bytes([number]) * 5000 for number in range(3)]
    fds[1] = -1
    written = run(engine, True, fds, offsets, blocks)
    assert written.outcomes.tolist() == [Outcome.OK, Outcome.IO_ERROR, Outcome.OK]
    assert written.errnos.tolist() == [0, errno.EBADF, 0]
    assert written.checksums[1] == 0 and written.checksums[0] != written.checksums[2] != 0
    fds[1] = fd
    wanted = written.checksums.copy()
    wanted[2] ^= np.uint64(1)
    read = run(engine, False, fds, offsets, [bytearray(5000) for _ in blocks], checksums=wanted)
    assert read.outcomes.tolist() == [Outcome.OK, Outcome.CORRUPT, Outcome.CORRUPT]


def test_more_blocks_than_depth_from_several_threads(engine: Engine, tmp_path: Path) -> None:
    """Each thread's blocks come back whole, whatever the others do in the meantime."""
    num_threads, num_blocks = 4, 3 * blockio.DEPTH_MAX
    descriptor = os.open(tmp_path / "many", os.O_RDWR | os.O_CREAT)
    os.ftruncate(descriptor, num_threads * num_blocks * 2 * PAGE)
    finished: list[Batch] = []

    def collect() -> None:
        while (batch := engine.take()) is not None:
            finished.append(batch)
            batch.owner.set()

    collector = threading.Thread(target=collect)
    collector.start()
    wrong: list[int] = []

    def work(number: int) -> None:
        offsets = (np.arange(num_blocks, dtype=np.int64) + number * num_blocks) * 2 * PAGE
        fds = np.full(num_blocks, descriptor, dtype=np.int32)
        blocks = [np.random.default_rng((number, i)).bytes(PAGE + 100) for i in range(num_blocks)]
        write_done, read_done = threading.Event(), threading.Event()
        written = Batch(True, fds, offsets, blocks, owner=write_done)
        engine.submit(written)
        assert write_done.wait(60)
        buffers = [bytearray(len(block)) for block in blocks]
        read = Batch(False, fds, offsets, buffers, checksums=written.checksums, owner=read_done)
        engine.submit(read)
        assert read_done.wait(60)
        if read.outcomes.any() or [bytes(buffer) for buffer in buffers] != blocks:
            wrong.append(number)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(num_threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    engine.stop()
    collector.join(60)
    os.close(descriptor)
    assert wrong == [] and len(finished) == 2 * num_threads


def test_a_block_past_the_end_of_the_file_is_corrupt(engine: Engine, fd: int) -> None:
    os.ftruncate(fd, 3 * PAGE + 100)
    fds, offsets = fds_and_offsets(fd, 0, 3 * PAGE, 64 * PAGE)
    buffers = [bytearray(8 * PAGE), bytearray(PAGE), bytearray(PAGE)]
    read = run(engine, False, fds, offsets, buffers, checksums=np.zeros(3, dtype=np.uint64))
    assert (read.outcomes.tolist(), read.errnos.tolist()) == ([Outcome.CORRUPT] * 3, [0] * 3)


def test_a_full_device_refuses(engine: Engine) -> None:
    full = os.open("/dev/full", os.O_RDWR)
    try:
        written = run(engine, True, *fds_and_offsets(full, 0), [b"x"])
        assert (written.outcomes.tolist(), written.errnos.tolist()) == ([Outcome.IO_ERROR], [errno.ENOSPC])
        assert written.checksums.tolist() == [0]
        assert blockio.zero_fill(full, 0, PAGE, cancel=GO) == errno.ENOSPC
    finally:
        os.close(full)


def test_a_passed_deadline_begins_nothing(engine: Engine, fd: int, tmp_path: Path) -> None:
    where = fds_and_offsets(fd, 0)
    now_us = time.monotonic_ns() // 1000
    late = run(engine, True, *where, [b"x"], deadline_us=now_us - 1)
    assert late.outcomes.tolist() == [Outcome.TIMEOUT]
    assert raw(tmp_path, 0, 1) == b"\0"
    in_time = run(engine, True, *where, [b"x"], deadline_us=now_us + 60_000_000)
    assert in_time.outcomes.tolist() == [Outcome.OK]


NUM_MANY = 4096


def many_writes(fd: int) -> Batch:
    """A batch that takes long enough for something to come in between."""
    fds, offsets = fds_and_offsets(fd, *range(0, NUM_MANY * PAGE, PAGE))
    return Batch(True, fds, offsets, [bytes([number % 255 + 1]) * PAGE for number in range(NUM_MANY)])


@pytest.mark.parametrize("verb", ["stop", "cancel"])
def test_stop_and_cancel_close_what_was_not_begun(engine: Engine, fd: int, tmp_path: Path, verb: str) -> None:
    os.ftruncate(fd, 0)
    batch = many_writes(fd)
    engine.submit(batch)
    if verb == "stop":
        engine.stop()
        assert engine.take(0) is batch
        assert engine.take() is None and engine.take(0) is None
        with pytest.raises(Unavailable, match="stopped"):
            engine.submit(Batch(True, *fds_and_offsets(fd, 0), [b"x"]))
    else:
        engine.cancel(batch)
        assert engine.take(60_000_000) is batch
        engine.cancel(batch)  # too late, and harmless
    num_begun = int((batch.outcomes == Outcome.OK).sum())
    assert num_begun < NUM_MANY
    assert batch.outcomes.tolist() == [Outcome.OK] * num_begun + [Outcome.CLOSED] * (NUM_MANY - num_begun)
    assert (batch.checksums != 0).sum() == num_begun
    assert os.fstat(fd).st_size == num_begun * PAGE


def test_reads_do_not_wait_behind_writes(engine: Engine, fd: int) -> None:
    writes = many_writes(fd)
    engine.submit(writes)
    read = Batch(False, *fds_and_offsets(fd, 0), [bytearray(1)], checksums=np.zeros(1, dtype=np.uint64))
    engine.submit(read)
    assert engine.take(60_000_000) is read
    assert engine.take(60_000_000) is writes
    assert not writes.outcomes.any()


def test_the_descriptor_is_readable_while_something_waits(engine: Engine, fd: int) -> None:
    assert select.select([engine.fileno], [], [], 0)[0] == []
    for number in range(2):
        engine.submit(Batch(True, *fds_and_offsets(fd, PAGE * number), [b"x"]))
    for _ in range(2):
        assert select.select([engine.fileno], [], [], 60)[0] == [engine.fileno]
        assert engine.take(60_000_000) is not None
    assert engine.take(0) is None
    assert select.select([engine.fileno], [], [], 0)[0] == []


def test_kind_is_reported_and_threads_are_the_fallback() -> None:
    engine = Engine(2, allow_ring=False)
    assert (engine.kind, engine.refusal) == ("threads", "")
    engine.stop()
    engine.stop()


def test_an_engine_that_is_dropped_lets_everything_go(fd: int) -> None:
    buffer = bytearray(100)
    engine = Engine(2)
    engine.submit(Batch(True, *fds_and_offsets(fd, 0), [buffer]))
    del engine
    buffer.extend(b"x")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"offsets": np.array([100], dtype=np.int64)}, r"offsets\[0\]=100"),
        ({"offsets": np.array([-4096], dtype=np.int64)}, r"offsets\[0\]=-4096"),
        ({"offsets": np.array([0, 0], dtype=np.int64)}, "offsets has 2 elements; allowed: 1"),
        ({"offsets": np.array([0], dtype=np.int32)}, "int64"),
        ({"fds": [3]}, "fds is a list"),
        ({"fds": np.zeros((1, 1), dtype=np.int32)}, "shape"),
        ({"buffers": []}, "0 blocks"),
        ({"buffers": [b""]}, r"buffers\[0\] is empty"),
        ({"buffers": ["text"]}, r"buffers\[0\] is str"),
        ({"buffers": [memoryview(bytearray(8))[::2]]}, "contiguous"),
    ],
)
def test_wrong_values_are_named(fd: int, change: dict[str, object], text: str) -> None:
    fds, offsets = fds_and_offsets(fd, 0)
    given = {"writing": True, "fds": fds, "offsets": offsets, "buffers": [bytearray(b"x")], **change}
    with pytest.raises(InvalidRequest, match=text):
        Batch(**given)  # type: ignore[arg-type]


def test_reading_needs_writable_buffers_and_checksums(engine: Engine, fd: int) -> None:
    where = fds_and_offsets(fd, 0)
    with pytest.raises(InvalidRequest, match="writable"):
        Batch(False, *where, [b"x"], checksums=np.zeros(1, dtype=np.uint64))
    with pytest.raises(InvalidRequest, match="checksums"):
        Batch(False, *where, [bytearray(1)], checksums=np.zeros(2, dtype=np.uint64))
    with pytest.raises(InvalidRequest, match="depth=1"):
        Engine(1, depth=1)
    with pytest.raises(InvalidRequest, match="nbytes=1"):
        blockio.zero_fill(where[0][0], 0, 1, cancel=GO)
    with pytest.raises(InvalidRequest, match="num_threads=0"):
        Engine(0)
    batch = run(engine, True, *where, [b"x"])
    with pytest.raises(InvalidRequest, match="twice"):
        engine.submit(batch)


def test_buffers_are_let_go(engine: Engine, fd: int) -> None:
    buffer = bytearray(100)
    run(engine, True, *fds_and_offsets(fd, 0), [buffer])
    buffer.extend(b"x")  # refused while a view of it is open
    with pytest.raises(InvalidRequest):
        Batch(True, *fds_and_offsets(fd, 1), [buffer])
    buffer.extend(b"x")


def test_zero_fill(fd: int, tmp_path: Path) -> None:
    os.pwrite(os.open(tmp_path / "file", os.O_RDWR), b"x" * (3 << 20), 0)
    assert blockio.zero_fill(fd, PAGE, 2 << 20, cancel=GO) == 0
    assert raw(tmp_path, 0, 3 << 20) == b"x" * PAGE + bytes(2 << 20) + b"x" * ((1 << 20) - PAGE)
    assert blockio.zero_fill(fd, 0, PAGE, cancel=np.ones(1, dtype=np.int32)) == errno.ECANCELED
