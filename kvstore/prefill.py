"""Prefill: whether what is far is loaded or computed anew, whichever is there first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from kvstore import policy
from kvstore._core.index import NONE
from kvstore.arrays import Ids

if TYPE_CHECKING:
    from kvstore.mover import Mover


class Cut(NamedTuple):
    """Of the blocks behind the near ones: the leading `kept` are worth loading, in `load_us`; `skipped` are not, and
    take `recompute_us`. Both times are estimates, 0 while nothing is known of them."""

    kept: int
    far: int  # of the kept ones; the others are near already
    load_us: int = 0
    skipped: int = 0
    recompute_us: int = 0


class Prefill:
    """How fast callers compute, by namespace, and what they skip therefore. Caller holds the store's lock.

    The rate is what a call says, else what is configured, else what was learned from `computed`; 0 is not known.
    Nothing is skipped while it is not known, or while nothing was read from the far tier. When skipping leaves that
    idle, one request in a while loads a piece of what it would skip, and so finds out how fast the tier is now.
    """

    def __init__(self, mover: Mover) -> None:
        self._mover, self._configured_per_s = mover, mover.limits.prefill_tokens_per_s
        self._learned: dict[int, policy.TokenRate] = {}  # by namespace
        self._probed_us = 0
        self.num_skipped = self.num_probes = 0

    def computed(self, ns: int, num_tokens: int, elapsed_us: float) -> None:
        """A caller has computed so many tokens of a prompt in this time."""
        rate = self._learned.setdefault(ns, policy.TokenRate())
        rate.record(num_tokens, elapsed_us, self._mover.clock.now_us())

    def learned_per_s(self, ns: int) -> float:
        """What `computed` has taught; 0 while it was not called."""
        return self._learned[ns].tokens_per_s if ns in self._learned else 0.0

    def per_s(self, ns: int, given: float | None) -> float:
        """Tokens that are computed in a second; 0: not known. Needs no lock."""
        return (self._configured_per_s or self.learned_per_s(ns)) if given is None else given

    def load_us(self, num_blocks: int, ns: int, num_coming: int = 0) -> int:
        """Estimate until `num_blocks` far blocks are near, of which so many are under way already: the queue and they,
        at the measured bandwidth. Needs no lock."""
        nbytes = (num_blocks - num_coming) * self._mover.sizes[ns].block_nbytes + int(self._mover.put.arriving_nbytes)
        return self._mover.read_bandwidth.estimate_us(nbytes) if num_blocks else 0

    def cut(self, ids: Ids, ns: int, given: float | None, *, takes: bool) -> Cut:
        """What of the stored blocks `ids`, the first of them far, is worth loading. `takes`: they are asked for now,
        which counts, and not only looked at."""
        mover, sizes = self._mover, self._mover.sizes[ns]
        is_far = self._is_far(ids)
        num_far, num_coming = int(is_far.sum()), mover.promoter.num_coming(ids)
        load_us = self.load_us(num_far, ns, num_coming)
        per_s, path = self.per_s(ns, given), mover.read_bandwidth
        if not per_s or not path.nbytes or not num_far:
            return Cut(len(ids), num_far, load_us)
        block_us, compute_us = path.estimate_us(sizes.block_nbytes), sizes.block_tokens * 1e6 / per_s
        queue_us = path.estimate_us(int(mover.put.arriving_nbytes))
        kept = policy.blocks_to_load(len(ids), num_far - num_coming, queue_us, block_us, compute_us)
        if not kept and policy.may_probe(mover.clock.now_us(), path.busy_until_us, self._probed_us):
            kept = self._probe(len(ids), sizes.slot_nbytes, takes=takes)
        num_skipped = len(ids) - kept
        if takes:
            self.num_skipped += num_skipped
        num_far = int(is_far[:kept].sum())
        load_us = self.load_us(num_far, ns, min(num_coming, num_far))
        return Cut(kept, num_far, load_us, num_skipped, int(num_skipped * compute_us))

    def _is_far(self, ids: Ids) -> Any:
        near_places, *_ = self._mover.index.describe(ids)
        return near_places == NONE

    def _probe(self, num_blocks: int, slot_nbytes: int, *, takes: bool) -> int:
        if takes:
            self._probed_us = self._mover.clock.now_us()
            self.num_probes += 1
        return min(num_blocks, policy.read_blocks(slot_nbytes))

    def stats(self) -> dict[str, Any]:
        """Counters for the section `lookups`."""
        return {"blocks_skipped": self.num_skipped, "probes": self.num_probes}
