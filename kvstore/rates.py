"""What happened between two answers of Stats: rates and shares, computed from nothing but the two."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Stats = Mapping[str, Any]

# Path → its counter. `read` is all that promotions read; the streams carry a part of `put` and `got`.
PATHS = {
    "put": "traffic.put_nbytes",
    "got": "traffic.got_nbytes",
    "write": "mover.write_nbytes",
    "read": "mover.read_nbytes",
    "received": "service.received_nbytes",
    "sent": "service.sent_nbytes",
}
BLOCKS = {
    "asked": "lookups.blocks_asked",
    "found": "lookups.blocks_found",
    "near": "lookups.blocks_near",
    "written": "mover.written_blocks",
    "promoted": "mover.promoted_blocks",
}
EVICTIONS = {"near": "index.evicted_near", "far": "index.evicted_far", "unwritten": "index.dropped_unwritten"}
CALLS = {"calls": "service.calls", "refused": "service.refused"}
COUNTERS = (*PATHS.values(), *BLOCKS.values(), *EVICTIONS.values(), *CALLS.values())
UPTIME = "service.uptime_us"


@dataclass(frozen=True, slots=True)
class Rates:
    """Changes a second over `seconds`, under the names of the tables above; `clients`: calls a second by client.

    `restarted`: a daemon's new life began in between; the rates are then those of this life alone. `hit_ratio`: blocks
    found over blocks asked for, None when nothing was asked.
    """

    seconds: float
    restarted: bool = False
    hit_ratio: float | None = None
    nbytes_per_s: dict[str, float] = field(default_factory=dict)
    blocks_per_s: dict[str, float] = field(default_factory=dict)
    evictions_per_s: dict[str, float] = field(default_factory=dict)
    calls_per_s: dict[str, float] = field(default_factory=dict)
    clients: dict[str, float] = field(default_factory=dict)


def value(stats: Stats, name: str) -> float:
    """The number "SECTION.NAME"; 0 where a daemon of another version has none."""
    section, _, rest = name.partition(".")
    found: float = stats.get(section, {}).get(rest, 0)
    return found


def hit_ratio(stats: Stats) -> float | None:
    """Blocks found over blocks asked for since the store was opened; None when nothing was asked."""
    asked = value(stats, BLOCKS["asked"])
    return value(stats, BLOCKS["found"]) / asked if asked else None


def is_another_life(before: Stats, after: Stats) -> bool:
    """Did the daemon begin anew between two answers? Its uptime fell, or a number that can only grow."""
    return any(value(after, name) < value(before, name) for name in (UPTIME, *COUNTERS))


def rates(before: Stats, after: Stats, seconds: float) -> Rates:
    """The rates between two answers that came `seconds` apart; all 0 when no time has passed.

    After a restart everything counts from zero, and over the time since then if that is known.
    """
    restarted = is_another_life(before, after)
    if restarted:
        uptime_s = value(after, UPTIME) / 1e6
        before, seconds = {}, min(seconds, uptime_s) if uptime_s > 0 else seconds

    def rate(since: float, now: float) -> float:
        return (now - since) / seconds if seconds > 0 else 0.0

    def table(names: Mapping[str, str]) -> dict[str, float]:
        return {key: rate(value(before, name), value(after, name)) for key, name in names.items()}

    asked = value(after, BLOCKS["asked"]) - value(before, BLOCKS["asked"])
    found = value(after, BLOCKS["found"]) - value(before, BLOCKS["found"])
    return Rates(
        seconds=seconds,
        restarted=restarted,
        hit_ratio=found / asked if asked else None,
        nbytes_per_s=table(PATHS),
        blocks_per_s=table(BLOCKS),
        evictions_per_s=table(EVICTIONS),
        calls_per_s=table(CALLS),
        clients={name: rate(*_calls(before, name, row)) for name, row in _clients(after).items()},
    )


def _clients(stats: Stats) -> Mapping[str, Mapping[str, Any]]:
    found: Mapping[str, Mapping[str, Any]] = stats.get("service", {}).get("clients", {})
    return found


def _calls(before: Stats, name: str, row: Mapping[str, Any]) -> tuple[float, float]:
    """A client's calls then and now; one that was forgotten in between counts from zero."""
    then, now = _clients(before).get(name, {}).get("calls", 0), row.get("calls", 0)
    return (then if then <= now else 0), now
