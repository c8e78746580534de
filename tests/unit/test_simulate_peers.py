"""The same hit ratios from another simulator, libcachesim, where it is installed.

It knows blocks, not requests: a request's blocks are looked up first, and then asked for from the last to the first.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from simulate_helpers import known_demand

from kvstore.simulate import Demand, blocks_of, simulate

peer = pytest.importorskip("libcachesim", reason="libcachesim is not installed")

NEVER = 2**62


def prefix_hits(cache: Any, asked: Demand) -> int:
    """Leading blocks that are cached when a request comes."""
    hits = 0
    requests = [peer.Request(obj_id=number + 1, obj_size=1) for number in range(asked.num_unique)]
    ids, starts = asked.ids.tolist(), asked.starts.tolist()
    for start, end in pairwise(starts):
        chain = [requests[number] for number in ids[start:end]]
        hits += next((at for at, one in enumerate(chain) if cache.find(one, False) is None), len(chain))
        for one in reversed(chain):
            cache.get(one)
    return hits


def block_hits(cache: Any, asked: Demand) -> int:
    """Blocks that are cached when they are asked for one by one, by a cache that is told when each comes next."""
    order = asked.ids
    again = np.full(len(order), NEVER, dtype=np.int64)
    by_id = np.argsort(order, kind="stable")
    same = order[by_id[1:]] == order[by_id[:-1]]
    again[by_id[:-1][same]] = by_id[1:][same] + 1  # accesses are numbered from 1
    hits = 0
    for number, at in zip(order.tolist(), again.tolist(), strict=True):
        hits += cache.get(peer.Request(obj_id=number + 1, obj_size=1, next_access_vtime=at))
    return hits


@dataclass(frozen=True, slots=True)
class Peer:
    """Another cache, how its hits are counted, and how far ours may be from them.

    `num_more` blocks more make an upper bound: a cache that cannot let a block pass by has at least the hits of one
    that can, once it has one block more for what passes. `below` and `above`, in % of what is asked for, are as
    measured.
    """

    make: Callable[[int], Any]
    count: Callable[[Any, Demand], int]
    num_more: int = 0
    below: float = 0.0
    above: float = 0.0


PEERS = {
    "lru": Peer(lambda num_blocks: peer.LRU(num_blocks), prefix_hits),
    "opt": Peer(lambda num_blocks: peer.Belady(num_blocks), block_hits, num_more=1),
    # Theirs makes room block by block, and from the middle of chains; ours for a request at once, leaf first.
    "arc": Peer(lambda num_blocks: peer.ARC(num_blocks), prefix_hits, below=0.3, above=0.6),
    # Theirs is a variant besides: it evicts from the main queue when that is over nine tenths. The study's own
    # implementation of the paper is as far from it: 6.1 above at 30 % of conversation.
    "s3fifo": Peer(lambda num_blocks: peer.S3FIFO(num_blocks), prefix_hits, below=1.0, above=6.6),
}


@pytest.mark.parametrize("share", [0.003, 0.01, 0.03, 0.1, 0.3])
@pytest.mark.parametrize("name", ["conversation", "synthetic"])
@pytest.mark.parametrize("policy", PEERS)
def test_same_hits(policy: str, name: str, share: float) -> None:
    other = PEERS[policy]
    asked = known_demand(name)
    num_blocks = blocks_of(share, asked.num_unique)
    ours = round(simulate(asked, policy, num_blocks).prefix_hit * asked.num_asked)
    theirs = [other.count(other.make(size), asked) for size in sorted({num_blocks, num_blocks + other.num_more})]
    percent = asked.num_asked / 100
    assert theirs[0] - other.below * percent <= ours <= theirs[-1] + other.above * percent
