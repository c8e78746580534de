"""What every benchmark needs to time: rounds that go through all its parts in changing order."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from bench.report import Result

SEED = 20240611

Times = NDArray[np.float64]


def cpu_ns(work: Callable[[], object]) -> int:
    """CPU time that this thread spends on `work`: a neighbour that takes the core away does not count."""
    start_ns = time.thread_time_ns()
    work()
    return time.thread_time_ns() - start_ns


def interleaved(parts: Mapping[str, Callable[[], int]], num_rounds: int) -> dict[str, Times]:
    """Call every part `num_rounds` times, each round in another order; the ns that each call returned."""
    rng = np.random.default_rng(SEED)
    names = list(parts)
    times: dict[str, list[int]] = {name: [] for name in names}
    for _ in range(num_rounds):
        for name in rng.permutation(names):
            times[name].append(parts[name]())
    return {name: np.array(values, dtype=np.float64) for name, values in times.items()}


def time_result(
    bench: str,
    case: str,
    times: Times,
    unit: str,
    ceiling: tuple[float, str] | None = None,
    detail: str | None = None,
) -> Result:
    """The median of `times`, which are in `unit`, beside a ceiling (value, name)."""
    p50, p99 = (float(np.percentile(times, part)) for part in (50, 99))
    value, name = ceiling if ceiling else (None, None)
    return Result(bench, case, p50, unit, value, name, p50=p50, p99=p99, runs=times.size, detail=detail)


def rate_result(
    bench: str,
    case: str,
    rates: Times,
    unit: str,
    ceiling: tuple[float, str] | None = None,
    detail: str | None = None,
) -> Result:
    """The median of `rates`; p99 is what 99 % of them reached."""
    p50, p99 = (float(np.percentile(rates, part)) for part in (50, 1))
    value, name = ceiling if ceiling else (None, None)
    return Result(bench, case, p50, unit, value, name, p50=p50, p99=p99, runs=rates.size, detail=detail)
