"""kvstore check: is every block in a disk tier's folder what its manifest says?"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from kvstore.cli import Command, render
from kvstore.clock import SystemClock
from kvstore.tiers.findings import Finding
from kvstore.tiers.inspection import Inspection, Segment

STATES = ("filled", "dead", "free", "unusable")


@click.command(cls=Command, example="kvstore check /var/lib/kvstore --repair --list")
@click.argument("path", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--repair", is_flag=True, help="Drop what is bad: its rows in the manifest, nothing else.")
@click.option("--list", "as_list", is_flag=True, help="Show every segment too.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(path: Path, repair: bool, as_list: bool, as_json: bool) -> int:
    """Verify the disk tier in the folder PATH, which no store may have open meanwhile.

    Reads the manifest and every block it names. Exit code 0: all is well, or was repaired; 1: problems were found, or
    PATH cannot be checked. Nothing is changed without --repair.
    """
    clock = SystemClock()
    began_us = clock.now_us()
    with Inspection(path.absolute()) as inspection:
        num_blocks = inspection.num_to_verify
        with render.progress("blocks", num_blocks) as bar:
            inspection.verify(lambda num: bar.advance(bar.task_ids[0], num))
        segments = inspection.segments()
        dropped = inspection.repair(clock.time_s()) if repair else []
        report = _report(inspection, segments, num_blocks) | {
            "repaired": bool(dropped),
            "elapsed_s": round((clock.now_us() - began_us) / 1e6, 3),
        }
    if as_json:
        listed = {"segments": [asdict(segment) for segment in segments]} if as_list else {}
        render.print_json(report | listed)
    else:
        _show(report)
        if as_list and segments:
            _show_segments(segments, report["segment_nbytes"], clock.time_s())
        render.console().print(f"\n{_verdict(report)}", markup=False)
    return 0 if report["clean"] or report["repaired"] else 1


def _report(inspection: Inspection, segments: list[Segment], num_verified: int) -> dict[str, Any]:
    states = Counter(segment.state for segment in segments)
    findings = inspection.findings
    return {
        "path": str(inspection.path),
        "clean": not findings.faults,
        "problems": [_fields(finding) for finding in findings.faults],
        "notes": [_fields(finding) for finding in findings.notes],
        "segment_nbytes": inspection.contents.segment_nbytes,
        "segments_by_state": {state: states[state] for state in STATES},
        "blocks_verified": num_verified,
        "blocks_live": sum(segment.num_blocks for segment in segments),
        "live_nbytes": sum(segment.live_nbytes for segment in segments),
    }


def _fields(finding: Finding) -> dict[str, Any]:
    kind = finding.kind
    return {"kind": kind.name.lower(), "what": kind.value, "count": finding.count, "examples": finding.examples}


def _show(report: dict[str, Any]) -> None:
    states = report["segments_by_state"]
    size = render.format_nbytes(report["segment_nbytes"])
    shown = ", ".join(f"{states[state]:,} {state}" for state in STATES if states[state]) or "none"
    rows = [
        ("segments", f"{shown}; {size} each" if report["segment_nbytes"] else shown),
        ("blocks verified", render.format_count(report["blocks_verified"])),
        ("blocks in use", f"{report['blocks_live']:,}, {render.format_nbytes(report['live_nbytes'])}"),
        ("time", render.format_duration(report["elapsed_s"] * 1e6)),
    ]
    out = render.console()
    out.print(f"Disk tier in {report['path']}\n", markup=False, soft_wrap=True)
    for name, text in rows:
        out.print(f"{name:<16} {text}", markup=False)
    for title, findings in (("problem", report["problems"]), ("note, no problem", report["notes"])):
        if findings:
            out.print()
            out.print(render.table("", (title, "count"), _lines(findings)))


def _lines(findings: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """A line for each finding and, set in, its first examples."""
    lines = []
    for finding in findings:
        lines.append((finding["what"], render.format_count(finding["count"])))
        lines += [(f"  {example}", "") for example in finding["examples"]]
    return lines


def _verdict(report: dict[str, Any]) -> str:
    if report["clean"]:
        return "Clean: every block is what its manifest says."
    if report["repaired"]:
        return "Repaired: all of the problems above was dropped from the manifest; what is left is clean."
    return "Not clean. A start leaves out what is bad, at the latest when it is read; --repair drops it now."


def _show_segments(segments: list[Segment], segment_nbytes: int, now_s: int) -> None:
    columns = ("segment", "state", "blocks", "live", "of it", "oldest", "newest", "opening")
    rows = [
        (
            segment.number,
            segment.state,
            render.format_count(segment.num_blocks) if segment.num_blocks else "-",
            render.format_nbytes(segment.live_nbytes) if segment.num_blocks else "-",
            render.format_ratio(segment.live_nbytes, segment_nbytes) if segment.num_blocks else "-",
            _age(segment.oldest_s, now_s),
            _age(segment.newest_s, now_s),
            segment.opening or "-",
        )
        for segment in segments
    ]
    out = render.console()
    out.print()
    out.print(render.table("", columns, rows))


def _age(time_s: int, now_s: int) -> str:
    return render.format_duration(max(0, now_s - time_s) * 1e6) if time_s else "-"
