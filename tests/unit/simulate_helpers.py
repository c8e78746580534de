"""Traces for tests of the simulation: chains of ids, as requests and as the core wants them."""

import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from kvstore.simulate import Demand, demand
from kvstore.trace import BLOCK_TOKENS, Request, read_trace

TRACES = Path(os.environ.get("KVSTORE_TRACES", Path(__file__).resolve().parents[3] / "shared" / "traces"))


def request_of(
    ids: Sequence[int], *, timestamp_ms: int = 0, is_partial: bool = False, stop_reason: str = ""
) -> Request:
    """One request; `is_partial`: its last block is not full."""
    tokens = len(ids) * BLOCK_TOKENS - is_partial
    return Request(timestamp_ms, tokens, 1, np.array(ids, dtype=np.uint64), stop_reason)


def demand_of(*chains: Sequence[int]) -> Demand:
    return demand(request_of(ids) for ids in chains)


def tree_trace(seed: int, num_requests: int, num_branches: int = 3, depth_max: int = 12) -> list[list[int]]:
    """Chains that are paths in a tree, each from the root to somewhere; the first branches are popular."""
    rng = np.random.default_rng(seed)
    ids: dict[tuple[int, ...], int] = {}
    chains = []
    for _ in range(num_requests):
        path: tuple[int, ...] = ()
        chain = []
        for _ in range(int(rng.integers(1, depth_max + 1))):
            path = (*path, int(num_branches * rng.random() ** 2))
            chain.append(ids.setdefault(path, len(ids)))
        chains.append(chain)
    return chains


SANITIZED = "asan" in os.environ.get("LD_PRELOAD", "")  # whole traces would take minutes then


@cache
def _read(path: Path) -> Demand:
    return demand(read_trace(path))


def known_demand(name: str) -> Demand:
    """A real trace, or the test is skipped."""
    if SANITIZED:
        pytest.skip("whole traces are not played under the sanitizers")
    path = TRACES / f"{name}.jsonl.gz"
    if not path.exists():
        pytest.skip(f"{path} is not here; KVSTORE_TRACES names the folder of the traces")
    return _read(path)
