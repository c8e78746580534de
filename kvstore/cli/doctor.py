"""kvstore doctor: what this machine gives to a store."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from kvstore.cli import Command, render
from kvstore.config import Config
from kvstore.doctor import Finding, examine


@click.command(cls=Command, example="kvstore doctor --config deploy/kvstore.toml")
@click.option(
    "--config", "path", type=click.Path(path_type=Path), help="TOML file of the store; default: all defaults."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(path: Path | None, as_json: bool) -> int:
    """Say which kernel settings and limits a store meets here.

    For each that is not good: what it costs, and the line that changes it. Changes nothing itself. Exit code 1 when
    something is wrong, not only slow.
    """
    findings = examine(Config.load(path))
    if as_json:
        render.print_json({"findings": [asdict(one) for one in findings]})
    else:
        _show(findings)
    return int(any(one.verdict == "wrong" for one in findings))


def _show(findings: list[Finding]) -> None:
    out = render.console()
    rows = [(one.name, one.verdict, one.found) for one in findings]
    out.print(render.table("", ("what", "verdict", "found"), rows, num_left=3))
    for one in findings:
        if one.verdict != "good":
            out.print(f"\n{one.name}: {one.cost}\n    {one.remedy}", markup=False, highlight=False)
