"""The simulation and the optimum against their definitions, and the optimum against every other choice."""

from collections import OrderedDict
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore._core.simulation import Hits, Simulation, optimum
from kvstore.simulate import demand
from kvstore.trace import BLOCK_TOKENS, Request

Chain = tuple[int, ...]


def chained(paths):
    """Chains of ids for paths in a tree: a block for each path from the root."""
    ids = {}
    return [tuple(ids.setdefault(tuple(path[: depth + 1]), len(ids)) for depth in range(len(path))) for path in paths]


def traces(branches, depth, num_requests):
    path = st.lists(st.integers(0, branches - 1), min_size=1, max_size=depth)
    return st.lists(path, min_size=1, max_size=num_requests).map(chained)


def requests_of(chains: list[Chain]):
    made = (Request(0, len(ids) * BLOCK_TOKENS, 1, np.array(ids, dtype=np.uint64), "") for ids in chains)
    return demand(made).requests(full_only=False)


def leading(chain: Chain, stored) -> int:
    return next((depth for depth, block in enumerate(chain) if block not in stored), len(chain))


class PlainLru:
    """The capacity's worth of most recently touched blocks; a request touches its last block first."""

    def __init__(self, capacity):
        self.capacity, self.stored = capacity, OrderedDict()

    def request(self, chain: Chain):
        before = set(self.stored)
        for block in reversed(chain):
            self.stored[block] = None
            self.stored.move_to_end(block)
        while len(self.stored) > self.capacity:
            self.stored.popitem(last=False)
        brought = sum(block in self.stored and block not in before for block in chain)
        return leading(chain, before), sum(block in before for block in chain), brought


def plain_optimum(chains: list[Chain], capacity: int):
    """Of what is stored and what was asked for, keep those with the nearest next request, the shallower ones first."""
    stored: set[int] = set()
    for now, chain in enumerate(chains):
        due: dict[int, tuple[int, int]] = {}
        for later in range(len(chains) - 1, now, -1):
            due |= {block: (later, depth) for depth, block in enumerate(chains[later])}
        wanted = sorted((block for block in stored | set(chain) if block in due), key=due.__getitem__)
        kept = set(wanted[:capacity])
        yield leading(chain, stored), sum(block in stored for block in chain), len(kept - stored)
        stored = kept


def most_hits(chains: list[Chain], capacity: int, hits_of) -> int:
    """The most hits that any choice of what to keep after each request can have. Keeping less is never better."""
    best = {frozenset(): 0}
    for chain in chains:
        after: dict[frozenset[int], int] = {}
        for stored, num_hits in best.items():
            at_hand = stored | set(chain)
            num_hits += hits_of(chain, stored)
            for kept in map(frozenset, combinations(sorted(at_hand), min(capacity, len(at_hand)))):
                after[kept] = max(after.get(kept, 0), num_hits)
        best = after
    return max(best.values())


def rows(hits: Hits):
    return list(zip(hits.prefix.tolist(), hits.blocks.tolist(), hits.fills.tolist(), strict=True))


@settings(max_examples=150, deadline=None)
@given(traces(2, 3, 8), st.integers(1, 4))
def test_no_choice_has_more_hits_than_the_optimum(chains, capacity):
    hits = Hits(len(chains))
    optimum(requests_of(chains), capacity, hits)
    assert hits.prefix.sum() == most_hits(chains, capacity, leading)
    assert hits.blocks.sum() == most_hits(chains, capacity, lambda chain, stored: len(stored & set(chain)))


@settings(max_examples=300, deadline=None)
@given(traces(3, 8, 40), st.integers(1, 40))
def test_the_optimum_is_its_definition(chains, capacity):
    hits = Hits(len(chains))
    optimum(requests_of(chains), capacity, hits)
    assert rows(hits) == list(plain_optimum(chains, capacity))


@pytest.mark.parametrize("seed", range(3))
def test_the_optimum_of_a_long_trace_is_its_definition(seed):
    """Long enough that the farthest request is looked for through more than one level of bits."""
    rng = np.random.default_rng(seed)
    chains = chained([(3 * rng.random(rng.integers(1, 9)) ** 2).astype(int).tolist() for _ in range(700)])
    hits = Hits(len(chains))
    optimum(requests_of(chains), 60, hits)
    assert rows(hits) == list(plain_optimum(chains, 60)), f"seed {seed}"


@settings(max_examples=300, deadline=None)
@given(traces(3, 8, 60), st.integers(1, 40), st.integers(0, 60))
def test_lru_of_the_simulation_is_a_plain_lru(chains, capacity, cut):
    simulation, hits, plain = Simulation("lru", capacity, requests_of(chains)), Hits(len(chains)), PlainLru(capacity)
    cut = min(cut, len(chains))
    simulation.play(0, cut, hits)
    simulation.play(cut, len(chains), hits)
    assert rows(hits) == [plain.request(chain) for chain in chains]
    assert simulation.num_stored == len(plain.stored)
    assert simulation.check() == 0
    assert hits.prefix.tolist() == hits.blocks.tolist()


@pytest.mark.parametrize("capacity", [50, 700, 5000])
def test_lru_of_many_long_chains_is_a_plain_lru(capacity):
    """Chains over more than one group of leases, and more slots than a slab has."""
    rng = np.random.default_rng(capacity)
    chains = chained([(1.15 * rng.random(rng.integers(1, 500)) ** 0.2).astype(int).tolist() for _ in range(300)])
    simulation, hits, plain = Simulation("lru", capacity, requests_of(chains)), Hits(len(chains)), PlainLru(capacity)
    simulation.play(0, len(chains), hits)
    assert rows(hits) == [plain.request(chain) for chain in chains]
    assert (simulation.num_stored, simulation.check()) == (len(plain.stored), 0)
