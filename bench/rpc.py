"""Control calls to a daemon in another process against a bare gRPC server there: same sizes, same number of messages.

A round is one call of ours and one bare one, in turn, over a unix socket each. `match_64` asks for a stored prefix of
64 keys; `reserve_commit_64` stores 64 new blocks of 64 bytes: header, grant, 4 KiB, commit, result.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import chain

import numpy as np

from bench import peers
from bench.report import Result
from kvstore.namespace import NamespaceSpec

NUM_BLOCKS = 64
BLOCK_NBYTES = 64
TOKENS = 16
REPLY_NBYTES = 20  # of a MatchReply with one tier
US = 1e6


def _rounds(num: int, ours: Callable[[int], object], bare: Callable[[], object]) -> tuple[np.ndarray, np.ndarray]:
    """Seconds of each call of ours, and of each bare one."""
    taken = np.empty((2, num))
    for number in range(num):
        began = time.perf_counter()
        ours(number)
        between = time.perf_counter()
        bare()
        taken[:, number] = between - began, time.perf_counter() - between
    return taken[0], taken[1]


def _result(case: str, ours: np.ndarray, bare: np.ndarray) -> Result:
    warm = len(ours) // 10
    ours, bare = ours[warm:] * US, bare[warm:] * US
    return Result(
        "rpc", case, float(np.median(ours)), "us", float(np.median(bare)), "bare gRPC, same sizes",
        p50=float(np.median(ours)), p99=float(np.percentile(ours, 99)), runs=len(ours),
        detail=f"bare p99 {np.percentile(bare, 99):.0f} us",
    )  # fmt: skip


def cases(quick: bool) -> Iterator[Result]:
    num = 50 if quick else 3_000
    spec = NamespaceSpec(model="rpc", block_nbytes=BLOCK_NBYTES, block_tokens=TOKENS)
    rng = np.random.default_rng(1)
    with peers.daemon(256 << 20) as store, peers.bare() as channel:
        namespace = store.namespace(spec)
        blocks = np.zeros((NUM_BLOCKS, BLOCK_NBYTES), np.uint8)
        keys = namespace.keys(np.arange(NUM_BLOCKS * TOKENS))
        assert namespace.put(keys, blocks).stored == NUM_BLOCKS
        echo = channel.unary_unary(f"/{peers.METHODS}/Echo")
        request = REPLY_NBYTES.to_bytes(2, "little") + bytes(9) + keys.tobytes()
        assert namespace.match(keys).num_blocks == NUM_BLOCKS and len(echo(request)) == REPLY_NBYTES
        yield _result("match_64", *_rounds(num, lambda _: namespace.match(keys), lambda: echo(request)))

        num //= 3
        prompts = rng.integers(0, 1 << 32, (num, NUM_BLOCKS * TOKENS))
        chains = [namespace.keys(prompt) for prompt in prompts]
        converse = channel.stream_stream(f"/{peers.METHODS}/Converse")
        data = [blocks.tobytes(), b"end"]

        def talk() -> None:
            replies = converse(chain([request], data))
            assert len(next(replies)) == NUM_BLOCKS and len(next(replies)) == 4

        yield _result("reserve_commit_64", *_rounds(num, lambda at: namespace.put(chains[at], blocks), talk))
