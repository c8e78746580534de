"""A day of traffic in fast-forward: thousands of requests through a small store whose disk evicts, recycles and is
scrubbed all the time. Afterwards nothing has grown that should not.

The store is warmed up until every segment was filled and recycled; growth counts from then on.
"""

from __future__ import annotations

import gc
import os
import resource
import threading
from pathlib import Path
from random import Random

import pytest

import kvstore
from kvstore import scrub

KIB, MIB = 1 << 10, 1 << 20
NBYTES = 16 * KIB
TOKENS = 4
RSS_SLACK_NBYTES = 24 * MIB  # what allocators and lazily loaded code may still take; a block lost a request is 60 MiB
MANIFEST_SLACK_NBYTES = 1 * MIB  # pages that LMDB keeps for its next transactions
KEEPS_FREED = "asan" in os.environ.get("LD_PRELOAD", "")  # the address sanitizer gives nothing back for a while
NUM_SEGMENTS = 16
NUM_WARMING, NUM_REQUESTS = 1_000, 20_000


def rss_nbytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def descriptors(path: Path) -> tuple[int, int]:
    """Open ones of segment files in `path`, of which there may be one each, and of anything else."""
    segments = others = 0
    for number in os.listdir("/proc/self/fd"):
        try:
            name = os.readlink(f"/proc/self/fd/{number}")
        except FileNotFoundError:  # the one that listed them
            continue
        is_segment = name.startswith(str(path)) and name.endswith(".seg")
        segments, others = segments + is_segment, others + (not is_segment)
    return segments, others


def held(path: Path) -> dict[str, int]:
    """What a process or a folder could be running out of."""
    gc.collect()  # what earlier tests of this process left to the collector is not this one's
    files = [file for file in path.rglob("*") if file.is_file()]
    return {
        "descriptors": descriptors(path)[1],
        "threads": threading.active_count(),
        "kernel_threads": len(os.listdir("/proc/self/task")),
        "segments_nbytes": sum(file.stat().st_blocks * 512 for file in files if file.suffix == ".seg"),
        "files": len(files),
    }


def num_segments(path: Path) -> int:
    return len(list(path.glob("segments/*.seg")))


def manifest_nbytes(path: Path) -> int:
    return (path / "manifest" / "data.mdb").stat().st_blocks * 512


def live(store: kvstore.BlockStore, namespace: kvstore.Namespace, rng: Random, num_requests: int) -> int:
    """Prompts of which some come again: read what is there, put the rest, drop some. Returns the blocks found."""
    num_found = 0
    payload = bytes(NBYTES)
    for _ in range(num_requests):
        prompt = min(int(rng.paretovariate(0.7)), 4_000)
        num_blocks = 1 + prompt % 5
        tokens = [prompt * 100 + number for number in range(num_blocks * TOKENS)]
        keys = namespace.keys(tokens)
        num_hits, _ = namespace.get(keys, deadline_ms=50)
        num_found += num_hits
        namespace.put(keys, [payload] * num_blocks, deadline_ms=200)
        if rng.random() < 0.02:
            namespace.remove(keys[:1])
    assert store.flush(60_000)
    return num_found


def test_a_day_of_traffic_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrub, "ROUND_US_MIN", 100_000)
    monkeypatch.setattr(scrub, "EMPTY_US", 100_000)
    seed = int.from_bytes(os.urandom(4), "little")
    print(f"seed {seed}")
    rng = Random(seed)
    config = kvstore.Config(
        host={"nbytes": 2 * MIB, "prefault": "now"},
        disk={"nbytes": 16 * MIB, "path": tmp_path},
        mover={"scrub_nbytes_per_s": 64 * MIB},
    )
    with kvstore.open(config) as store:
        spec = kvstore.NamespaceSpec(model="m", block_nbytes=NBYTES, block_tokens=TOKENS)
        namespace = store.namespace(spec)
        for _ in range(30):
            live(store, namespace, rng, NUM_WARMING)
            if store.stats()["mover"]["carried_blocks"] and num_segments(tmp_path) == NUM_SEGMENTS:
                break
        before, rss_before = held(tmp_path), rss_nbytes()
        manifest_before = manifest_nbytes(tmp_path)
        moved_before = store.stats()["mover"]
        assert live(store, namespace, rng, NUM_REQUESTS) > 0
        after = held(tmp_path)
        assert {name: after[name] for name in before if after[name] > before[name]} == {}, f"grown from {before}"
        assert KEEPS_FREED or rss_nbytes() - rss_before < RSS_SLACK_NBYTES
        assert manifest_nbytes(tmp_path) - manifest_before <= MANIFEST_SLACK_NBYTES
        assert after["segments_nbytes"] <= 16 * MIB and descriptors(tmp_path)[0] <= NUM_SEGMENTS
        stats = store.stats()
        assert stats["index"]["evicted_far"] > 500
        assert all(stats["mover"][name] > moved_before[name] for name in ("carried_blocks", "scrub_rounds"))
        assert stats["mover"]["defects"] == 0 and stats["mover"]["corrupt_blocks"] == 0
        assert stats["lookups"]["leases_in_use"] == 0 and stats["index"]["removed_pending"] == 0
        store.check()
