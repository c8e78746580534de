"""kvstore replay: a request trace through a real store, with real bytes."""

from __future__ import annotations

import resource
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import click
import numpy as np

from kvstore.cli import Command, render
from kvstore.cli.traffic import traffic_fields, traffic_table
from kvstore.config import Config
from kvstore.evicting import EVICTIONS
from kvstore.namespace import BLOCK_NBYTES_MAX, NamespaceSpec
from kvstore.replay import Replay, Result
from kvstore.space import slot_nbytes
from kvstore.timed import open_timed
from kvstore.trace import BLOCK_TOKENS, read_trace

PERCENTILES = (50, 90, 99, 99.9)
PUT_WAIT_MS = 60_000  # as fast as possible is faster than a disk: puts wait for write-back instead of dropping blocks
BLOCKS_MAX = 2**30
ENTRIES_MIN = 65_536


@click.command(
    cls=Command,
    example="kvstore replay trace.jsonl.gz --block-nbytes 16384 --host-blocks 5484 --disk-blocks 54837 --verify",
)
@click.argument("trace", type=click.Path(exists=True, dir_okay=False))
@click.option(
    "--block-nbytes",
    type=click.IntRange(1, BLOCK_NBYTES_MAX),
    default=65536,
    show_default=True,
    help="Bytes of a block.",
)
@click.option(
    "--host-blocks",
    type=click.IntRange(1, BLOCKS_MAX),
    default=10_000,
    show_default=True,
    help="Blocks that fit into memory.",
)
@click.option(
    "--disk-blocks",
    type=click.IntRange(0, BLOCKS_MAX),
    default=0,
    show_default=True,
    help="Blocks that fit on disk; 0: no disk tier.",
)
@click.option(
    "--disk-path",
    default="",
    metavar="FOLDER",
    help="Folder of the disk tier, kept for the next run; default: a temporary one.",
)
@click.option(
    "--policy",
    type=click.Choice(EVICTIONS),
    default="gittins",
    show_default=True,
    help="Eviction policy.",
)
@click.option("--requests", "num_requests", type=click.IntRange(0), default=0, help="Play only so many; 0: all.")
@click.option(
    "--speed",
    type=click.FloatRange(0, 1e9),
    default=0.0,
    help="N times as fast as it happened; 0: as fast as possible.",
)
@click.option("--verify", is_flag=True, help="Check every byte that comes back; exit 1 on the first wrong one.")
@click.option("--plot", default="", metavar="FILE.png", help="Draw hit ratio and tier occupancy over time.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    trace: str,
    block_nbytes: int,
    host_blocks: int,
    disk_blocks: int,
    disk_path: str,
    policy: str,
    num_requests: int,
    speed: float,
    verify: bool,
    plot: str,
    as_json: bool,
) -> int:
    """Play TRACE through a store and report hits, latency and bandwidth.

    Each request leases the stored prefix of its blocks, reads it, and puts the rest. TRACE is JSON lines, plain or
    gzip: timestamp (ms), input_length, output_length (tokens), hash_ids (chained, one per block), and block_tokens
    where that is not 512. A store records such traces of itself with the setting trace.path.
    """
    if disk_path and not disk_blocks:
        raise click.UsageError("--disk-path needs --disk-blocks: without them there is no disk tier")
    if not speed >= 0:
        raise click.BadParameter(f"{speed} is not a number", param_hint="'--speed'")
    if plot:
        from kvstore.cli.plot import require_plot

        require_plot(Path(plot))
    requests = list(islice(read_trace(trace), num_requests or None))
    if not requests:
        raise click.UsageError(f"{trace} has no requests")
    spec = NamespaceSpec(model="replay", block_nbytes=block_nbytes, block_tokens=BLOCK_TOKENS)
    with open_timed(_config(block_nbytes, host_blocks, disk_blocks, disk_path, policy)) as store:
        replay = Replay(store, store.namespace(spec), verify=verify, speed=speed)
        with render.progress("requests", len(requests)) as bar:
            result = replay.run(requests, len(requests), lambda num: bar.advance(bar.task_ids[0], num))
        stats = store.stats()
    report = _report(trace, result, stats, block_nbytes)
    if as_json:
        render.print_json(report)
    else:
        _show(report, result, verify)
    if plot:
        _plot(Path(plot), trace, result, host_blocks, disk_blocks)
    return 0


def _config(block_nbytes: int, host_blocks: int, disk_blocks: int, disk_path: str, policy: str) -> Config:
    disk_nbytes = 0
    if disk_blocks:
        from kvstore.tiers.disk import capacity_for

        disk_nbytes = capacity_for(disk_blocks, block_nbytes)
    return Config.load(
        host={"nbytes": host_blocks * slot_nbytes(block_nbytes), "prefault": "now"},
        disk={"nbytes": disk_nbytes, "path": disk_path or None},
        index={"entries_max": max(ENTRIES_MIN, 2 * (host_blocks + disk_blocks))},
        mover={"put_wait_ms": PUT_WAIT_MS},
        policy={"eviction": policy},
    )


def _latency(samples_us: Sequence[float]) -> dict[str, float]:
    """p50_us … p99_9_us and max_us; empty without samples."""
    if not samples_us:
        return {}
    values = np.percentile(samples_us, PERCENTILES)
    names = [f"p{point:g}_us".replace(".", "_") for point in PERCENTILES]
    return {name: round(float(value), 1) for name, value in zip(names, values, strict=True)} | {
        "max_us": round(max(samples_us), 1)
    }


def _report(trace: str, result: Result, stats: dict[str, Any], block_nbytes: int) -> dict[str, Any]:
    disk = stats["tiers"].get("disk")
    return {
        "trace": Path(trace).name,
        "requests": result.requests,
        "blocks_asked": result.blocks_asked,
        "prefix_hit": round(result.prefix_hit, 6),
        "hits": {"host": result.blocks_hit - result.blocks_promoted, "disk": result.blocks_promoted},
        "misses": result.blocks_asked - result.blocks_hit,
        "tokens_reused": result.tokens_reused,
        "blocks_stored": result.blocks_stored,
        "blocks_rejected": result.blocks_rejected,
        "blocks_verified": result.blocks_verified,
        "wrong_bytes": 0,  # the first wrong one ends the replay with an error
        "elapsed_s": round(result.elapsed_us / 1e6, 3),
        "lease": _latency(result.lease_us),
        "put": _latency(result.put_us),
        "paths": traffic_fields(result.paths),
        "disk_written_nbytes": result.paths["memory_to_disk"].nbytes,
        "disk_carried_nbytes": stats["mover"]["carried_blocks"] * block_nbytes,
        "unwritten_evicted": stats["index"]["dropped_unwritten"] if disk else 0,
        "skipped_writes": stats["mover"]["skipped_writes"],
        "disk_reason": disk["reason"] if disk else "",
        "peak_memory_nbytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "page_kind": stats["tiers"]["host"]["page_kind"],
    }


def _show(report: dict[str, Any], result: Result, verify: bool) -> None:
    hits, asked = report["hits"], report["blocks_asked"]
    rows = [
        ("requests", render.format_count(report["requests"])),
        ("blocks asked for", render.format_count(asked)),
        ("prefix hit ratio", render.format_ratio(result.blocks_hit, asked)),
        ("  from memory", render.format_ratio(hits["host"], asked)),
        ("  from disk", render.format_ratio(hits["disk"], asked)),
        ("blocks stored", render.format_count(report["blocks_stored"])),
        ("blocks rejected", render.format_count(report["blocks_rejected"])),
        ("evicted unwritten", render.format_count(report["unwritten_evicted"])),
        ("blocks verified", render.format_count(report["blocks_verified"]) if verify else "-"),
        ("written to disk", render.format_nbytes(report["disk_written_nbytes"])),
        ("carried on disk", render.format_nbytes(report["disk_carried_nbytes"])),
        ("elapsed", render.format_duration(report["elapsed_s"] * 1e6)),
        ("peak memory", render.format_nbytes(report["peak_memory_nbytes"])),
    ]
    out = render.console()
    out.print(f"Replay of {report['trace']}\n", markup=False)
    out.print(render.table("", ("", ""), rows))
    columns = ("latency", *(name.removesuffix("_us").replace("_", ".") for name in report["lease"]))
    latency = [
        (verb, *(render.format_duration(value) for value in report[verb].values()))
        for verb in ("lease", "put")
        if report[verb]
    ]
    out.print()
    if latency:
        out.print(render.table("", columns, latency))
        out.print()
    out.print(traffic_table(result.paths))
    if report["disk_reason"]:
        out.print(f"\nThe disk tier is not healthy: {report['disk_reason']}", markup=False)
    if verify:
        out.print(
            f"\nEvery byte of {render.format_count(report['blocks_verified'])} blocks came back as it was stored."
        )


def _plot(path: Path, trace: str, result: Result, host_blocks: int, disk_blocks: int) -> None:
    from kvstore.cli.plot import replay_figure

    replay_figure(path, Path(trace).name, result, host_blocks, disk_blocks)
