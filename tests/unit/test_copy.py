"""copy_pieces and the address helpers: every byte copied, none beside it, every bad value refused by name."""

import threading

import numpy as np
import pytest

from kvstore._core import transfer
from kvstore.errors import InvalidRequest

GUARD = 0xA5
GUARD_NBYTES = 128
KERNELS = transfer.kernels()
SIZES = [0, 1, 15, 63, 64, 65, 127, 191, 2047, 2048, 4096, 6145, 12288 + 64, 40000]
BAD_SIZES = [-1, 2.5, "64", None, 2**64]


class Pieces:
    """Guarded memory with equally long pieces in it, each `offset` bytes past the start of a cache line."""

    def __init__(self, num_pieces: int, nbytes: int, offset: int) -> None:
        pitch = (nbytes + 2 * GUARD_NBYTES) // 64 * 64
        self.memory = np.full((num_pieces + 1) * pitch + GUARD_NBYTES, GUARD, dtype=np.uint8)
        first = -self.memory.ctypes.data % 64 + 64 + offset
        self.starts = [first + number * pitch for number in range(num_pieces)]
        self.nbytes = nbytes

    def addresses(self) -> np.ndarray:
        return np.array([self.memory.ctypes.data + start for start in self.starts], dtype=np.uint64)

    def with_contents(self, contents: np.ndarray) -> np.ndarray:
        """The memory as it is to look once piece i holds contents[i]."""
        expected = np.full_like(self.memory, GUARD)
        for start, content in zip(self.starts, contents, strict=True):
            expected[start : start + self.nbytes] = content
        return expected


def two_rows() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    dst, src = np.zeros((2, 64), dtype=np.uint8), np.ones((2, 64), dtype=np.uint8)
    to = transfer.piece_addresses(dst, 64, writable=True)
    return dst, src, to, transfer.piece_addresses(src, 64, writable=False)


def test_kernels_start_with_auto_and_memcpy() -> None:
    assert KERNELS[:2] == ["auto", "memcpy"]
    assert len(set(KERNELS)) == len(KERNELS)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("num_pieces", [1, 3, 4, 7])
def test_every_size_and_alignment_is_copied_exactly(kernel: str, num_pieces: int) -> None:
    rng = np.random.default_rng(num_pieces)
    for nbytes in SIZES:
        contents = rng.integers(0, 256, (num_pieces, nbytes), dtype=np.uint8)
        for dst_offset, src_offset in [(0, 0), (0, 1), (1, 0), (63, 32), (31, 31)]:
            dst, src = Pieces(num_pieces, nbytes, dst_offset), Pieces(num_pieces, nbytes, src_offset)
            src.memory[:] = src.with_contents(contents)
            transfer.copy_pieces(dst.addresses(), src.addresses(), nbytes, kernel)
            assert np.array_equal(dst.memory, dst.with_contents(contents)), (nbytes, dst_offset, src_offset)
            assert np.array_equal(src.memory, src.with_contents(contents))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("num_pieces", "nbytes"), [(700, 192), (1030, 4096), (3, 1 << 20), (9, 300_001)])
def test_gather_and_scatter_of_large_batches(kernel: str, num_pieces: int, nbytes: int) -> None:
    rng = np.random.default_rng(nbytes)
    src = rng.integers(0, 256, (num_pieces, nbytes), dtype=np.uint8)
    order = rng.permutation(num_pieces)
    gathered, scattered = np.zeros_like(src), np.zeros_like(src)
    shuffled = transfer.strided_addresses(src, order, nbytes, writable=False)
    transfer.copy_pieces(transfer.piece_addresses(gathered, nbytes, writable=True), shuffled, nbytes, kernel)
    assert np.array_equal(gathered, src[order])
    to = transfer.strided_addresses(scattered, order, nbytes, writable=True)
    transfer.copy_pieces(to, transfer.piece_addresses(gathered, nbytes, writable=False), nbytes, kernel)
    assert np.array_equal(scattered, src)


def test_read_only_source_and_empty_batch() -> None:
    dst = bytearray(10)
    src = transfer.piece_addresses(b"0123456789", 10, writable=False)
    transfer.copy_pieces(transfer.piece_addresses(dst, 10, writable=True), src, 10)
    assert dst == b"0123456789"
    none = np.empty(0, dtype=np.uint64)
    transfer.copy_pieces(none, none, 1 << 40)


def test_copies_run_in_threads_at_once() -> None:
    src = np.random.default_rng(0).integers(0, 256, (4, 64, 32768), dtype=np.uint8)
    dst = np.zeros_like(src)

    def copy(part: int) -> None:
        to = transfer.piece_addresses(dst[part], 32768, writable=True)
        for _ in range(5):
            transfer.copy_pieces(to, transfer.piece_addresses(src[part], 32768, writable=False), 32768)

    threads = [threading.Thread(target=copy, args=(part,)) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert np.array_equal(dst, src)


@pytest.mark.parametrize("nbytes", BAD_SIZES)
def test_copy_refuses_a_bad_size(nbytes: object) -> None:
    dst, _, to, source = two_rows()
    with pytest.raises(InvalidRequest, match="nbytes"):
        transfer.copy_pieces(to, source, nbytes)  # type: ignore[arg-type]
    assert not dst.any()


@pytest.mark.parametrize("kernel", ["", "AUTO", "fastest", None, 1])
def test_copy_refuses_an_unknown_kernel(kernel: object) -> None:
    dst, _, to, source = two_rows()
    with pytest.raises(InvalidRequest, match="allowed here: auto, memcpy"):
        transfer.copy_pieces(to, source, 64, kernel)  # type: ignore[arg-type]
    assert not dst.any()


@pytest.mark.parametrize(
    "change",
    [
        lambda a: a[:1],
        lambda a: a.astype(np.int64),
        lambda a: a.astype(">u8"),
        lambda a: a.reshape(1, 2),
        lambda a: np.repeat(a, 2)[::2],
        lambda a: a.tolist(),
        lambda a: None,
    ],
)
def test_copy_refuses_what_is_no_array_of_addresses(change: object) -> None:
    dst, _, to, source = two_rows()
    for left, right in [(change(to), source), (to, change(source))]:  # type: ignore[operator]
        with pytest.raises(InvalidRequest, match=r"dst|src"):
            transfer.copy_pieces(left, right, 64)
    assert not dst.any()


def test_copy_refuses_addresses_that_cannot_be_right_before_it_copies_any() -> None:
    dst, _, to, source = two_rows()
    for bad_dst, bad_src in [
        (0, source[1]),
        (to[1], 0),
        (2**64 - 63, source[1]),
        (to[1], 2**64 - 1),
        (to[1], to[1]),
        (to[1], to[1] + np.uint64(63)),
        (to[1] + np.uint64(63), to[1]),
    ]:
        left = np.array([to[0], bad_dst], dtype=np.uint64)
        right = np.array([source[0], bad_src], dtype=np.uint64)
        with pytest.raises(InvalidRequest, match="piece 1 of 64 bytes"):
            transfer.copy_pieces(left, right, 64)
        assert not dst.any()


def test_piece_addresses_step_through_the_buffer() -> None:
    memory = np.zeros((4, 32), dtype=np.float16)
    found = transfer.piece_addresses(memory, 64, writable=True)
    assert found.dtype == np.uint64
    assert found.tolist() == [memory.ctypes.data + 64 * number for number in range(4)]
    assert transfer.piece_addresses(memory[:0], 64, writable=True).size == 0


def test_piece_addresses_refuse_what_cannot_be_cut() -> None:
    memory = np.zeros((4, 64), dtype=np.uint8)
    with pytest.raises(InvalidRequest, match="multiple of piece_nbytes=100"):
        transfer.piece_addresses(memory, 100, writable=True)
    with pytest.raises(InvalidRequest, match="C-contiguous"):
        transfer.piece_addresses(memory[:, :32], 32, writable=False)
    with pytest.raises(InvalidRequest, match="writable"):
        transfer.piece_addresses(bytes(64), 64, writable=True)
    with pytest.raises(InvalidRequest, match="buffer is of type int"):
        transfer.piece_addresses(7, 64, writable=False)  # type: ignore[arg-type]
    for nbytes in [0, *BAD_SIZES]:
        with pytest.raises(InvalidRequest, match="piece_nbytes"):
            transfer.piece_addresses(memory, nbytes, writable=False)  # type: ignore[arg-type]


def test_strided_addresses_follow_the_first_axis_in_any_stride() -> None:
    memory = np.zeros((2, 6, 4, 8), dtype=np.float32)
    base = memory.ctypes.data
    ids = [5, 0, 0, 2]
    half = transfer.strided_addresses(memory[1], ids, 128, writable=True)
    assert half.tolist() == [base + 6 * 128 + number * 128 for number in ids]
    layers = transfer.strided_addresses(memory.swapaxes(0, 1)[:, 1], ids, 128, writable=True)
    assert layers.tolist() == half.tolist()
    backwards = transfer.strided_addresses(memory[0, ::-1], np.array(ids[::-1]), 128, writable=True)
    assert backwards.tolist() == [base + (5 - number) * 128 for number in ids[::-1]]
    assert transfer.strided_addresses(memory[0], [], 128, writable=True).size == 0


def test_strided_addresses_refuse_what_is_out_of_bounds_or_scattered() -> None:
    memory = np.zeros((6, 4, 8), dtype=np.uint8)
    for ids in [[-1], [0, 6], np.array([2**63], dtype=np.uint64)]:
        with pytest.raises(InvalidRequest, match=r"block_ids\[\d\] is .*allowed: 0 to 5"):
            transfer.strided_addresses(memory, ids, 32, writable=True)
    for ids in [[0.5], [[0]], 3, ["a"], [True], [[0], [1, 2]]]:
        with pytest.raises(InvalidRequest, match="block_ids"):
            transfer.strided_addresses(memory, ids, 32, writable=True)
    with pytest.raises(InvalidRequest, match="axis 1 has a stride"):
        transfer.strided_addresses(memory[:, ::2], [0], 16, writable=True)
    with pytest.raises(InvalidRequest, match="axis 2 has a stride"):
        transfer.strided_addresses(memory.swapaxes(1, 2), [0], 32, writable=True)
    with pytest.raises(InvalidRequest, match="32 bytes a block; allowed: piece_nbytes=64"):
        transfer.strided_addresses(memory, [0], 64, writable=True)
    with pytest.raises(InvalidRequest, match="no axis"):
        transfer.strided_addresses(np.array(7), [0], 8, writable=True)
    memory.flags.writeable = False
    with pytest.raises(InvalidRequest, match="writable"):
        transfer.strided_addresses(memory, [0], 32, writable=True)


def test_list_addresses_take_separate_buffers_of_one_size() -> None:
    buffers = [bytearray(64), np.zeros(16, dtype=np.float32), memoryview(bytearray(64))]
    found = transfer.list_addresses(buffers, 64, writable=True)
    assert found.tolist() == [np.frombuffer(buffer, dtype=np.uint8).ctypes.data for buffer in buffers]
    assert transfer.list_addresses([], 64, writable=True).size == 0


def test_list_addresses_name_the_buffer_that_does_not_fit() -> None:
    good = bytearray(64)
    for bad, reason in [(bytearray(63), "63 bytes"), (bytes(64), "writable"), (7, "type int")]:
        with pytest.raises(InvalidRequest, match=rf"buffers\[1\].*{reason}"):
            transfer.list_addresses([good, bad], 64, writable=True)  # type: ignore[list-item]
    good.append(0)  # a buffer still exported could not grow


@pytest.mark.parametrize("wrap", [lambda array: array, memoryview], ids=["array", "memoryview"])
def test_references_to_python_objects_are_never_copied_over(wrap: object) -> None:
    objects = wrap(np.array([object()] * 8, dtype=object))  # type: ignore[operator]
    for call in (
        lambda: transfer.piece_addresses(objects, 8, writable=True),
        lambda: transfer.strided_addresses(objects, [0], 8, writable=True),
        lambda: transfer.list_addresses([objects], 64, writable=True),
    ):
        with pytest.raises(InvalidRequest, match="holds Python objects"):
            call()
