"""Block I/O in C: alignment, padding, short files, outcomes, and the door's checks."""

from __future__ import annotations

import errno
import mmap
import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from kvstore._core import blockio
from kvstore.errors import InvalidRequest
from kvstore.tiers.base import Outcome
from kvstore.tiers.segment_files import open_direct

GO = np.zeros(1, dtype=np.int32)
PAGE = 4096


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    descriptor = open_direct(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    os.ftruncate(descriptor, 8 << 20)
    yield descriptor
    os.close(descriptor)


def fds_and_offsets(fd: int, *offsets: int) -> tuple[np.ndarray, np.ndarray]:
    return np.full(len(offsets), fd, dtype=np.int32), np.array(offsets, dtype=np.int64)


def raw(tmp_path: Path, offset: int, nbytes: int) -> bytes:
    with open(tmp_path / "file", "rb") as file:
        file.seek(offset)
        return file.read(nbytes)


@pytest.mark.parametrize("nbytes", [1, 511, 4095, 4096, 4097, 65_536, (1 << 20) + 5, (3 << 20) + 8192])
@pytest.mark.parametrize("shift", [0, 1, 512])
@pytest.mark.parametrize("owns_tail", [False, True])
def test_round_trip_at_any_size_and_alignment(
    fd: int, tmp_path: Path, nbytes: int, shift: int, owns_tail: bool
) -> None:
    memory = memoryview(mmap.mmap(-1, 8 << 20))
    memory[:] = b"\xee" * len(memory)
    block = memory[shift : shift + nbytes]
    block[:] = np.random.default_rng(nbytes).bytes(nbytes)
    wanted = bytes(block)
    tails = np.array([owns_tail], dtype=np.uint8)
    fds, offsets = fds_and_offsets(fd, PAGE)
    outcomes, checksums, errnos = blockio.write_blocks(fds, offsets, [block], cancel=GO, tails=tails)
    assert (outcomes.tolist(), errnos.tolist()) == ([Outcome.OK], [0])
    padded_nbytes = -(-nbytes // PAGE) * PAGE
    assert raw(tmp_path, PAGE, padded_nbytes) == wanted + bytes(padded_nbytes - nbytes)
    assert raw(tmp_path, 0, PAGE) == bytes(PAGE)
    assert raw(tmp_path, PAGE + padded_nbytes, PAGE) == bytes(PAGE)
    if not owns_tail:
        assert memory[shift + nbytes] == 0xEE

    block[:] = bytes(nbytes)
    outcomes, errnos = blockio.read_blocks(fds, offsets, checksums, [block], cancel=GO, tails=tails)
    assert (outcomes.tolist(), errnos.tolist()) == ([Outcome.OK], [0])
    assert bytes(block) == wanted
    if not owns_tail:
        assert memory[shift + nbytes] == 0xEE


def test_each_block_has_its_own_outcome(fd: int) -> None:
    fds, offsets = fds_and_offsets(fd, 0, PAGE, 2 * PAGE)
    blocks = [bytes([number]) * 5000 for number in range(3)]
    fds[1] = -1
    outcomes, checksums, errnos = blockio.write_blocks(fds, offsets * 2, blocks, cancel=GO)
    assert outcomes.tolist() == [Outcome.OK, Outcome.IO_ERROR, Outcome.OK]
    assert errnos.tolist() == [0, errno.EBADF, 0]
    assert checksums[1] == 0 and checksums[0] != checksums[2] != 0
    fds[1] = fd
    checksums[2] ^= np.uint64(1)
    buffers = [bytearray(5000) for _ in blocks]
    outcomes, _ = blockio.read_blocks(fds, offsets * 2, checksums, buffers, cancel=GO)
    assert outcomes.tolist() == [Outcome.OK, Outcome.CORRUPT, Outcome.CORRUPT]


def test_a_block_past_the_end_of_the_file_is_corrupt(fd: int) -> None:
    os.ftruncate(fd, 3 * PAGE + 100)
    checksums = np.zeros(3, dtype=np.uint64)
    fds, offsets = fds_and_offsets(fd, 0, 3 * PAGE, 64 * PAGE)
    buffers = [bytearray(8 * PAGE), bytearray(PAGE), bytearray(PAGE)]
    outcomes, errnos = blockio.read_blocks(fds, offsets, checksums, buffers, cancel=GO)
    assert (outcomes.tolist(), errnos.tolist()) == ([Outcome.CORRUPT] * 3, [0] * 3)


def test_a_full_device_refuses(tmp_path: Path) -> None:
    full = os.open("/dev/full", os.O_RDWR)
    try:
        outcomes, _, errnos = blockio.write_blocks(*fds_and_offsets(full, 0), [b"x"], cancel=GO)
        assert (outcomes.tolist(), errnos.tolist()) == ([Outcome.IO_ERROR], [errno.ENOSPC])
        assert blockio.zero_fill(full, 0, PAGE, cancel=GO) == errno.ENOSPC
    finally:
        os.close(full)


def test_deadline_and_cancel_stop_before_a_block(fd: int, tmp_path: Path) -> None:
    where = fds_and_offsets(fd, 0)
    past_us, later_us = time.monotonic_ns() // 1000 - 1, time.monotonic_ns() // 1000 + 60_000_000
    stop = np.ones(1, dtype=np.int32)
    assert blockio.write_blocks(*where, [b"x"], cancel=GO, deadline_us=past_us)[0] == Outcome.TIMEOUT
    assert blockio.write_blocks(*where, [b"x"], cancel=stop, deadline_us=later_us)[0] == Outcome.CLOSED
    assert blockio.zero_fill(fd, 0, PAGE, cancel=stop) == errno.ECANCELED
    assert raw(tmp_path, 0, 1) == b"\0"
    assert blockio.write_blocks(*where, [b"x"], cancel=GO, deadline_us=later_us)[0] == Outcome.OK


def test_empty_batch(fd: int) -> None:
    outcomes, checksums, errnos = blockio.write_blocks(*fds_and_offsets(fd), [], cancel=GO)
    assert len(outcomes) == len(checksums) == len(errnos) == 0
    assert len(blockio.read_blocks(*fds_and_offsets(fd), checksums, [], cancel=GO)[0]) == 0


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"offsets": np.array([100], dtype=np.int64)}, r"offsets\[0\]=100"),
        ({"offsets": np.array([-4096], dtype=np.int64)}, r"offsets\[0\]=-4096"),
        ({"offsets": np.array([0, 0], dtype=np.int64)}, "offsets has 2 elements; allowed: 1"),
        ({"offsets": np.array([0], dtype=np.int32)}, "int64"),
        ({"fds": [3]}, "fds is a list"),
        ({"fds": np.zeros((1, 1), dtype=np.int32)}, "shape"),
        ({"buffers": [b""]}, r"buffers\[0\] is empty"),
        ({"buffers": [bytearray(1), "text"]}, r"buffers\[1\] is str"),
        ({"buffers": [memoryview(bytearray(8))[::2]]}, "contiguous"),
        ({"cancel": np.zeros(2, dtype=np.int32)}, "cancel has 2 elements"),
        ({"tails": np.zeros(2, dtype=np.uint8)}, "tails has 2 elements"),
    ],
)
def test_wrong_values_are_named(fd: int, tmp_path: Path, change: dict[str, object], text: str) -> None:
    fds, offsets = fds_and_offsets(fd, 0)
    given = {"fds": fds, "offsets": offsets, "buffers": [bytearray(b"x")], "cancel": GO, **change}
    with pytest.raises(InvalidRequest, match=text):
        blockio.write_blocks(**given)  # type: ignore[arg-type]
    assert raw(tmp_path, 0, 1) == b"\0"


def test_reading_needs_writable_buffers_and_checksums(fd: int) -> None:
    where = fds_and_offsets(fd, 0)
    with pytest.raises(InvalidRequest, match="writable"):
        blockio.read_blocks(*where, np.zeros(1, dtype=np.uint64), [b"x"], cancel=GO)
    with pytest.raises(InvalidRequest, match="checksums"):
        blockio.read_blocks(*where, np.zeros(2, dtype=np.uint64), [bytearray(1)], cancel=GO)
    with pytest.raises(InvalidRequest, match="nbytes=1"):
        blockio.zero_fill(where[0][0], 0, 1, cancel=GO)


def test_buffers_are_let_go(fd: int) -> None:
    buffer = bytearray(100)
    blockio.write_blocks(*fds_and_offsets(fd, 0), [buffer], cancel=GO)
    buffer.extend(b"x")  # refused while a view of it is open
    with pytest.raises(InvalidRequest):
        blockio.write_blocks(*fds_and_offsets(fd, 1), [buffer], cancel=GO)
    buffer.extend(b"x")
