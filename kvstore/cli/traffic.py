"""What moved between caller, memory and disk, for people and for programs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from kvstore.caller import Traffic
from kvstore.cli import render

if TYPE_CHECKING:
    from rich.table import Table


def traffic_table(paths: Mapping[str, Traffic]) -> Table:
    """One line per path; a path that carried nothing shows dashes."""
    rows = []
    for name, path in paths.items():
        numbers = (
            (
                render.format_nbytes(path.nbytes),
                render.format_duration(path.busy_us),
                render.format_rate(path.nbytes_per_s),
            )
            if path.nbytes
            else ("-", "-", "-")
        )
        rows.append((name.replace("_to_", " → "), *numbers))
    return render.table("", ("path", "bytes", "busy", "bandwidth"), rows)


def traffic_fields(paths: Mapping[str, Traffic]) -> dict[str, dict[str, int]]:
    """The same for JSON."""
    return {
        name: {"nbytes": path.nbytes, "busy_us": round(path.busy_us), "nbytes_per_s": round(path.nbytes_per_s)}
        for name, path in paths.items()
    }
