"""One frame of `kvstore top`: the numbers of a daemon laid out for the width and height that there are."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from kvstore.cli import render
from kvstore.rates import BLOCKS, EVICTIONS, PATHS, Rates, Stats, hit_ratio, value

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.table import Table
    from rich.text import Text

BAR_CELLS_MAX, BAR_CELLS_MIN = 40, 5
WIDE = 80  # from here on bandwidth and blocks stand beside each other
ROOMY_WIDE = 100  # and paths are named at length
ROOMY = 40  # lines from which on tables have rules
GAP = 3  # cells between two columns of a table
NAME_MIN = 20  # cells of a name
ROWS_MIN, ROWS_MAX = 2, 40  # of namespaces and of clients
# Path → its name, short and at length.
PATH_TEXTS = {
    "put": ("put", "put: callers → memory"),
    "got": ("get", "get: memory → callers"),
    "write": ("disk write", "write: memory → disk"),
    "read": ("promote", "promote: disk → memory"),
    "received": ("gRPC in", "received over gRPC"),
    "sent": ("gRPC out", "sent over gRPC"),
}
BLOCK_TEXTS = {
    "asked": "asked for",
    "found": "found",
    "written": "written to disk",
    "promoted": "promoted",
}
EVICTION_TEXTS = {
    "near": "evicted from memory",
    "unwritten": "of these, lost",
    "far": "evicted from disk",
}


@dataclass(frozen=True, slots=True)
class Sample:
    """What is known at one moment: the latest answer, also when it is an old one because the daemon has gone.

    `time_s`, `gone_since_s`: seconds since 1970. `rates`: None before the second answer, and while it is gone.
    """

    time_s: int
    stats: Stats | None = None
    rates: Rates | None = None
    gone_since_s: int | None = None
    reason: str = ""


class Frame:
    """A sample as rich shows it. Reads nothing but its arguments; safe to render again after a resize."""

    def __init__(self, target: str, sample: Sample) -> None:
        self.target, self.sample = target, sample
        self._compact = False

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The parts from top to bottom. A low terminal costs the rules under the titles, then rows of the lists."""
        from rich.styled import Styled

        width = options.max_width
        height = options.height or (console.size.height if console.is_terminal else None)
        self._compact = height is not None and height < ROOMY
        yield from self._head(width)
        stats = self.sample.stats
        if stats is None:
            return
        tables = [self._tiers(stats, width), *self._movement(stats, width), *self._lists(stats, width, height)]
        for table in tables:
            yield ""
            yield table if self.sample.gone_since_s is None else Styled(table, "dim")  # what it shows is old

    def _lists(self, stats: Stats, width: int, height: int | None) -> list[Table]:
        spaces, clients = _space_rows(stats), _client_rows(stats, self.sample.rates)
        lines = None if height is None else height - self._num_lines(stats, width)
        for_spaces, for_clients = shares(lines, len(spaces), len(clients))
        columns = ("calls/s", "under way", "in flight", "leased", "reserved")
        return [
            self._list("Namespaces", ("blocks", "size", "quota", "used"), spaces, for_spaces, width),
            self._list("Clients", columns, clients, for_clients, width),
        ]

    def _num_lines(self, stats: Stats, width: int) -> int:
        """Of everything but the rows of the two lists."""
        titles = 1 if self._compact else 2
        paths, blocks = titles + len(PATH_TEXTS), titles + len(BLOCK_TEXTS) + len(EVICTION_TEXTS)
        moved = max(paths, blocks) if width >= WIDE else paths + 1 + blocks
        ill = len(_ill(stats)) if self.sample.gone_since_s is None else 0
        return (
            3 + ill + len(_whatif(stats)) + (1 + titles + len(stats.get("tiers", {}))) + (1 + moved) + 2 * (1 + titles)
        )

    def _table(self, columns: Sequence[str], rows: Sequence[Sequence[Any]], num_left: int = 1) -> Table:
        """One line per row, whatever the width; the first column's header is the title."""
        table = render.table("", columns, rows, num_left)
        if self._compact:
            table.box = None
        for column in table.columns:
            column.no_wrap, column.overflow = True, "ellipsis"
        return table

    # ---- the top ----

    def _head(self, width: int) -> list[Text]:
        from rich.text import Text

        sample = self.sample
        clock = _time(sample.time_s)
        title = Text(f"kvstore top  {self.target}", style="bold")
        title.truncate(max(1, width - len(clock) - 2), overflow="ellipsis")
        title.append(" " * max(2, width - title.cell_len - len(clock)) + clock)
        lines = [title]
        if sample.gone_since_s is not None:
            gone_s = sample.time_s - sample.gone_since_s
            ago = f", for {render.format_duration(gone_s * 1e6)}" if gone_s else ""
            lines.append(Text(f"not reachable since {_time(sample.gone_since_s)}{ago}", style="bold red"))
            lines.append(Text(_plain(sample.reason), style="red"))
        elif sample.stats is not None:
            lines += [self._serving(sample.stats), self._hits(sample.stats)]
            lines += [Text(line) for line in _whatif(sample.stats)]
            lines += [Text(f"{name} tier at rest: {why}", style="bold red") for name, why in _ill(sample.stats)]
        for line in lines:
            line.truncate(width, overflow="ellipsis")
        return lines

    def _serving(self, stats: Stats) -> Text:
        from rich.text import Text

        now = self.sample.rates
        line = Text("serving", style="green")
        line.append(f" for {render.format_duration(value(stats, 'service.uptime_us'))}", style="default")
        if now is not None and now.restarted:
            line.append(", restarted", style="bold yellow")
        calls = now.calls_per_s if now is not None else {}
        held = render.format_nbytes(value(stats, "service.held_nbytes"))
        line.append(f" · {_per_s(calls.get('calls'))} calls/s · {_per_s(calls.get('refused'))} refused/s", "default")
        return line.append(f" · {value(stats, 'service.long_calls'):,} under way hold {held}", style="default")

    def _hits(self, stats: Stats) -> Text:
        from rich.text import Text

        now = self.sample.rates
        line = Text("hit rate ")
        line.append("-" if now is None else _percent(now.hit_ratio), style="bold")
        over = "" if now is None else f" in {render.format_duration(now.seconds * 1e6)}"
        return line.append(f"{over} · {_percent(hit_ratio(stats))} since the start")

    # ---- tables ----

    def _tiers(self, stats: Stats, width: int) -> Table:
        from rich.text import Text

        columns: list[str] = ["Tiers", "full", "used", "capacity", "blocks", "health"]
        rows: list[list[Any]] = []
        fills: list[tuple[float, float]] = []
        for name, tier in stats.get("tiers", {}).items():
            used, most = tier.get("used_nbytes", 0), tier.get("capacity_nbytes", 0)
            sizes = [render.format_ratio(used, most), render.format_nbytes(used), render.format_nbytes(most)]
            health = Text("good", "green") if tier.get("healthy", True) else Text("at rest", "bold red")
            if self.sample.gone_since_s is not None:
                health = Text("-")
            rows.append([name, *sizes, _count(tier.get("blocks", 0)), health])
            fills.append((used, most))
        cells = width - sum(_widest(columns, rows, at) + GAP for at in range(len(columns)))
        if cells >= BAR_CELLS_MIN:
            columns.insert(1, "")
            for row, fill in zip(rows, fills, strict=True):
                row.insert(1, bar(*fill, min(cells, BAR_CELLS_MAX)))
        table = self._table(columns, rows, num_left=1 + (len(columns) > 6))
        table.columns[-1].justify = "left"
        return table

    def _movement(self, stats: Stats, width: int) -> list[Any]:
        from rich.table import Table

        now = self.sample.rates or Rates(0)  # it has no rates, which are dashes
        moved = [
            (
                texts[width >= ROOMY_WIDE],
                _rate(now.nbytes_per_s.get(key)),
                render.format_nbytes(value(stats, PATHS[key])),
            )
            for key, texts in PATH_TEXTS.items()
        ]
        counted = [
            (text, _per_s(per_s.get(key)), _count(value(stats, names[key])))
            for texts, names, per_s in (
                (BLOCK_TEXTS, BLOCKS, now.blocks_per_s),
                (EVICTION_TEXTS, EVICTIONS, now.evictions_per_s),
            )
            for key, text in texts.items()
        ]
        left = self._table(("Bandwidth", "now", "total"), moved)
        right = self._table(("Blocks", "a second", "total"), counted)
        for table, widths in ((left, (9, 8)), (right, (8, 9))):  # so that columns stand still while numbers change
            for column, cells in zip(table.columns[1:], widths, strict=True):
                column.min_width = cells
        if width < WIDE:
            return [left, right]
        both = Table.grid(padding=(0, 5, 0, 0))
        both.add_row(left, right)
        return [both]

    def _list(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], most: int, width: int) -> Table:
        """The first `most` rows. When a line is too short the name gives way first, then the last columns do."""
        from rich.text import Text

        shown = rows[:most]
        title += f": {len(rows):,}" if len(shown) == len(rows) else f": {len(shown)} of {len(rows):,}"
        columns = (title, *columns)
        widths = [_widest(columns, shown, at) + GAP for at in range(1, len(columns))]
        while len(widths) > 1 and width - sum(widths) < min(NAME_MIN, max(_widest(columns, shown, 0), len(title))):
            widths.pop()
        lines: list[Sequence[Any]] = []
        for row in shown:
            name = Text(row[0])
            name.truncate(max(len(title), width - sum(widths)), overflow="ellipsis")
            lines.append((name, *row[1 : 1 + len(widths)]))
        return self._table(columns[: 1 + len(widths)], lines)


def bar(part: float, whole: float, cells: int) -> Text:
    """A bar of so many cells; anything but nothing shows, and only what is full looks so."""
    from rich.text import Text

    filled = int(cells * min(1.0, part / whole)) if whole > 0 else 0
    filled = max(filled, int(part > 0 and cells > 0))
    return Text("█" * filled, "cyan") + Text("░" * (cells - filled), "dim")


def shares(lines: int | None, num_spaces: int, num_clients: int) -> tuple[int, int]:
    """Rows for namespaces and for clients of so many lines (None: no limit but ROWS_MAX): each what it needs if the
    other leaves it, at least ROWS_MIN."""
    if lines is None:
        return ROWS_MAX, ROWS_MAX
    half = max(ROWS_MIN, lines // 2)
    spaces = max(half, lines - num_clients)
    return min(ROWS_MAX, spaces), min(ROWS_MAX, max(half if num_spaces > half else lines - num_spaces, ROWS_MIN))


def _space_rows(stats: Stats) -> list[Sequence[Any]]:
    """Those that take most first."""
    spaces: Mapping[str, Mapping[str, Any]] = stats.get("namespaces", {})
    rows: list[Sequence[Any]] = []
    for name, row in sorted(spaces.items(), key=lambda item: (-item[1].get("used_nbytes", 0), item[0])):
        used, quota = row.get("used_nbytes", 0), row.get("quota_nbytes", 0)
        limits = (render.format_nbytes(quota), render.format_ratio(used, quota)) if quota else ("-", "-")
        rows.append((_plain(name), _count(row.get("blocks", 0)), render.format_nbytes(used), *limits))
    return rows


def _client_rows(stats: Stats, rates: Rates | None) -> list[Sequence[Any]]:
    """Those that hold most first, then those that call most."""
    clients: Mapping[str, Mapping[str, Any]] = stats.get("service", {}).get("clients", {})
    per_s = rates.clients if rates is not None else {}

    def weight(item: tuple[str, Mapping[str, Any]]) -> tuple[float, ...]:
        name, row = item
        return -row.get("held_nbytes", 0), -row.get("long_calls", 0), -per_s.get(name, 0.0)

    return [
        (
            _plain(unquote(name)) or "-",
            _per_s(per_s.get(name) if rates is not None else None),
            render.format_count(row.get("long_calls", 0)),
            render.format_nbytes(row.get("held_nbytes", 0)),
            render.format_count(row.get("leased_blocks", 0)),
            render.format_count(row.get("reserved_blocks", 0)),
        )
        for name, row in sorted(clients.items(), key=weight)
    ]


def _ill(stats: Stats) -> list[tuple[str, str]]:
    tiers = stats.get("tiers", {})
    return [(name, _plain(row.get("reason", ""))) for name, row in tiers.items() if not row.get("healthy", True)]


def _whatif(stats: Stats) -> list[str]:
    """A line for each tier, once there is something to say: what it would hit at other sizes."""
    if not value(stats, "shadow.requests"):
        return []
    return [
        f"{name} would hit " + " · ".join(f"{size}: {_percent(row.get('hit_ratio'))}" for size, row in sizes.items())
        for name, sizes in stats.get("whatif", {}).items()
    ]


def _plain(text: str) -> str:
    """One line without control characters: callers choose the names of their namespaces, and this is a terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in " ".join(text.split()))


def _widest(columns: Sequence[str], rows: Sequence[Sequence[Any]], at: int) -> int:
    return max(len(str(row[at])) for row in (columns, *rows))


def _time(time_s: int) -> str:
    return time.strftime("%H:%M:%S", time.localtime(time_s))


def _count(count: float) -> str:
    """A count that never gets wider than nine digits."""
    return render.format_count(int(count)) if count < 1e9 else f"{count / 1e6:,.0f} M"


def _percent(ratio: float | None) -> str:
    return "-" if ratio is None else f"{100 * ratio:.1f} %"


def _rate(nbytes_per_s: float | None) -> str:
    return "-" if nbytes_per_s is None else render.format_rate(nbytes_per_s) if nbytes_per_s else "0"


def _per_s(rate: float | None) -> str:
    """A number a second: whole from ten on."""
    if rate is None:
        return "-"
    return "0" if rate == 0 else f"{rate:,.0f}" if rate >= 9.95 else f"{rate:.1f}"
