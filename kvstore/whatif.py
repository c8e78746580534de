"""What hit ratio each tier would have at other sizes, found while the store runs: the bookkeeping of csrc/c/whatif.h.

Memory is played as a cache of its own, without what the disk finds; of the disk it is what both find together.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

from kvstore import policy
from kvstore._core.index import Index
from kvstore._core.whatif import Shadows
from kvstore.errors import Unavailable

log = logging.getLogger("kvstore")

MEMORY, DISK = 0, 1
PLAY_BLOCKS = 8192  # in one piece: some two milliseconds


class Begun(NamedTuple):
    """What is played of a tier."""

    capacity_nbytes: int  # as it is
    sizes: tuple[int, ...]
    slot_nbytes: int  # of a block, about


class WhatIf:
    """For the blocks of `index`, whose policy remembers `ghosts_max` more. Caller holds the store's lock, except for
    `play`."""

    def __init__(self, index: Index, ghosts_max: int) -> None:
        self._shadows = Shadows(index, ghosts_max)
        self._slots: dict[int, int] = {}  # bytes of a block by namespace
        self._begun: dict[int, Begun] = {}  # by tier

    def define(self, ns: int, slot_nbytes: int, block_tokens: int) -> None:
        """Blocks of a namespace take so much and stand for so many tokens."""
        self._slots[ns] = slot_nbytes
        self._shadows.set_tokens(ns, block_tokens)

    def fit(self, near_nbytes: int, far_nbytes: int, now_ms: int) -> None:
        """Play the tiers as large as they are now (0: there is no disk). One that is not what it was begins anew, as
        does one whose blocks are of a size that makes its sample far too small or too large."""
        if not self._slots:
            return
        self._fit(MEMORY, near_nbytes, policy.whatif_memory(near_nbytes), now_ms)
        if far_nbytes:
            self._fit(DISK, far_nbytes, policy.whatif_disk(near_nbytes, far_nbytes), now_ms)
        elif self._begun.pop(DISK, None) is not None:
            self._shadows.end(DISK)

    def _fit(self, tier: int, capacity_nbytes: int, sizes: tuple[int, ...], now_ms: int) -> None:
        begun = self._begun.get(tier)
        slot = self._slot_nbytes(tier, begun, now_ms)
        if begun is not None and sizes == begun.sizes and not policy.whatif_is_off(begun.slot_nbytes, slot):
            return
        self._begun[tier] = Begun(capacity_nbytes, sizes, slot)
        try:
            self._shadows.begin(tier, sizes, policy.WHATIF_OWN, slot)
        except Unavailable as error:  # the store does without; it is tried again when a size changes
            log.warning("%s", error)

    def _slot_nbytes(self, tier: int, begun: Begun | None, now_ms: int) -> int:
        """Mean bytes of the blocks that were asked for lately; before any were, of the namespaces'."""
        asked_slot = round(self._shadows.figures(tier, now_ms)[-1]) if begun is not None else 0
        return asked_slot or (begun.slot_nbytes if begun else sum(self._slots.values()) // len(self._slots))

    def play(self) -> bool:
        """Play a piece of what was heard; whether there is more."""
        return self._shadows.play(PLAY_BLOCKS)

    def check(self) -> int:
        """Audit: 0, or the number of the broken rule. For tests."""
        return self._shadows.check() or 1000 * bool(self._shadows.num_refused)

    def stats(self, names: Mapping[int, str], now_ms: int) -> dict[str, Any]:
        """The sections `whatif`, by tier and size, and `shadow`."""
        rows: dict[str, dict[str, Any]] = {}
        requests, tokens_per_s = 0, 0.0
        for tier, begun in sorted(self._begun.items()):
            figures, share, requests, tokens_per_s, _ = self._shadows.figures(tier, now_ms)
            rows[names[tier]] = {
                size: {
                    "capacity_nbytes": int(begun.capacity_nbytes * factor),
                    "hit_ratio": recent,
                    "hit_ratio_ever": ever,
                    "full_ratio": full,
                    "sampled_ratio": share,
                }
                for (size, factor), (recent, ever, full) in zip(policy.WHATIF_FACTORS.items(), figures, strict=True)
            }
        return {"whatif": rows, "shadow": self._shadow(requests, tokens_per_s)}

    def _shadow(self, requests: int, tokens_per_s: float) -> dict[str, Any]:
        return {
            "requests": requests,
            "dropped_requests": self._shadows.num_dropped,
            "asked_tokens_per_s": tokens_per_s,
            "nbytes": self._shadows.nbytes,
        }


def nothing() -> dict[str, Any]:
    """The same sections of a store that plays nothing."""
    names = ("requests", "dropped_requests", "asked_tokens_per_s", "nbytes")
    return {"whatif": {}, "shadow": dict.fromkeys(names, 0)}
