"""Every copy kernel on every shape of `copy`: what docs/decisions/0001-copy-kernels.md is decided by."""

from __future__ import annotations

from collections.abc import Iterator

from bench import copy
from bench.report import Result
from kvstore._core import transfer


def cases(quick: bool) -> Iterator[Result]:
    by_shape = {shape.name: [copy.Case(shape, name) for name in transfer.kernels()] for shape in copy.SHAPES}
    copy.measure([case for cases in by_shape.values() for case in cases], quick)
    ceiling = max(by_shape[copy.CONTIGUOUS_2M.name], key=copy.Case.rate)
    for name, measured in by_shape.items():
        for case in measured:
            yield copy.result("copy_kernels", f"{name}_{case.kernel}", case, ceiling)
