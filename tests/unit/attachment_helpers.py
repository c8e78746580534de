"""Stores whose disk tier leaves and comes back, and what of it this process has open."""

from __future__ import annotations

import os

from store_helpers import all_right, put_chain

import kvstore


def config(path, **sections):
    defaults = {"host": {"nbytes": "2 MiB", "prefault": "off"}, "disk": {"nbytes": "16 MiB", "path": str(path)}}
    return kvstore.Config(**{**defaults, **sections})


def open_files(path):
    """Descriptors and mappings of this process below `path`."""
    names = []
    for number in os.listdir("/proc/self/fd"):
        try:
            names.append(os.readlink(f"/proc/self/fd/{number}"))
        except FileNotFoundError:  # the one that listed them
            continue
    with open("/proc/self/maps") as maps:
        names += [line.split()[-1] for line in maps]
    return [name for name in names if name.startswith(str(path))]


def is_right(ns, keys, num_blocks=None):
    num, out = ns.get(keys, deadline_ms=60_000)
    return num == (len(keys) if num_blocks is None else num_blocks) and all_right(keys[:num], list(out[:num]))


def cold(store, ns, num_blocks, prompt):
    """A prompt that is only on disk."""
    keys = put_chain(ns, num_blocks, prompt)
    assert store.flush(60_000)
    with store.lock:
        store.mover.put.evict(store.near_capacity, True, 0)
    assert ns.match(keys).by_tier == {"disk": num_blocks}
    return keys
