"""What more or less memory or disk would bring, from the statistics of a store: hits, and prefill that they save."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

OWN = "1x"  # the size that a tier has
GIB = 1 << 30
HOUR_S = 3600
FULL_MIN = 0.9  # what is less full than this has not shown all that it would hit


@dataclass(frozen=True, slots=True)
class Advice:
    """One tier at one size, against what it has. Ratios from 0 to 1; `saved_s_per_h`: prefill saved in each hour."""

    tier: str
    size: str  # "2x"
    capacity_nbytes: int
    added_nbytes: int  # less than 0 of a smaller one
    hit_ratio: float
    added_hit_ratio: float
    saved_s_per_h: float | None  # None: the prefill rate is not known
    saved_s_per_h_per_gib: float | None
    is_full: bool  # False: it has room left after all that was asked for; it may turn out to hit more


def advise(stats: Mapping[str, Any], prefill_tokens_per_s: float, recent: bool = True) -> Iterator[Advice]:
    """Every tier at every size; nothing where nothing is played. `prefill_tokens_per_s` 0: not known. `recent`: as of
    lately, else since the store was opened."""
    name = "hit_ratio" if recent else "hit_ratio_ever"
    asked_tokens_per_s = stats.get("shadow", {}).get("asked_tokens_per_s", 0.0)
    for tier, sizes in stats.get("whatif", {}).items():
        own = sizes[OWN]
        for size, row in sizes.items():
            added = row[name] - own[name]
            added_nbytes = row["capacity_nbytes"] - own["capacity_nbytes"]
            saved_s = None
            if prefill_tokens_per_s:
                saved_s = added * asked_tokens_per_s * HOUR_S / prefill_tokens_per_s
            yield Advice(
                tier=tier,
                size=size,
                capacity_nbytes=row["capacity_nbytes"],
                added_nbytes=added_nbytes,
                hit_ratio=row[name],
                added_hit_ratio=added,
                saved_s_per_h=saved_s,
                saved_s_per_h_per_gib=saved_s / (added_nbytes / GIB) if saved_s is not None and added_nbytes else None,
                is_full=row["full_ratio"] >= FULL_MIN,
            )
