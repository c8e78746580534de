"""What subcommands print with: numbers for people, tables, progress, JSON. Rich is imported when needed."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import click
import numpy as np

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table

NBYTES_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
TIMES_US = ((1.0, "µs"), (1e3, "ms"), (1e6, "s"), (60e6, "min"), (3600e6, "h"))


def format_nbytes(nbytes: float) -> str:
    """1536 → "1.50 KiB": three significant digits, in powers of 1,024."""
    value, unit = float(nbytes), 0
    while abs(value) >= 999.5 and unit < len(NBYTES_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.0f} B" if unit == 0 else f"{_digits(value)} {NBYTES_UNITS[unit]}"


def format_rate(nbytes_per_s: float) -> str:
    """2e9 → "2.00 GB/s": three significant digits, in powers of 1,000 as bandwidths are given."""
    value, unit = float(nbytes_per_s), 0
    units = ("B/s", "kB/s", "MB/s", "GB/s", "TB/s")
    while abs(value) >= 999.5 and unit < len(units) - 1:
        value, unit = value / 1000, unit + 1
    return f"{_digits(value)} {units[unit]}"


def format_duration(duration_us: float) -> str:
    """1500 → "1.50 ms": three significant digits, in the largest unit that keeps the number above one."""
    fitting = [pair for pair in TIMES_US if abs(duration_us) >= 0.9995 * pair[0]]
    scale, unit = fitting[-1] if fitting else TIMES_US[0]
    return f"{_digits(duration_us / scale)} {unit}"


def format_count(count: int) -> str:
    """1234567 → "1,234,567"."""
    return f"{count:,}"


def format_ratio(part: float, whole: float) -> str:
    """A share in per cent, or "-" of nothing."""
    return f"{100 * part / whole:.1f} %" if whole else "-"


def _digits(value: float) -> str:
    """Three significant digits for values below 1,000, grouped whole numbers above."""
    size = abs(value)
    if size >= 99.95:
        return f"{value:,.0f}"
    return f"{value:.1f}" if size >= 9.995 else f"{value:.2f}"


def console(*, stderr: bool = False) -> Console:
    """Where tables go; progress goes to standard error, so that a pipe gets the results alone."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], num_left: int = 1) -> Table:
    """A table: the first `num_left` columns to the left, all others to the right. Cells are shown
    with str(), those that are a rich Text as they are."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    shown = Table(
        title=title or None,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,
        show_header=any(columns),
    )
    for position, column in enumerate(columns):
        shown.add_column(column, justify="left" if position < num_left else "right")
    for row in rows:
        shown.add_row(*(cell if isinstance(cell, Text) else Text(str(cell)) for cell in row))  # a "[" is no markup
    return shown


def progress(description: str, total: int) -> Progress:
    """A progress bar on standard error with one task; silent where that is not a terminal.

    Use it as a context manager and call `.advance(shown.task_ids[0], number_done)`.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    shown = Progress(*columns, console=console(stderr=True), transient=True, disable=not sys.stderr.isatty())
    shown.add_task(description, total=total)
    return shown


def without_grpc_log() -> None:
    """gRPC's core writes to standard error by itself when a connection ends: not into a screen that is drawn. Call it
    before gRPC is loaded; who has set the variable keeps what it says."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")


def print_json(value: object) -> None:
    """One line of JSON on standard output. NumPy's numbers and arrays, bytes and sets have a JSON form."""
    click.echo(json.dumps(value, default=_plain, allow_nan=False))


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, set | frozenset):
        return sorted(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")
