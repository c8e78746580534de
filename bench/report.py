"""What a benchmark yields, on what machine it ran, and how both are shown and saved."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

CPUINFO = Path("/proc/cpuinfo")
SYS_MM = Path("/sys/kernel/mm")
WIDTH_MIN = 120  # a table piped into a file would otherwise be cut to 80 columns


@dataclass(frozen=True, slots=True)
class Result:
    """One figure.

    `value`, `ceiling`, `p50`, `p99` are in `unit`. `ceiling` is the best the machine gives to the same work
    in the same run; `ceiling_name` says what it is. Half and 99 % of the `runs` were at least as good as
    `p50` and `p99`: for a time the usual percentile, for a rate the one from the other end. `detail` is a
    remark.
    """

    bench: str
    case: str
    value: float
    unit: str
    ceiling: float | None = None
    ceiling_name: str | None = None
    p50: float | None = None
    p99: float | None = None
    runs: int | None = None
    detail: str | None = None

    @property
    def ratio(self) -> float | None:
        """value / ceiling, for times as for rates."""
        return self.value / self.ceiling if self.ceiling else None

    def as_dict(self) -> dict[str, Any]:
        """What --json prints: the keys that have a meaning here, numbers to six significant digits."""
        fields = {
            "bench": self.bench,
            "case": self.case,
            "value": self.value,
            "unit": self.unit,
            "ceiling": self.ceiling,
            "ceiling_name": self.ceiling_name,
            "ratio": self.ratio,
            "p50": self.p50,
            "p99": self.p99,
            "runs": self.runs,
        }
        return {
            key: float(f"{value:.6g}") if isinstance(value, float) else value
            for key, value in fields.items()
            if value is not None
        }


def machine() -> dict[str, Any]:
    """The hardware and system under a run: what a figure means little without."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 2),
        "pages": _page_kinds(),
    }


def save(path: Path, results: Iterable[Result], hardware: dict[str, Any], command: str) -> None:
    """Write the results with the commit, the hardware and the command that made them."""
    record = {
        "commit": _commit(),
        "hardware": hardware,
        "command": command,
        "results": [result.as_dict() for result in results],
    }
    path.write_text(json.dumps(record, indent=1) + "\n")


def show(results: Iterable[Result], hardware: dict[str, Any]) -> None:
    """Print the machine and a table of the results."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=max(console.width, WIDTH_MIN))
    console.print(", ".join(f"{key} {value}" for key, value in hardware.items()), highlight=False)
    table = Table()
    for name in ("bench", "case"):
        table.add_column(name, no_wrap=True)
    for name in ("figure", "ceiling", "ratio", "p50", "p99", "runs"):
        table.add_column(name, justify="right")
    table.add_column("remarks")
    for result in results:
        table.add_row(*_cells(result))
    console.print(table)


def _cells(result: Result) -> list[str]:
    ceiling = f"{_figure(result.ceiling)} {result.ceiling_name or ''}".strip()
    return [
        result.bench,
        result.case,
        f"{_figure(result.value)} {result.unit}",
        ceiling,
        "" if result.ratio is None else f"{result.ratio:.3f}",
        _figure(result.p50),
        _figure(result.p99),
        "" if result.runs is None else str(result.runs),
        result.detail or "",
    ]


def _figure(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _cpu_model() -> str:
    if CPUINFO.exists():
        for line in CPUINFO.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _page_kinds() -> str:
    """What pages memory may get here: transparent huge ones, private and shared, and reserved huge ones."""
    kinds = []
    for name, file in (("anonymous", "enabled"), ("shared", "shmem_enabled")):
        path = SYS_MM / "transparent_hugepage" / file
        if path.exists():
            kinds.append(f"{name} huge={path.read_text().partition('[')[2].partition(']')[0]}")
    for path in sorted(SYS_MM.glob("hugepages/hugepages-*/nr_hugepages")):
        kinds.append(f"{path.parent.name.removeprefix('hugepages-')}={path.read_text().strip()}")
    return "; ".join(kinds) or f"{os.sysconf('SC_PAGE_SIZE')} bytes"


def _commit() -> str:
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
    )
    return described.stdout.strip() or "unknown"
