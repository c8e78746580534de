"""Blocks between caller buffers and arena places: shapes are checked here, bytes are moved by _core.transfer."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvstore._core import transfer
from kvstore._core.arena import Arena
from kvstore.block import BlockLayout
from kvstore.checks import described, whole_number
from kvstore.errors import InvalidRequest
from kvstore.tiers.base import Places

Addresses = NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Piece:
    """One stretch of every block: where it starts in the block, its bytes, and where the caller has it, per block."""

    start: int
    nbytes: int
    addresses: Addresses


@dataclass(frozen=True, slots=True)
class Located:
    """Where the caller's blocks lie. `owner` keeps the memory alive, `what` names it in errors."""

    what: str
    num_blocks: int
    pieces: list[Piece]
    owner: Any

    def rows(self, first: int, last: int) -> Located:
        """The blocks from number `first` up to, not including, `last`."""
        pieces = [Piece(piece.start, piece.nbytes, piece.addresses[first:last]) for piece in self.pieces]
        return Located(self.what, last - first, pieces, self.owner)

    def require(self, num_blocks: int) -> Located:
        """InvalidRequest unless there are exactly so many: with more of them the first ones could be the wrong ones."""
        if self.num_blocks != num_blocks:
            raise InvalidRequest(f"{self.what} are for {self.num_blocks} blocks, not for {num_blocks}")
        return self

    def require_room(self, num_blocks: int) -> Located:
        """InvalidRequest when there are fewer."""
        return self if self.num_blocks > num_blocks else self.require(num_blocks)


def locate(other: Any, nbytes: int, layout: BlockLayout | None, block_ids: Any, *, writable: bool) -> Located:
    """Find blocks of `nbytes` in an array (num_blocks, nbytes), a list of buffers, or rows of one tensor per piece.

    Everything is checked before anything moves. Errors: InvalidRequest.
    """
    if layout is not None:
        return _located_tensors(other, nbytes, layout, block_ids, writable=writable)
    if block_ids is not None:
        raise InvalidRequest(f"block_ids={described(block_ids)} without a layout: give both or none")
    if isinstance(other, (list, tuple)):
        addresses = transfer.list_addresses(other, nbytes, writable=writable)
        return Located("the buffers", len(addresses), [Piece(0, nbytes, addresses)], other)
    _check_rows(other, nbytes)
    addresses = transfer.piece_addresses(other, nbytes, writable=writable)
    return Located("the rows of the array", len(addresses), [Piece(0, nbytes, addresses)], other)


def _check_rows(array: Any, nbytes: int) -> None:
    """An array of more than one axis has a block in each row: the same number of bytes cut in another way is not it."""
    try:
        view = array if isinstance(array, np.ndarray) else memoryview(array)
    except TypeError:
        raise InvalidRequest(f"{described(array)} is neither an array nor a list of buffers") from None
    shape = view.shape or ()
    if not shape or (len(shape) > 1 and prod(shape[1:]) * view.itemsize != nbytes):
        raise InvalidRequest(
            f"an array of shape {shape} and {view.itemsize} bytes an element does not have a block of {nbytes} bytes "
            "in each row"
        )


def _located_tensors(tensors: Any, nbytes: int, layout: BlockLayout, block_ids: Any, *, writable: bool) -> Located:
    if not isinstance(layout, BlockLayout) or not isinstance(layout.pieces, tuple):
        raise InvalidRequest(f"layout={described(layout)} is not a BlockLayout with a tuple of pieces")
    sizes = [whole_number("a piece of the layout", piece, 1, nbytes) for piece in layout.pieces]
    if sum(sizes) != nbytes:
        raise InvalidRequest(f"the layout's pieces make {sum(sizes)} bytes, a block has {nbytes}")
    if not isinstance(tensors, (list, tuple)) or len(tensors) != len(sizes):
        given = len(tensors) if isinstance(tensors, (list, tuple)) else described(tensors)
        raise InvalidRequest(f"the layout has {len(sizes)} pieces: a list of as many tensors is needed, not {given}")
    if block_ids is None:
        raise InvalidRequest("block_ids=None: with a layout they name one tensor row for each block")
    pieces, start = [], 0
    for tensor, size in zip(tensors, sizes, strict=True):
        pieces.append(Piece(start, size, transfer.strided_addresses(tensor, block_ids, size, writable=writable)))
        start += size
    return Located("block_ids", len(pieces[0].addresses), pieces, tensors)


def out_of_arena(arena: Arena, places: Places, out: Located) -> None:
    """Copy whole blocks at `places` to the caller's leading ones."""
    arena.begin_use()
    try:
        for piece in out.pieces:
            theirs = piece.addresses if len(piece.addresses) == len(places) else piece.addresses[: len(places)]
            transfer.copy_pieces(theirs, arena.addresses(places, piece.start), piece.nbytes)
    finally:
        arena.end_use()


def into_arena(arena: Arena, places: Places, offset: int, blocks: Located, chosen: NDArray[np.intp] | None) -> None:
    """Copy the `chosen` ones (None: all) of the caller's blocks to `places`, `offset` bytes in: one shard's part."""
    arena.begin_use()
    try:
        for piece in blocks.pieces:
            theirs = piece.addresses if chosen is None else piece.addresses[chosen]
            transfer.copy_pieces(arena.addresses(places, offset + piece.start), theirs, piece.nbytes)
    finally:
        arena.end_use()
