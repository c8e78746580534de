"""Every kernel against numpy on random batches: sizes, alignments, orders, and pieces that touch."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from kvstore._core import transfer

GUARD = 0x5A

sizes = st.one_of(st.integers(0, 300), st.integers(2000, 9000))
gaps = st.lists(st.sampled_from([0, 0, 0, 1, 7, 64, 100]), min_size=1, max_size=24)


def starts_of(gaps: list[int], nbytes: int, offset: int, order: list[int]) -> list[int]:
    """Where each piece starts: after the one before and a gap, dealt out in `order`."""
    laid = np.cumsum([offset, *(gap + nbytes for gap in gaps[:-1])])
    return [int(laid[number]) for number in order]


@given(data=st.data(), kernel=st.sampled_from(transfer.kernels()), nbytes=sizes, src_gaps=gaps)
def test_any_batch_copies_like_numpy(data: st.DataObject, kernel: str, nbytes: int, src_gaps: list[int]) -> None:
    num_pieces = len(src_gaps)
    straight = list(range(num_pieces))
    dst_gaps = data.draw(st.lists(st.sampled_from([0, 0, 3, 64]), min_size=num_pieces, max_size=num_pieces))
    orders = st.one_of(st.just(straight), st.permutations(straight))
    offsets = st.integers(0, 130)
    src_starts = starts_of(src_gaps, nbytes, data.draw(offsets), data.draw(orders))
    dst_starts = starts_of(dst_gaps, nbytes, data.draw(offsets), data.draw(orders))
    src = np.random.default_rng(nbytes).integers(0, 256, 130 + num_pieces * (nbytes + 100), dtype=np.uint8)
    dst = np.full(260 + num_pieces * (nbytes + 64), GUARD, dtype=np.uint8)
    before, expected = src.copy(), dst.copy()
    for to, start in zip(dst_starts, src_starts, strict=True):
        expected[to : to + nbytes] = src[start : start + nbytes]
    transfer.copy_pieces(
        np.array(dst_starts, dtype=np.uint64) + np.uint64(dst.ctypes.data),
        np.array(src_starts, dtype=np.uint64) + np.uint64(src.ctypes.data),
        nbytes,
        kernel,
    )
    assert np.array_equal(dst, expected)
    assert np.array_equal(src, before)
