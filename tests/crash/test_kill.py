"""A disk tier killed at random moments while it writes, recycles, removes and flushes: no wrong byte afterwards,
and nothing missing that flush() had promised.

The child tells what it has been promised, one line per fact, in a file that survives it.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from kvstore.tiers.base import ENTRY, Outcome
from kvstore.tiers.disk import DiskTier

CAPACITY_NBYTES = 16 << 20
NBYTES = 60_000
NUM_KILLS = 10


def content(seed: int) -> bytes:
    return np.random.default_rng(seed).bytes(NBYTES)


def work(path: str, promises: str, first_seed: int) -> None:
    """For ever: write eight blocks, free the oldest sixteen of about a hundred, sometimes flush."""
    tier = DiskTier(path, capacity_nbytes=CAPACITY_NBYTES)
    held: list[tuple[int, np.ndarray]] = []
    tier.adopt(np.empty(0, dtype=np.uint32), np.empty(0, dtype=np.uint32))
    seed = first_seed
    with open(promises, "a", buffering=1) as log:
        while True:
            places = tier.allocate(NBYTES, 8)
            entries = np.zeros(len(places), dtype=ENTRY)
            seeds = range(seed, seed + len(places))
            for entry, number in zip(entries, seeds, strict=True):
                entry["key"][:8] = np.frombuffer(np.uint64(number).tobytes(), dtype=np.uint8)
            outcomes = tier.write(places, entries, [memoryview(content(number)) for number in seeds]).result()
            assert not outcomes.any()
            held += [(number, place) for number, place in zip(seeds, places, strict=True)]
            seed += len(places)
            if len(held) > 96 or len(places) < 8:
                old, held = held[:16], held[16:]
                forget = random.random() < 0.5
                # Said before it is done: from here on these blocks may be missing.
                log.writelines(f"freed {number}\n" for number, _ in old)
                tier.free(np.array([place for _, place in old], dtype=np.uint32), NBYTES, forget=forget)
            else:
                old, forget = [], False
            if random.random() < 0.5:
                tier.flush().result()
                log.writelines(f"kept {number}\n" for number, _ in held)
            if forget and random.random() < 0.5:
                tier.flush().result()
                log.writelines(f"removed {number}\n" for number, _ in old)


def run_and_kill(path: Path, promises: Path, first_seed: int, wait_s: float) -> None:
    command = [sys.executable, __file__, str(path), str(promises), str(first_seed)]
    child = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": ":".join(sys.path)}, stderr=subprocess.PIPE)
    end_s = time.monotonic() + 60
    while not promises.exists() and time.monotonic() < end_s and child.poll() is None:
        time.sleep(0.01)
    time.sleep(wait_s)
    child.send_signal(signal.SIGKILL)
    _, errors = child.communicate(timeout=60)
    assert child.returncode == -signal.SIGKILL, errors.decode()


def check(path: Path, promises: Path) -> int:
    """Every recovered block is right and the promises of the last life are kept: the number of blocks."""
    told: dict[str, set[int]] = {"kept": set(), "freed": set(), "removed": set()}
    for line in promises.read_text().splitlines(keepends=True):
        verb, _, number = line.partition(" ")
        if line.endswith("\n"):  # else it was killed while it said so
            told[verb].add(int(number))
    tier = DiskTier(path, capacity_nbytes=CAPACITY_NBYTES)
    seen: set[int] = set()
    for places, entries, _ in tier.recover():
        buffers = [bytearray(int(nbytes)) for nbytes in entries["nbytes"]]
        checksums = entries["checksum"].astype(np.uint64)
        outcomes = tier.read(places, checksums, [memoryview(buffer) for buffer in buffers]).result(60)
        for entry, outcome, buffer in zip(entries, outcomes, buffers, strict=True):
            seed = int(entry["key"][:8].view("<u8")[0])
            assert outcome == Outcome.OK and bytes(buffer) == content(seed), seed
            assert seed not in seen
            seen.add(seed)
    assert tier.num_dropped == 0
    tier.close()
    missing = told["kept"] - told["freed"] - seen
    assert not missing, f"{len(missing)} blocks that flush() had promised are missing"
    assert not told["removed"] & seen, "removed blocks came back"
    return len(seen)


def test_killed_at_any_moment(tmp_path: Path) -> None:
    random.seed(time.time_ns())
    num_seen = 0
    for number in range(NUM_KILLS):
        promises = tmp_path / f"promises-{number}"
        run_and_kill(tmp_path / "tier", promises, number * 1_000_000, random.uniform(0.0, 0.6))
        num_seen += check(tmp_path / "tier", promises)
    assert num_seen > 0


if __name__ == "__main__":
    work(sys.argv[1], sys.argv[2], int(sys.argv[3]))
