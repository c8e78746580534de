"""kvstore stats: the numbers of a daemon."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import click

from kvstore.cli import Command, render
from kvstore.cli.remote import daemon_options, opened


@click.command(cls=Command, example="kvstore stats unix:/run/kvstore/kvstore.sock --json")
@daemon_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(target: str, token: str | None, ca: str | None, as_json: bool) -> int:
    """Show every number of the daemon at TARGET (unix:PATH or HOST:PORT). docs/operations.md says what they mean."""
    with opened(target, token, ca) as store:
        stats = store.stats()
    if as_json:
        render.print_json(stats)
        return 0
    out = render.console()
    for section, values in stats.items():
        rows = [(name, _shown(name, value)) for name, value in _flat(values)]
        if rows:
            out.print(render.table(section, ("", ""), rows))
            out.print()
    return 0


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _shown(name: str, value: Any) -> str:
    """A number in the unit that its name ends with."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if name.endswith("nbytes_per_s"):
        return render.format_rate(value)
    if name.endswith("nbytes"):
        return render.format_nbytes(value)
    if name.endswith("_us"):
        return render.format_duration(value)
    return render.format_count(value) if isinstance(value, int) else f"{value:,.1f}"
