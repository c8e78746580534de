"""Blocks between the caller's memory and the pieces of a stream."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from kvstore import frames
from kvstore._core import transfer
from kvstore.copying import Located


class Sink(Protocol):
    """Takes the pieces of a Read in order."""

    def take(self, block: int, offset: int, data: memoryview) -> None:
        """Bytes of block number `block` from `offset` on; whole blocks may follow when `offset` is 0."""


class Collected:
    """Keeps the blocks as they arrived: views of the messages, nothing is copied but what was cut."""

    def __init__(self, block_nbytes: int) -> None:
        self._nbytes = block_nbytes
        self._cut = bytearray()
        self.blocks: list[memoryview] = []

    def take(self, block: int, offset: int, data: memoryview) -> None:
        """As Sink."""
        nbytes = self._nbytes
        if offset == 0 and len(data) >= nbytes:
            self.blocks += [data[at : at + nbytes] for at in range(0, len(data), nbytes)]
            return
        if offset == 0:
            self._cut = bytearray(nbytes)
        self._cut[offset : offset + len(data)] = data
        if offset + len(data) == nbytes:
            self.blocks.append(memoryview(self._cut).toreadonly())


class Copied:
    """Copies the blocks to where the caller wants them, as they arrive."""

    def __init__(self, out: Located, block_nbytes: int) -> None:
        self._out, self._nbytes = out, block_nbytes

    def take(self, block: int, offset: int, data: memoryview) -> None:
        """As Sink. Blocks for which the caller has no room are an InvalidRequest."""
        count = max(1, len(data) // self._nbytes)
        self._out.require_room(block + count)
        copy_blocks(self._out, block, offset, data, self._nbytes)


def copy_blocks(out: Located, block: int, offset: int, data: memoryview, block_nbytes: int) -> None:
    """Copy whole blocks, or a stretch of one from `offset` on, to the caller's block number `block` and behind."""
    step = min(len(data), block_nbytes)
    sources = transfer.piece_addresses(data, step, writable=False)
    for piece in out.pieces:
        start, end = max(piece.start, offset), min(piece.start + piece.nbytes, offset + step)
        if start < end:
            targets = piece.addresses[block : block + len(sources)] + np.uint64(start - piece.start)
            transfer.copy_pieces(targets, sources + np.uint64(start - offset), end - start)


def encoded(sources: Located, chosen: Sequence[int], nbytes: int, piece_nbytes: int) -> Iterator[bytes]:
    """The `chosen` ones of the caller's blocks of `nbytes` as messages of at most `piece_nbytes` each."""
    for first, count, offset, size in frames.cuts(nbytes, len(chosen), piece_nbytes):
        end = offset + (nbytes if count > 1 else size)
        views: list[memoryview | bytes] = []
        for number in chosen[first : first + count]:
            views += _stretch(sources, number, offset, end)
        yield frames.encode_data(views)


def _stretch(sources: Located, block: int, start: int, end: int) -> Iterator[memoryview]:
    """Views of one block from `start` up to `end`; `sources.owner` keeps the memory alive."""
    for piece in sources.pieces:
        first, last = max(piece.start, start), min(piece.start + piece.nbytes, end)
        if first < last:
            address = int(piece.addresses[block]) + first - piece.start
            yield memoryview((ctypes.c_char * (last - first)).from_address(address)).cast("B")
