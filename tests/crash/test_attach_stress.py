"""Attached clients that do everything at random and are killed every few milliseconds (attach_lives.py): no wrong byte,
a daemon that goes on, and nothing left in it of clients that are gone.

KVSTORE_ATTACH_S: for how long each, in seconds. KVSTORE_ATTACH_PINS and KVSTORE_ATTACH_KILLS: and on until so many
blocks were leased and so many clients killed. KVSTORE_ATTACH_SEED: which clients, when; not what they do meanwhile.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

SECONDS = int(os.environ.get("KVSTORE_ATTACH_S", "30"))
NUM_PINS = int(float(os.environ.get("KVSTORE_ATTACH_PINS", "0")))
NUM_KILLS = int(os.environ.get("KVSTORE_ATTACH_KILLS", "0"))
PATIENCE_S = 3600 if NUM_PINS or NUM_KILLS else SECONDS + 120
NUM_SLACK = (
    16  # descriptors and threads that are made when they are first needed; hundreds of clients have come and gone
)
RSS_SLACK_KIB = 48 << 10  # what allocators may still take; 1000 lost clients would be 300 MiB
KEEPS_FREED = "asan" in os.environ.get("LD_PRELOAD", "")  # the address sanitizer gives nothing back for a while
OPTIONS = ("ATTACH_S", "ATTACH_PINS", "ATTACH_KILLS", "ATTACH_SEED")


@pytest.mark.timeout(PATIENCE_S + 60)
@pytest.mark.parametrize("disk_mib", [0, 16], ids=["memory", "disk"])
def test_clients_that_are_killed_leave_nothing_behind(tmp_path: Path, disk_mib: int) -> None:
    seed = int(os.environ.get("KVSTORE_ATTACH_SEED", time.time_ns() // 1_000_000))
    print(f"KVSTORE_ATTACH_SEED={seed}")
    ours = {f"KVSTORE_{option}" for option in OPTIONS}
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    # Everything is forked from a process without threads: OpenBLAS would start some.
    environment |= {"PYTHONPATH": ":".join(sys.path), "OPENBLAS_NUM_THREADS": "1"}
    program = str(Path(__file__).with_name("attach_lives.py"))
    arguments = [seed, SECONDS, NUM_PINS, NUM_KILLS, disk_mib, tmp_path]
    lives = subprocess.Popen(
        [sys.executable, program, *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        output, errors = lives.communicate(timeout=PATIENCE_S)
    finally:
        if lives.poll() is None or lives.returncode:
            with suppress(ProcessLookupError):
                os.killpg(lives.pid, signal.SIGKILL)  # the daemon and its clients, too
    assert lives.returncode == 0, errors
    found = json.loads(output)
    done, before, after = found["done"], found["before"], found["after"]
    print(done, after)
    assert found["wrong"] == ""
    assert done["status"] == 0, errors
    held = ("num_clients", "num_silent", "num_reservations", "reserved_nbytes")
    assert {name: after["attached"][name] for name in held} == dict.fromkeys(held, 0)
    assert (after["lookups"]["leases_in_use"], after["index"]["writing"], after["index"]["removed_pending"]) == (
        0,
        0,
        0,
    )
    assert (after["defects"], after["corrupt"], after["attached"]["num_malformed"]) == (0, 0, 0)
    assert all(after[what] - before[what] < NUM_SLACK for what in ("fds", "threads")), (before, after)
    assert KEEPS_FREED or after["rss_kib"] - before["rss_kib"] < RSS_SLACK_KIB, (before, after)
    wanted = {"pins", "verified", "puts", "rooms", "left", "kills", "stops"} | ({"far"} if disk_mib else set())
    assert {what for what in wanted if not done[what]} == set()
    assert after["attached"]["num_revoked"] and after["index"]["evicted_near"], after
