"""Attached processes do random verbs under eviction pressure and are killed at random moments: no wrong byte, nothing
leaked, and the daemon goes on.

KVSTORE_STRESS_S=<seconds> works for longer, KVSTORE_STRESS_SEED=<n> draws another load.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

SECONDS = float(os.environ.get("KVSTORE_STRESS_S", "10"))
NUM_PROCESSES = 5
HERE = Path(__file__).parent
DISKS: dict[str, dict[str, Any]] = {"memory": {"nbytes": 0}, "disk": {"nbytes": "32 MiB"}}


@pytest.mark.timeout(SECONDS + 120)
@pytest.mark.parametrize("disk", DISKS)
def test_processes_that_die_leave_nothing_behind(tmp_path: Path, disk: str) -> None:
    seed = int(os.environ.get("KVSTORE_STRESS_SEED", time.time_ns() // 1_000_000))
    print(f"KVSTORE_STRESS_SEED={seed}")
    config = {
        "host": {"nbytes": 4 << 20},
        "disk": {**DISKS[disk], "path": str(tmp_path / "disk")},
        "mover": {"put_wait_ms": 5, "reservation_ttl_ms": 2_000},
        "serve": {"socket": str(tmp_path / "s"), "lease_ms_max": 300, "threads": 16},
    }
    environment = {**os.environ, "PYTHONPATH": ":".join(sys.path), "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, str(HERE / "attach_daemon.py"), json.dumps(config)]
    with subprocess.Popen(command, env=environment, stdin=-1, stdout=-1, text=True) as daemon:
        assert daemon.stdin is not None and daemon.stdout is not None
        assert daemon.stdout.readline() == "ready\n"
        try:
            lives = subprocess.run(
                [
                    *(sys.executable, str(HERE / "attach_lives.py"), f"unix:{tmp_path / 's'}"),
                    *(str(seed), str(NUM_PROCESSES), str(SECONDS)),
                ],
                env=environment,
                capture_output=True,
                text=True,
                timeout=SECONDS + 60,
            )
            assert lives.returncode == 0, lives.stderr[-4000:]
            done = json.loads(lives.stdout.splitlines()[-1])
            daemon.stdin.close()
            left = json.loads(daemon.stdout.readline())
        finally:
            if daemon.poll() is None and not daemon.stdin.closed:
                daemon.kill()
    assert daemon.returncode == 0
    print(done, left["stats"]["attached"], left["stats"]["index"])
    assert left["problems"] == []
    assert done["statuses"] == [0] * NUM_PROCESSES, lives.stderr[-4000:]
    assert done["kills"] >= 5 * SECONDS and done["pins"] > 10_000 * SECONDS
    assert min(done[name] for name in ("blocks_read", "blocks_put", "left", "attached")) > 0
    assert left["stats"]["attached"]["num_reclaimed"] > done["kills"] / 4
    assert left["stats"]["tiers"]["host"]["evicted"] > 100
