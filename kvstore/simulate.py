"""Hit ratios of a trace: through the store's own code without bytes, and what the best cache would have had.

Each request leases its chain, lets go, and puts the rest, as an engine would; then the next one comes. A policy's name
is what the core calls it, OPT the offline optimum, INFINITE a cache that never evicts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kvstore._core import simulation as core
from kvstore._core.simulation import Hits, Requests, Simulation
from kvstore.errors import InvalidRequest, LimitExceeded
from kvstore.policy import FULL_BLOCKS_ONLY
from kvstore.trace import Request

OPT, INFINITE = "opt", "infinite"
CHUNK = 200  # requests between two words of progress
STOPS = {"tool_use": core.STOP_TOOL_USE, "end_turn": core.STOP_END_TURN}

_U32 = NDArray[np.uint32]


def known_policies() -> tuple[str, ...]:
    """Every name that `simulate` takes: those of the core, OPT, INFINITE."""
    return (*core.policies(), OPT, INFINITE)


@dataclass(frozen=True, slots=True, eq=False)
class Demand:
    """What a trace asks for. `ids` number its blocks from 0 to `num_unique`, those of request i are at [starts[i],
    starts[i + 1])."""

    ids: _U32
    starts: NDArray[np.uint64]
    ends_partial: NDArray[np.bool_]  # whether the last block of a request is not full
    times_ms: NDArray[np.uint64]
    output_tokens: _U32
    stops: NDArray[np.uint8]
    num_unique: int

    @property
    def num_asked(self) -> int:
        """Blocks that all requests ask for together."""
        return len(self.ids)

    @property
    def num_requests(self) -> int:
        """How many requests there are."""
        return len(self.times_ms)

    def num_blocks(self, *, full_only: bool) -> _U32:
        """Blocks of each request, with or without a partial one at its end."""
        lengths = np.diff(self.starts)
        return (lengths - self.ends_partial if full_only else lengths).astype(np.uint32)

    def requests(self, *, full_only: bool) -> Requests:
        """The same for the core."""
        num_blocks = self.num_blocks(full_only=full_only)
        arrays = (self.ids, self.starts, num_blocks, self.times_ms, self.output_tokens, self.stops)
        return Requests(*arrays, self.num_unique)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one policy at one capacity. Hits are shares of the blocks asked for."""

    policy: str
    num_blocks: int  # the capacity; of INFINITE what it ends with
    prefix_hit: float
    block_hit: float
    fills: int
    ns_per_block: float | None  # processor time per block asked for; None where nothing was played


def demand(requests: Iterable[Request]) -> Demand:
    """The demand of a trace. Errors: LimitExceeded over the sizes that the core takes, InvalidRequest for ids that are
    not chained."""
    all_requests = list(requests)
    starts = np.zeros(len(all_requests) + 1, dtype=np.uint64)
    np.cumsum([len(request.block_ids) for request in all_requests], out=starts[1:])
    if len(all_requests) > core.REQUESTS_MAX or starts[-1] > core.IDS_MAX:
        limits = f"at most {core.REQUESTS_MAX:,} and {core.IDS_MAX:,}"
        raise LimitExceeded(f"{len(all_requests):,} requests of {starts[-1]:,} blocks; {limits}")
    named = np.concatenate([np.empty(0, np.uint64), *(request.block_ids for request in all_requests)])
    unique, ids = np.unique(named, return_inverse=True)
    _require_chains(named, ids, starts)
    return Demand(
        ids=ids.astype(np.uint32),
        starts=starts,
        ends_partial=np.array([_ends_partial(request) for request in all_requests], dtype=bool),
        times_ms=np.array([request.timestamp_ms for request in all_requests], dtype=np.uint64),
        output_tokens=np.array([_output_tokens(request) for request in all_requests], dtype=np.uint32),
        stops=np.array([STOPS.get(request.stop_reason, core.STOP_UNKNOWN) for request in all_requests], dtype=np.uint8),
        num_unique=len(unique),
    )


def _output_tokens(request: Request) -> int:
    return request.output_tokens or core.TOKENS_UNKNOWN  # nobody asks for an answer of none


def _ends_partial(request: Request) -> bool:
    return len(request.block_ids) > request.num_full


def _require_chains(named: NDArray[np.uint64], ids: NDArray[np.intp], starts: NDArray[np.uint64]) -> None:
    """An id stands for a whole prefix: wherever it occurs, the same one is before it, or it is the first."""
    before = np.roll(ids, 1)
    before[starts[:-1][np.diff(starts) > 0].astype(np.intp)] = -1
    expected = np.empty(len(ids), dtype=np.intp)
    expected[ids] = before
    wrong = np.flatnonzero(expected[ids] != before)
    if len(wrong):
        number = int(np.searchsorted(starts, wrong[0], side="right"))
        raise InvalidRequest(
            f"request {number}: block {named[wrong[0]]} does not follow the same block everywhere; ids must be chained"
        )


def blocks_of(capacity: float, num_unique: int) -> int:
    """Blocks that a capacity means: up to 1 a share of the trace's unique blocks, at least one, above it a number.

    Errors: InvalidRequest for what is neither.
    """
    if 0 < capacity <= 1:
        return max(1, round(capacity * num_unique))
    if not 1 < capacity <= core.CAPACITY_MAX or capacity != int(capacity):
        raise InvalidRequest(
            f"capacity {capacity:g} is neither a share above 0 and up to 1 nor a whole number of blocks from 2 to "
            f"{core.CAPACITY_MAX:,}"
        )
    return int(capacity)


def simulate(
    asked: Demand, policy: str, num_blocks: int, advance: Callable[[int], None] = lambda num_requests: None
) -> Outcome:
    """Play a trace through one policy at one capacity; `advance` hears of requests as they are done.

    Errors: InvalidRequest for a policy that is not known, Unavailable without the memory.
    """
    if policy not in known_policies():
        raise InvalidRequest(f"policy {policy!r} is none of {', '.join(known_policies())}")
    if policy == INFINITE:
        advance(asked.num_requests)
        return _infinite(asked)
    requests = asked.requests(full_only=policy in FULL_BLOCKS_ONLY)
    hits = Hits(len(requests))
    if policy == OPT:
        cpu_ns = core.optimum(requests, num_blocks, hits)
        advance(len(requests))
    else:
        cpu_ns = _play(Simulation(policy, num_blocks, requests), hits, advance)
    total = max(asked.num_asked, 1)
    return Outcome(
        policy=policy,
        num_blocks=num_blocks,
        prefix_hit=int(hits.prefix.sum(dtype=np.int64)) / total,
        block_hit=int(hits.blocks.sum(dtype=np.int64)) / total,
        fills=int(hits.fills.sum(dtype=np.int64)),
        ns_per_block=cpu_ns / total,
    )


def _play(simulation: Simulation, hits: Hits, advance: Callable[[int], None]) -> int:
    cpu_ns = 0
    num_requests = len(hits.prefix)
    for first in range(0, num_requests, CHUNK):
        last = min(first + CHUNK, num_requests)
        cpu_ns += simulation.play(first, last, hits)
        advance(last - first)
    return cpu_ns


def _infinite(asked: Demand) -> Outcome:
    """Every block but those that are asked for the first time."""
    share = 1 - asked.num_unique / max(asked.num_asked, 1)
    return Outcome(INFINITE, asked.num_unique, share, share, asked.num_unique, None)


def mean_hit(outcomes: Sequence[Outcome]) -> float:
    """Mean prefix hit ratio over capacities."""
    return sum(outcome.prefix_hit for outcome in outcomes) / max(len(outcomes), 1)
