"""What hit ratio each tier would have at other sizes, found while the store runs: the bookkeeping of csrc/c/whatif.h.

Memory is played as a cache of its own, without what the disk finds. The disk is played as one cache with memory before
it: it is asked about as what the two find together.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from kvstore import policy
from kvstore._core.index import Index
from kvstore._core.whatif import Shadows
from kvstore.errors import Unavailable

log = logging.getLogger("kvstore")

MEMORY, DISK = 0, 1
PLAY_BLOCKS = 8192  # in one piece: some two milliseconds


class WhatIf:
    """For the blocks of `index`, whose policy remembers `ghosts_max` more. Caller holds the store's lock, but for `play`
    and `stats`."""

    def __init__(self, index: Index, ghosts_max: int) -> None:
        self._shadows = Shadows(index, ghosts_max)
        self._slots: dict[int, int] = {}  # bytes of a block by namespace
        self._begun: dict[int, tuple[tuple[int, ...], int]] = {}  # tier → sizes that are played, and bytes of a block

    def define(self, ns: int, slot_nbytes: int, block_tokens: int) -> None:
        """Blocks of a namespace take so much and stand for so many tokens."""
        self._slots[ns] = slot_nbytes
        self._shadows.set_tokens(ns, block_tokens)

    def fit(self, near_nbytes: int, far_nbytes: int | None, now_ms: int) -> None:
        """Play the tiers as large as they are now (None: there is no disk). One that is not what it was begins anew, as
        does one whose blocks are of a size that makes its sample far too small or too large."""
        if not self._slots:
            return
        self._fit(MEMORY, policy.whatif_memory(near_nbytes), now_ms)
        self._fit(DISK, policy.whatif_disk(near_nbytes, far_nbytes) if far_nbytes else None, now_ms)

    def _fit(self, tier: int, sizes: tuple[int, ...] | None, now_ms: int) -> None:
        begun_sizes, begun_slot = self._begun.get(tier, (None, 0))
        if sizes is None:
            if self._begun.pop(tier, None) is not None:
                self._shadows.end(tier)
            return
        slot = self._slot_nbytes(tier, begun_slot, now_ms)
        if sizes == begun_sizes and not policy.whatif_is_off(begun_slot, slot):
            return
        self._begun[tier] = (sizes, slot)
        try:
            self._shadows.begin(tier, sizes, policy.WHATIF_OWN, slot)
        except Unavailable as error:  # the store does without; it is tried again when a size changes
            log.warning("%s", error)

    def _slot_nbytes(self, tier: int, begun_slot: int, now_ms: int) -> int:
        """Mean bytes of the blocks that were asked for lately; before any were, of the namespaces'."""
        if begun_slot:
            *_, asked_slot = self._shadows.figures(tier, now_ms)
            return round(asked_slot) or begun_slot
        return sum(self._slots.values()) // len(self._slots)

    def play(self) -> bool:
        """Play a piece of what was heard; whether there is more."""
        return self._shadows.play(PLAY_BLOCKS)

    def check(self) -> int:
        """Audit: 0, or the number of the broken rule. For tests."""
        return self._shadows.check() or 1000 * bool(self._shadows.num_refused)

    def stats(self, names: Mapping[int, str], now_ms: int) -> dict[str, Any]:
        """The sections `whatif`, by tier and size, and `shadow`."""
        found = {tier: self._shadows.figures(tier, now_ms) for tier in self._begun}
        requests, tokens_per_s = 0, 0.0
        rows: dict[str, dict[str, Any]] = {}
        for tier, (sizes, share, requests, tokens_per_s, _) in found.items():
            rows[names[tier]] = {
                factor: {
                    "capacity_nbytes": nbytes,
                    "hit_ratio": recent,
                    "hit_ratio_ever": ever,
                    "full_ratio": min(full, 1.0),
                    "sampled_ratio": share,
                }
                for factor, nbytes, (recent, ever, full) in zip(
                    policy.WHATIF_FACTORS, self._begun[tier][0], sizes, strict=True
                )
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
