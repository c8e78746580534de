"""Recovery: what an earlier run left in a durable tier, into an index that is still empty."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from kvstore._core import index as core
from kvstore._core.index import Index
from kvstore.arrays import Ids
from kvstore.errors import InvalidRequest
from kvstore.namespace import NamespaceSpec
from kvstore.recovered import Recovered
from kvstore.tiers.base import DurableTier, Places

if TYPE_CHECKING:
    from kvstore.store import BlockStore

log = logging.getLogger("kvstore")

Adopted = tuple[Places, NDArray[np.uint32], NDArray[np.uint32], Ids]  # places, sizes, last uses, ids


def recover(store: BlockStore, far: DurableTier) -> None:
    """Bring back namespaces, blocks (parents before children), their order."""
    for number, text in far.namespaces().items():
        store.recover_namespace(number, text)
    block_nbytes = store.sizes_by_number()
    empty = np.empty(0, dtype=np.uint32)
    adopted: list[Adopted] = [(empty, empty, empty, empty)]
    rest: list[Recovered] = []
    for part in far.recover():
        found = Recovered(*part)
        known = found.of(block_nbytes)
        store.num_dropped += len(found.places) - len(known.places)
        _adopt(store.index, known, adopted, rest)
    if store.num_dropped:
        log.warning("%d blocks on disk are left out: their namespace is not known", store.num_dropped)
    if rest:  # their parents lie in a later part, or did not come back
        _adopt(store.index, Recovered.joined(rest), adopted, [])
    places, nbytes, last_used_s, ids = (np.concatenate(column) for column in zip(*adopted, strict=True))
    far.adopt(places, nbytes)
    # Least recently used first; of blocks used in the same second, children before parents: a new index numbers
    # blocks in the order in which it takes them in, parents first.
    order = np.lexsort((-ids.astype(np.int64), last_used_s))
    store.mover.recency.adopt(ids[order], last_used_s[order])


def _adopt(index: Index, found: Recovered, adopted: list[Adopted], rest: list[Recovered]) -> None:
    """Into the index; what was taken in goes to `adopted` as columns, what was not to `rest`."""
    rows = found.entries
    ids = index.adopt(rows["key"], rows["parent"], rows["namespace"], found.places, rows["checksum"])
    taken = ids != core.NONE
    if not taken.all():
        rest.append(found.only(~taken))
        found, ids = found.only(taken), ids[taken]
    adopted.append((found.places, np.ascontiguousarray(found.entries["nbytes"]), found.last_used_s, ids))


def spec_or_none(text: str) -> NamespaceSpec | None:
    """What a tier remembered as a namespace, if it can be read."""
    try:
        return NamespaceSpec.from_text(text)
    except InvalidRequest:
        return None
