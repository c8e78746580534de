"""Every kind of client at once against a daemon process, for long: nothing of it grows, and nothing is left over.

KVSTORE_SOAK_S: for how long, in seconds (60; 600 finds slower leaks). KVSTORE_SOAK_SEED: another seed. Figures
are printed: `pytest -s`.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from daemon_process import Process
from service_helpers import wait_for
from soak_workers import KINDS, Crew, Journal
from store_helpers import all_right, chain, make_spec, payload

from kvstore.rates import hit_ratio, rates

SOAK_S = float(os.environ.get("KVSTORE_SOAK_S", "60"))
WARM_UP_S = min(30.0, SOAK_S / 3)
RSS_SLACK_NBYTES = 32 << 20  # what allocators keep of the highest load that they have seen; a block a second is more
FDS_SLACK = 2
THREADS_SLACK = 6  # those of gRPC itself come and go with the load
MUST_HAVE_DONE = (
    *("match", "read", "write", "prefetch", "remove", "explain", "make_durable"),
    *("cancel", "abandon", "visit", "kill"),
)


class Size(NamedTuple):
    """What a process has of the machine. `fds` without segment files, of which there may be so many and no more."""

    rss_nbytes: int
    fds: int
    threads: int


def size_of(pid: int) -> Size:
    folder = Path("/proc") / str(pid)
    names = []
    for number in os.listdir(folder / "fd"):
        try:
            names.append(os.readlink(folder / "fd" / number))
        except FileNotFoundError:  # closed meanwhile
            continue
    rss_nbytes = int((folder / "statm").read_text().split()[1]) * resource.getpagesize()
    return Size(rss_nbytes, sum(not name.endswith(".seg") for name in names), len(os.listdir(folder / "task")))


def held(stats: dict[str, Any]) -> dict[str, int]:
    """Everything that belongs to calls under way, and is more than nothing."""
    service = stats["service"]
    found = {
        "leases": stats["lookups"]["leases_in_use"],
        "reservations": stats["index"]["writing"],
        "removed blocks": stats["index"]["removed_pending"],
        "calls": service["long_calls"],
        "bytes in flight": service["held_nbytes"],
        "clients": service["clients_holding"],
    }
    for name, row in service["clients"].items():
        found |= {f"{name}: {what}": number for what, number in row.items() if what not in ("tenant", "calls")}
    return {name: number for name, number in found.items() if number}


def at_rest(daemon: Process) -> tuple[Size, dict[str, Any]]:
    """The daemon's size and numbers once no call of anybody is under way."""
    with daemon.connect(timeout_ms=10_000) as store:
        assert wait_for(lambda: not held(store.stats()), 30), held(store.stats())
        stats = store.stats()
    size, num_same = size_of(daemon.process.pid), 0
    for _ in range(100):  # connections that were closed are let go of a moment later
        time.sleep(0.1)
        last, size = size, size_of(daemon.process.pid)
        num_same = num_same + 1 if size[1:] == last[1:] else 0
        if num_same == 10:
            break
    return size, stats


def work(daemon: Process, seed: int, journal: Journal, seconds: float) -> None:
    crew = Crew(f"unix:{daemon.socket}", seed, journal)
    end_s = time.perf_counter() + seconds
    while time.perf_counter() < end_s and not journal.wrong:
        assert daemon.process.poll() is None, "the daemon has ended"
        time.sleep(0.1)
    crew.stop()
    assert journal.wrong == []


def report(journal: Journal, sizes: list[Size], numbers: list[dict[str, Any]], spans: list[float]) -> None:
    """Figures for people; none of them is asserted."""
    began_s, middle_s, end_s = spans
    change = rates(numbers[0], numbers[1], end_s - began_s)
    lines = [f"{len(KINDS)} clients for {end_s - began_s:.0f} s after {WARM_UP_S:.0f} s of warming up: {sizes}"]
    lines.append(f"did {dict(sorted(journal.counts.items()))}")
    lines.append(f"a second: {change.nbytes_per_s}, blocks {change.blocks_per_s}, evicted {change.evictions_per_s}")
    lines.append(f"hit rate {change.hit_ratio}, {hit_ratio(numbers[1])} in all; calls {change.calls_per_s}")
    for verb in sorted(journal.times):
        halves = ((began_s, middle_s), (middle_s, end_s))
        values = [journal.percentile_ms(verb, share, *half) for share in (0.5, 0.99) for half in halves]
        p50s, p99s = (" → ".join(f"{value:.2f}" for value in pair) for pair in (values[:2], values[2:]))
        lines.append(f"{verb:13} first half → second: p50 {p50s} ms, p99 {p99s} ms")
    sys.stdout.write("\n".join(lines) + "\n")


@pytest.mark.timeout(SOAK_S + 240)
def test_nothing_grows_and_nothing_is_left_over(daemon: Process):
    seed = int(os.environ.get("KVSTORE_SOAK_SEED", time.time_ns() // 1_000_000))
    print(f"KVSTORE_SOAK_SEED={seed}")
    # Few threads: all of them have begun before the first look, and their limit is met, too.
    daemon.write(host="8 MiB", disk="16 MiB", serve="threads = 12")
    daemon.start()
    journal = Journal()
    work(daemon, seed, journal, WARM_UP_S)
    before, numbers_before = at_rest(daemon)
    began_s = time.perf_counter()
    work(daemon, seed + 1000, journal, SOAK_S - WARM_UP_S)
    end_s = time.perf_counter()
    after, numbers_after = at_rest(daemon)
    report(journal, [before, after], [numbers_before, numbers_after], [began_s, (began_s + end_s) / 2, end_s])

    assert held(numbers_after) == {}
    assert after.rss_nbytes - before.rss_nbytes < RSS_SLACK_NBYTES
    assert after.fds <= before.fds + FDS_SLACK and after.threads <= before.threads + THREADS_SLACK
    assert [name for name in MUST_HAVE_DONE if not journal.counts[name]] == [], "this load is not what it says"
    assert numbers_after["index"]["evicted_far"] > 0 and numbers_after["mover"]["promoted_blocks"] > 0
    assert numbers_after["mover"]["defects"] == numbers_after["mover"]["corrupt_blocks"] == 0
    assert [line for line in daemon.lines() if line["level"] not in ("INFO", "WARNING")] == []
    with daemon.connect() as store:
        ns = store.namespace(make_spec())
        keys = chain(ns, 4, prompt=4_000)  # no worker knows it
        assert ns.put(keys, payload(keys), deadline_ms=5_000).stored == 4
        num_blocks, blocks = ns.get(keys)
        assert num_blocks == 4 and all_right(keys, list(blocks))
    assert daemon.end() == 0
