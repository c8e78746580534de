"""Blocks between caller buffers and arena places: shapes are checked here, bytes are moved by _core.transfer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvstore._core import transfer
from kvstore._core.arena import Arena
from kvstore.block import BlockLayout
from kvstore.errors import InvalidRequest
from kvstore.namespace import NamespaceSpec
from kvstore.tiers.base import Places

Addresses = NDArray[np.uint64]
BlockIds = NDArray[np.integer[Any]]


def _array_addresses(array: Any, num_blocks: int, nbytes: int, *, writable: bool) -> Addresses:
    """One address per block of a (≥ num_blocks, nbytes) array, or of a sequence of buffers."""
    if isinstance(array, (list, tuple)):
        if len(array) < num_blocks:
            raise InvalidRequest(f"{len(array)} buffers are too few for {num_blocks} blocks")
        return transfer.list_addresses(array[:num_blocks], nbytes, writable=writable)
    addresses = transfer.piece_addresses(array, nbytes, writable=writable)
    if len(addresses) < num_blocks:
        raise InvalidRequest(f"a buffer of {len(addresses)} blocks of {nbytes} bytes is too small for {num_blocks}")
    return addresses[:num_blocks]


def _in_use(arena: Arena, places: Places) -> memoryview:
    """A view to hold while bytes move: the arena cannot be closed under it. Unavailable when it is closed already."""
    return arena.window(places[:1], 1, readonly=True).views[0]


def _copy(ours: Addresses, theirs: Addresses, nbytes: int, *, into_arena: bool) -> None:
    if into_arena:
        transfer.copy_pieces(ours, theirs, nbytes)
    else:
        transfer.copy_pieces(theirs, ours, nbytes)


def _move(
    arena: Arena,
    places: Places,
    nbytes: int,
    offset: int,
    other: Any,
    layout: BlockLayout | None,
    block_ids: BlockIds | None,
    *,
    into_arena: bool,
) -> None:
    base = arena.addresses(places) + np.uint64(offset)
    if layout is None:
        theirs = _array_addresses(other, len(places), nbytes, writable=not into_arena)
        _copy(base, theirs, nbytes, into_arena=into_arena)
        return
    if block_ids is None or len(block_ids) != len(places):
        given = "none" if block_ids is None else len(block_ids)
        raise InvalidRequest(f"block_ids must name one tensor row for each of {len(places)} blocks, not {given}")
    for tensor, piece_nbytes, start in _pieces(other, layout, nbytes):
        theirs = transfer.strided_addresses(tensor, block_ids, piece_nbytes, writable=not into_arena)
        _copy(base + np.uint64(start), theirs, piece_nbytes, into_arena=into_arena)


def _pieces(tensors: Sequence[Any], layout: BlockLayout, nbytes: int) -> list[tuple[Any, int, int]]:
    """(tensor, bytes of a piece, where it starts in the block), checked whole before anything moves."""
    if layout.block_nbytes != nbytes:
        raise InvalidRequest(f"the layout's pieces make {layout.block_nbytes} bytes, a block has {nbytes}")
    if not isinstance(tensors, (list, tuple)) or len(tensors) != len(layout.pieces):
        raise InvalidRequest(f"the layout has {len(layout.pieces)} pieces: as many tensors are needed")
    starts = np.concatenate([[0], np.cumsum(layout.pieces)[:-1]])
    return [(tensor, piece, int(start)) for tensor, piece, start in zip(tensors, layout.pieces, starts, strict=True)]


def out_of_arena(
    arena: Arena, places: Places, spec: NamespaceSpec, out: Any, layout: BlockLayout | None, block_ids: BlockIds | None
) -> None:
    """Copy whole blocks at `places` to the caller's array or tensors. InvalidRequest when they do not fit."""
    if len(places):
        with _in_use(arena, places):
            _move(arena, places, spec.block_nbytes, 0, out, layout, block_ids, into_arena=False)


def into_arena(
    arena: Arena,
    places: Places,
    spec: NamespaceSpec,
    shard: int,
    blocks: Any,
    layout: BlockLayout | None,
    block_ids: BlockIds | None,
) -> None:
    """Copy one shard's parts from the caller's array or tensors to `places`. InvalidRequest when they do not fit."""
    if len(places):
        offset = shard * spec.part_nbytes
        with _in_use(arena, places):
            _move(arena, places, spec.part_nbytes, offset, blocks, layout, block_ids, into_arena=True)


def source_addresses(blocks: Any, num_blocks: int, nbytes: int) -> Addresses:
    """Where each of `num_blocks` blocks lies in the caller's array or list of buffers; checked before anything is
    reserved. The caller keeps `blocks` alive while the addresses are used."""
    return _array_addresses(blocks, num_blocks, nbytes, writable=False)


def from_addresses(arena: Arena, places: Places, spec: NamespaceSpec, shard: int, sources: Addresses) -> None:
    """Copy one shard's parts from addresses that `source_addresses` gave to `places`."""
    with _in_use(arena, places):
        base = arena.addresses(places) + np.uint64(shard * spec.part_nbytes)
        transfer.copy_pieces(base, sources, spec.part_nbytes)
