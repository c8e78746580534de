"""What this machine gives to a store: kernel settings and limits, what a wrong one costs, and the line that changes it.

Costs are those that docs/operations.md and docs/decisions/ measured. Everything is read, nothing is changed.
"""

from __future__ import annotations

import os
import re
import resource
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kvstore._core import blockio
from kvstore.config import Config

Verdict = Literal["good", "costs", "wrong"]

HUGE = "sys/kernel/mm/transparent_hugepage"
SLOW_PAGES = "the first touch of memory takes ten times as long, and copies of small pieces lose 15 to 35 %"
DESCRIPTORS_MIN = 1_024  # 256 for segments, and one for each connection


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. `cost` and `remedy` are empty when it is good."""

    name: str
    found: str
    verdict: Verdict = "good"
    cost: str = ""
    remedy: str = ""


def examine(config: Config, root: Path = Path("/")) -> list[Finding]:
    """Look at everything that a store of this configuration meets. `root`: where /proc and /sys are."""
    huge = [_private_pages(root), *([_shared_pages(root)] if config.serve.attach else [])]
    found = [*huge, _memory(config, root), _swap(root), _nodes(root), _sha(root), _descriptors()]
    return [*found, _io_uring(root), *_disk(config)] if config.disk.nbytes else found


def _read(path: Path) -> str:
    """A setting's text; "" where the kernel has none."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _chosen(text: str) -> str:
    """The word in brackets of "always [madvise] never"."""
    match = re.search(r"\[(\w+)\]", text)
    return match[1] if match else text or "absent"


def _private_pages(root: Path) -> Finding:
    mode = _chosen(_read(root / HUGE / "enabled"))
    if mode in ("always", "madvise"):
        return Finding("huge pages", f"transparent: {mode}")
    return Finding("huge pages", f"transparent: {mode}", "costs", SLOW_PAGES, f"echo madvise > /{HUGE}/enabled")


def _shared_pages(root: Path) -> Finding:
    reserved = _read(root / "proc/sys/vm/nr_hugepages") or "0"
    mode = _chosen(_read(root / HUGE / "shmem_enabled"))
    found = f"{reserved} reserved; shared memory: {mode}"
    if reserved != "0" or mode in ("always", "advise", "within_size", "force"):
        return Finding("shared huge pages", found)
    return Finding("shared huge pages", found, "costs", SLOW_PAGES, f"echo advise > /{HUGE}/shmem_enabled")


def _meminfo(root: Path) -> dict[str, int]:
    """/proc/meminfo in bytes."""
    rows = re.findall(r"^(\w+): +(\d+) kB", _read(root / "proc/meminfo"), re.MULTILINE)
    return {name: int(kib) * 1024 for name, kib in rows}


def _memory(config: Config, root: Path) -> Finding:
    left, wanted = _meminfo(root).get("MemAvailable", 0), int(config.host.nbytes)
    found = f"{left >> 20:,} MiB available, host.nbytes is {wanted >> 20:,} MiB"
    if left >= wanted:
        return Finding("memory", found)
    return Finding("memory", found, "wrong", "the system ends the process when memory runs out", "lower host.nbytes")


def _swap(root: Path) -> Finding:
    total = _meminfo(root).get("SwapTotal", 0)
    if not total:
        return Finding("swap", "none")
    cost = "blocks in memory can be slower than the disk tier"
    return Finding("swap", f"{total >> 20:,} MiB", "costs", cost, "swapoff -a, or sysctl -w vm.swappiness=1")


def _nodes(root: Path) -> Finding:
    names = [path for path in (root / "sys/devices/system/node").glob("node*") if path.name[4:].isdigit()]
    if len(names) < 2:
        return Finding("NUMA", "one node")
    cost = "memory of another node is up to twice as far as that of its own"
    remedy = "numactl --cpunodebind=0 --preferred=0 kvstore serve, with the node of the GPUs"
    return Finding("NUMA", f"{len(names)} nodes", "costs", cost, remedy)


def _sha(root: Path) -> Finding:
    flags = re.search(r"^(?:flags|Features)\s*:(.*)$", _read(root / "proc/cpuinfo"), re.MULTILINE)
    if flags is not None and {"sha_ni", "sha2"} & set(flags[1].split()):
        return Finding("SHA-256", "instructions of the processor")
    cost = "keys by SHA-256 take several times as long"
    return Finding("SHA-256", "portable code", "costs", cost, 'NamespaceSpec(hash="xxh3_128"), for one tenant only')


def _descriptors() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = f"{soft:,} open files, up to {hard:,}"
    if soft >= DESCRIPTORS_MIN:
        return Finding("descriptors", found)
    remedy = f"ulimit -n {DESCRIPTORS_MIN}, or LimitNOFILE= of the systemd unit"
    return Finding("descriptors", found, "wrong", "segments and connections are refused", remedy)


def _io_uring(root: Path) -> Finding:
    engine = blockio.Engine(1)
    refusal = engine.refusal
    engine.stop()
    if not refusal:
        return Finding("io_uring", "allowed")
    disabled = _read(root / "proc/sys/kernel/io_uring_disabled") not in ("", "0")
    remedy = "sysctl -w kernel.io_uring_disabled=0" if disabled else "allow it in the container's seccomp profile"
    cost = "threads do it: 20 to 40 % more processor time for blocks of 128 KiB"
    return Finding("io_uring", f"refused: {refusal}", "costs", cost, remedy)


def _disk(config: Config) -> list[Finding]:
    """The file system of disk.path; where that is still to be made, of the nearest folder above it."""
    if config.disk.path is None:
        cost = "nothing outlives the store"
        return [Finding("disk", "disk.path is not set: a temporary folder", "costs", cost, "set disk.path")]
    folder = Path(config.disk.path).absolute()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    system = os.statvfs(there)
    held = sum(path.stat().st_blocks * 512 for path in folder.glob("segments/*.seg"))
    left = system.f_bavail * system.f_frsize + held
    wanted = int(config.disk.nbytes) + int(config.disk.free_nbytes_min)
    found = f"{left >> 20:,} MiB of {there} for disk.nbytes and disk.free_nbytes_min, {wanted >> 20:,} MiB"
    if not os.access(there, os.W_OK):
        return [Finding("disk", f"{there} cannot be written to", "wrong", "no store opens there", f"chown {there}")]
    if left >= wanted:
        return [Finding("disk", found)]
    return [Finding("disk", found, "costs", "the tier stays smaller than it is meant to be", "lower disk.nbytes")]
