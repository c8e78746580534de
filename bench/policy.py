"""What each eviction policy costs per block that is asked for, in a store of a million blocks.

The stream is of conversations: each begins with one of 64 system prompts of 16 blocks, and each of its four turns
adds 12 more, up to chains of 64; half a minute passes from one turn to the next, and a thousand requests come in a
second, so that what a policy does by time (learning, above all) costs what it costs in a busy daemon. Every request
is a lookup, a reservation and a commit of the simulation's core, with the evictions that make room. NAME: thread CPU
time over all those requests, per block that they asked for. NAME_request: the same per request. NAME_worst: the
longest of them. NAME_ghost: memory of all that is remembered, per block that is not stored.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from bench.clock import SEED, time_result
from bench.report import Result
from kvstore._core import simulation as core
from kvstore._core.simulation import Hits, Requests, Simulation

STORED_BLOCKS, STORED_BLOCKS_QUICK = 1_000_000, 20_000
NUM_PROMPTS, PROMPT_BLOCKS = 64, 16
NUM_TURNS, TURN_BLOCKS = 4, 12
GAP_SHARE = 0.1  # of all the time from one turn to the next
REQUESTS_PER_S = 1000
MEASURED = 0.3  # of the requests: the last ones


def stream(num_conversations: int, rng: np.random.Generator) -> tuple[Requests, NDArray[np.uint32]]:
    """The requests of so many conversations, while new ones begin, and their lengths."""
    starts_ms = np.arange(num_conversations) * (NUM_TURNS * 1000 / REQUESTS_PER_S)
    gap_ms = GAP_SHARE * starts_ms[-1]
    gaps_ms = rng.exponential(gap_ms, (num_conversations, NUM_TURNS)) * (np.arange(NUM_TURNS) > 0)
    times_ms = (starts_ms[:, None] + np.cumsum(gaps_ms, axis=1)).ravel()
    order = np.argsort(times_ms, kind="stable")
    order = order[times_ms[order] <= starts_ms[-1]]
    conversations, turns = np.divmod(order, NUM_TURNS)
    lengths = (PROMPT_BLOCKS + TURN_BLOCKS * (turns + 1)).astype(np.uint32)
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.uint64)
    depth = np.arange(starts[-1]) - np.repeat(starts[:-1], lengths).astype(np.int64)
    prompts = np.repeat(rng.integers(0, NUM_PROMPTS, num_conversations)[conversations], lengths)
    own = NUM_PROMPTS * PROMPT_BLOCKS + np.repeat(conversations, lengths) * NUM_TURNS * TURN_BLOCKS
    ids = np.where(depth < PROMPT_BLOCKS, prompts * PROMPT_BLOCKS + depth, own + depth - PROMPT_BLOCKS)
    requests = Requests(
        ids.astype(np.uint32),
        starts,
        lengths,
        times_ms[order].astype(np.uint64),
        rng.integers(1, 2000, len(order)).astype(np.uint32),
        np.full(len(order), core.STOP_END_TURN, dtype=np.uint8),
        NUM_PROMPTS * PROMPT_BLOCKS + num_conversations * NUM_TURNS * TURN_BLOCKS,
    )
    return requests, lengths


def play(policy: str, num_blocks: int, requests: Requests) -> tuple[Simulation, NDArray[np.float64]]:
    """CPU ns of each of the last requests."""
    simulation, hits = Simulation(policy, num_blocks, requests), Hits(len(requests))
    first = round(len(requests) * (1 - MEASURED))
    simulation.play(0, first, hits)
    assert simulation.num_stored > 0.99 * num_blocks, f"{simulation.num_stored} blocks stored before it is measured"
    times = np.empty(len(requests) - first)
    for number in range(first, len(requests)):
        times[number - first] = simulation.play(number, number + 1, hits)
    return simulation, times


def cases(quick: bool) -> Iterator[Result]:
    num_blocks = STORED_BLOCKS_QUICK if quick else STORED_BLOCKS
    num_conversations = 4 * num_blocks // (NUM_TURNS * TURN_BLOCKS)
    requests, lengths = stream(num_conversations, np.random.default_rng(SEED))
    lengths = lengths[round(len(requests) * (1 - MEASURED)) :]
    for policy in core.policies():
        simulation, times = play(policy, num_blocks, requests)
        ns = float(times.sum() / lengths.sum())
        yield Result("policy", policy, ns, "ns", runs=len(times), detail="per block, with lookup and eviction")
        yield time_result("policy", f"{policy}_request", times / 1000, "us", detail=f"of {lengths.mean():.0f} blocks")
        yield Result("policy", f"{policy}_worst", float(times.max() / 1000), "us", runs=len(times), detail="request")
        num_ghosts, nbytes = simulation.ghosts()
        if num_ghosts:
            detail = f"{num_ghosts:,} blocks not stored"
            yield Result("policy", f"{policy}_ghost", nbytes / num_ghosts, "bytes", detail=detail)
