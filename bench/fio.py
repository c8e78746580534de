"""fio as the ceiling: the same transfers on the same files by the tool that everybody measures disks with."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from kvstore.errors import Unavailable


def require() -> None:
    """Unavailable, with the line to type, where fio is not installed."""
    if shutil.which("fio") is None:
        raise Unavailable("fio is not installed, and without it there is no ceiling: apt-get install fio")


def bandwidth(files: Sequence[Path], *, writing: bool, block_nbytes: int, depth: int, total_nbytes: int) -> float:
    """GB/s of random direct I/O over all of `files`, through io_uring, from memory in huge pages."""
    command = [
        "fio",
        "--name=ceiling",
        f"--filename={':'.join(str(file) for file in files)}",
        f"--rw={'randwrite' if writing else 'randread'}",
        f"--bs={block_nbytes}",
        f"--iodepth={depth}",
        f"--io_size={total_nbytes}",
        "--ioengine=io_uring",
        "--direct=1",
        "--overwrite=1",
        "--norandommap=1",
        "--randrepeat=0",
        "--output-format=json",
    ]
    # glibc asks for huge pages itself: fio's own way needs pages that were reserved at boot.
    environment = os.environ | {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    job = json.loads(done.stdout)["jobs"][0]
    return float(job["write" if writing else "read"]["bw_bytes"]) / 1e9
