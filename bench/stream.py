"""Blocks to and from a daemon in another process against the best stream of bare bytes between two Python processes.

`read_2m` copies 64 blocks of 2 MiB into an array, `write_2m` stores as many new ones. The ceiling sends as many bytes
through a bare gRPC server, in the size of messages that is best for it, and looks at none of them. A round has every
one of them in turn; figures are medians.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import grpc
import numpy as np

from bench import peers
from bench.report import Result
from kvstore.namespace import NamespaceSpec

MIB = 1 << 20
BLOCK_NBYTES = 2 * MIB
TOKENS = 16
PIECES = (256 << 10, MIB, 2 * MIB, 4 * MIB)


def _seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


class Bare:
    """Streams of bare bytes, in pieces of a size."""

    def __init__(self, channel: grpc.Channel, nbytes: int) -> None:
        self._send = channel.unary_stream(f"/{peers.METHODS}/Send")
        self._take = channel.stream_unary(f"/{peers.METHODS}/Take")
        self._nbytes = nbytes

    def read(self, piece_nbytes: int) -> None:
        """From the server."""
        count = self._nbytes // piece_nbytes
        request = piece_nbytes.to_bytes(8, "little") + count.to_bytes(8, "little")
        assert sum(len(piece) for piece in self._send(request)) == self._nbytes

    def write(self, piece_nbytes: int) -> None:
        """To the server."""
        piece = bytes(piece_nbytes)
        taken = self._take(piece for _ in range(self._nbytes // piece_nbytes))
        assert int.from_bytes(taken, "little") == self._nbytes


def cases(quick: bool) -> Iterator[Result]:
    num_blocks, num_rounds = (4, 1) if quick else (64, 9)
    nbytes = num_blocks * BLOCK_NBYTES
    spec = NamespaceSpec(model="stream", block_nbytes=BLOCK_NBYTES, block_tokens=TOKENS)
    blocks = np.random.default_rng(1).integers(0, 256, (num_blocks, BLOCK_NBYTES), np.uint8)
    out = np.zeros_like(blocks)
    taken: dict[str, list[float]] = {"read_2m": [], "write_2m": []}
    bare: dict[str, dict[int, list[float]]] = {case: {size: [] for size in PIECES} for case in taken}
    with peers.daemon(4 * nbytes) as store, peers.bare() as channel:
        namespace, peer = store.namespace(spec), Bare(channel, nbytes)
        for number in range(num_rounds):
            keys = namespace.keys(np.arange(num_blocks * TOKENS) + number * num_blocks * TOKENS)
            taken["write_2m"].append(_seconds(lambda keys=keys: namespace.put(keys, blocks)))
            taken["read_2m"].append(_seconds(lambda keys=keys: namespace.get(keys, out)))
            assert (out[0] == blocks[0]).all() and (out[-1] == blocks[-1]).all()
            for size in PIECES:
                bare["read_2m"][size].append(_seconds(lambda size=size: peer.read(size)))
                bare["write_2m"][size].append(_seconds(lambda size=size: peer.write(size)))
    for case, seconds in taken.items():
        rates = nbytes / np.array(seconds) / 1e9
        best = max(PIECES, key=lambda size: -float(np.median(bare[case][size])))
        yield Result(
            "stream", case, float(np.median(rates)), "GB/s", nbytes / float(np.median(bare[case][best])) / 1e9,
            "bare gRPC stream", p50=float(np.median(rates)), p99=float(rates.min()), runs=num_rounds,
            detail=f"bare in messages of {best >> 10} KiB",
        )  # fmt: skip
