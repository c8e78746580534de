"""What a store may answer: a dict of blocks by their place in the tree of prompts.

A node is (namespace, path): the path's tokens, one per block. Bytes follow from key and version; every time a block is
written anew it gets another version, so that old bytes can be told from new ones.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kvstore.events import START, Cleared, Removed
from kvstore.workload import check_payloads, fill_payloads

Node = tuple[int, tuple[int, ...]]


def versioned(key: Any, version: int) -> Any:
    changed = key.copy()
    changed[:4] ^= np.frombuffer(version.to_bytes(4, "little"), np.uint8)
    return changed


def payload(key: Any, version: int, nbytes: int) -> Any:
    out = np.empty((1, nbytes), np.uint8)
    fill_payloads(versioned(key, version)[None], out)
    return out[0]


@dataclass
class Reservation:
    """An open room, or a put's part of it: the nodes to fill, and which of them were removed since."""

    room: Any
    ns: int
    shard: int
    nodes: list[Node]
    versions: list[int]
    dead: set[Node] = field(default_factory=set)
    disturbed: bool = False  # something happened that may have undone blocks of it


class Watcher:
    """Knows by events alone which blocks are stored: title of the namespace and key."""

    def __init__(self) -> None:
        self.known: set[tuple[str, bytes]] = set()
        self.position = START

    def look(self, store: Any) -> None:
        """Take in everything that happened since the last time."""
        while (found := store.events(self.position)).events or found.gap:
            self.position = found.position
            if found.gap:
                self.known.clear()
            for event in found.events:
                self._take(event)

    def _take(self, event: Any) -> None:
        if isinstance(event, Cleared):
            self.known = {one for one in self.known if one[0] != event.namespace}
            return
        keys = {(event.namespace, key) for key in event.keys}
        if isinstance(event, Removed):
            assert keys <= self.known, "told that a block is gone that was never told to be stored"
            self.known -= keys
        else:
            parents = (event.parent, *event.keys[:-1])
            for key, parent in zip(event.keys, parents, strict=True):
                assert parent is None or (event.namespace, parent) in self.known, "told before its parent"
                assert (event.namespace, key) not in self.known, "told twice"
                self.known.add((event.namespace, key))


class Model:
    """Blocks that may be found, with the versions that they may have."""

    def __init__(self, shards: list[int]) -> None:
        self.shards = shards
        self.keys: dict[Node, Any] = {}
        self.current: dict[Node, set[int]] = {}  # what a reader may see in this run
        self.history: dict[Node, set[int]] = {}  # committed since the last removal: what a restart may bring back
        self.writing: dict[Node, int] = {}  # version of the latest reservation
        self.parts: dict[tuple[Node, int], set[int]] = {}
        self.num_versions = 0

    def nodes(self, ns: int, path: list[int], keys: Any) -> list[Node]:
        """The nodes of a chain; notes their keys."""
        nodes = [(ns, tuple(path[: depth + 1])) for depth in range(len(path))]
        for node, key in zip(nodes, keys, strict=True):
            assert node not in self.keys or (self.keys[node] == key).all()
            self.keys[node] = key.copy()
        return nodes

    def version(self, node: Node, *, join: bool) -> int:
        """The version to write: a new one, unless this joins a reservation of other shards."""
        if not join or node not in self.writing:
            self.num_versions += 1
            self.writing[node] = self.num_versions
        return self.writing[node]

    def commit(self, nodes: list[Node], versions: list[int], shard: int, *, certain: bool) -> None:
        """One part was committed; with the last one the block may be seen. `certain`: nothing of it was undone."""
        for node, version in zip(nodes, versions, strict=True):
            parts = self.parts.setdefault((node, version), set())
            parts.add(shard)
            if self.is_complete(node, version):
                seen = self.current.setdefault(node, set()) if not certain else set()
                self.current[node] = seen | {version}
                self.history.setdefault(node, set()).add(version)

    def is_complete(self, node: Node, version: int) -> bool:
        return len(self.parts.get((node, version), ())) == self.shards[node[0]]

    def remove(self, ns: int, paths: list[tuple[int, ...]]) -> set[Node]:
        """These nodes and all below them are gone for good; returns which."""
        gone = {node for node in self.keys if node[0] == ns and any(node[1][: len(path)] == path for path in paths)}
        for node in gone:
            self.current.pop(node, None)
            self.history.pop(node, None)
            self.writing.pop(node, None)
        for part in [part for part in self.parts if part[0] in gone]:
            del self.parts[part]
        return gone

    def reopen(self) -> None:
        self.current = {node: set(versions) for node, versions in self.history.items()}
        self.writing.clear()
        self.parts.clear()

    def explains(self, node: Node, block: Any) -> bool:
        """Whether a block that was read is one that may be there."""
        block = np.frombuffer(block, np.uint8)[None]
        versions = self.current.get(node, set())
        return any(check_payloads(versioned(self.keys[node], version)[None], block)[0] for version in versions)
