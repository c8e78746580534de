"""Matching: what of a chain is stored, where, and what having it takes. Protects nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from kvstore._core.index import NONE
from kvstore.arrays import Ids, Keys
from kvstore.block import Match

if TYPE_CHECKING:
    from kvstore.store import BlockStore


def match(store: BlockStore, keys: Keys, ns: int, rate: float | None) -> Match:
    """The longest stored prefix of `keys` that is to be had, without what a caller who computes at `rate` (None: as far
    as is known) has sooner by computing it. Without the lock, unless there is something to leave out."""
    num_blocks, leading, near = store.index.match(keys, ns)
    if near < num_blocks and not store.mover.far_is_well:
        num_blocks = near = leading
    far = num_blocks - near
    if not far or not store.prefill.per_s(ns, rate):
        return Match(num_blocks, _by_tier(store, near, far), store.prefill.load_us(far, ns))
    with store.lock:
        cut = store.prefill.cut(_stored(store, keys[leading:num_blocks], ns), ns, rate, takes=False)
    near = leading + cut.kept - cut.far
    return Match(leading + cut.kept, _by_tier(store, near, cut.far), cut.load_us, cut.skipped, cut.recompute_us)


def _stored(store: BlockStore, keys: Keys, ns: int) -> Ids:
    """Ids up to the first key that is stored no more. Caller holds the lock."""
    ids: Ids = store.index.find(keys, ns)
    gone = np.flatnonzero(ids == NONE)
    return ids[: gone[0]] if len(gone) else ids


def _by_tier(store: BlockStore, near: int, far: int) -> dict[str, int]:
    found = {store.near.name: near, store.far_name: far}
    return {name: num_blocks for name, num_blocks in found.items() if num_blocks}
