"""A whole store killed at random moments under a mixed load (store_lives.py): no wrong byte afterwards, nothing missing
that a flush had acknowledged, nothing back that had been removed, and every byte accounted for.

KVSTORE_KILLS=<n> kills more often, KVSTORE_KILLS_SEED=<n> starts from another seed. A seed draws the load and the time
of each kill, not what the threads do meanwhile: repeat it a few times.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

NUM_KILLS = int(os.environ.get("KVSTORE_KILLS", "200"))
SECONDS_PER_KILL_MAX = 30  # against hanging; it is about a quarter of a second
MEMORY = Path("/dev/shm")  # a file system without waiting: a life gets further there, and is killed elsewhere


@pytest.mark.timeout(NUM_KILLS * SECONDS_PER_KILL_MAX)
def test_a_store_that_is_killed_keeps_what_it_promised(tmp_path: Path) -> None:
    seed = int(os.environ.get("KVSTORE_KILLS_SEED", time.time_ns() // 1_000_000))
    print(f"KVSTORE_KILLS_SEED={seed}")
    # Everything is forked from a process without threads: OpenBLAS would start some.
    environment = {**os.environ, "PYTHONPATH": ":".join(sys.path), "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error", str(Path(__file__).with_name("store_lives.py"))]
    with tempfile.TemporaryDirectory(dir=MEMORY if os.access(MEMORY, os.W_OK) else None) as fast:
        lives = subprocess.run(
            [*command, str(seed), str(NUM_KILLS), str(tmp_path), fast],
            env=environment,
            capture_output=True,
            text=True,
            timeout=NUM_KILLS * SECONDS_PER_KILL_MAX,
        )
    assert lives.returncode == 0, lives.stderr
    print(lives.stdout)
    for line in lives.stdout.splitlines():
        kind, counts = json.loads(line)
        wanted = {"flushes", "swaps", "kept", "removed"} | ({"carried", "evicted"} if kind == "tight" else set())
        empty = {what for what in wanted if counts[what] == 0}
        assert not empty, f"the {kind} folder saw nothing {empty}"
