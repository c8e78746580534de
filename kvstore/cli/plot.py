"""Figures. The only module that imports matplotlib (`pip install kvstore[plot]`)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvstore.errors import Unavailable

if TYPE_CHECKING:
    from kvstore.replay import Result
    from kvstore.simulate import Outcome

HIT, NEAR, FAR = "#1b6ca8", "#d1495b", "#5c6670"
POLICIES = (HIT, NEAR, "#2e8b57", "#b8860b", "#7b5ea7", FAR)
BEST = "opt"
LABELS_MAX = 10  # more of them would touch each other


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError:
        raise Unavailable("plots need matplotlib: pip install 'kvstore[plot]'") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def require_plot(path: Path) -> None:
    """Unavailable when no figure can be written to `path`: better known before a long run than after it."""
    kinds = _pyplot().Figure().canvas.get_supported_filetypes()
    if path.suffix.removeprefix(".").lower() not in kinds:
        raise Unavailable(
            f"cannot write the plot to {path}: its name must end with one of .{', .'.join(sorted(kinds))}"
        )
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise Unavailable(f"cannot write the plot to {path}: not a file that can be written")


def replay_figure(path: Path, trace: str, result: Result, host_blocks: int, disk_blocks: int) -> None:
    """Hit ratio and tier occupancy over the trace's time, one below the other. Unavailable without matplotlib or
    where the file cannot be written."""
    pyplot = _pyplot()
    minutes = [sample.trace_s / 60 for sample in result.samples]
    figure, (top, bottom) = pyplot.subplots(2, 1, figsize=(9, 6), sharex=True, layout="constrained")
    figure.suptitle(f"Replay of {trace}: {result.requests:,} requests, {result.blocks_asked:,} blocks asked for")
    ratios = [100 * sample.hit_ratio for sample in result.samples]
    top.plot(minutes, ratios, color=HIT, alpha=0.3, linewidth=0.8)
    top.plot(minutes, _smooth(ratios), color=HIT, linewidth=2, label="prefix hit ratio, moving mean")
    whole = 100 * result.prefix_hit
    top.axhline(whole, color="black", linestyle=":", linewidth=1, label=f"whole trace: {whole:.1f} %")
    top.set(ylabel="hits, % of blocks asked for", ylim=(0, None))
    near = [100 * sample.near_blocks / host_blocks for sample in result.samples]
    bottom.plot(minutes, near, color=NEAR, linewidth=2, label=f"memory, of {host_blocks:,} blocks")
    if disk_blocks:
        far = [100 * sample.far_blocks / disk_blocks for sample in result.samples]
        bottom.plot(minutes, far, color=FAR, linewidth=2, label=f"disk, of {disk_blocks:,} blocks")
    bottom.set(xlabel="minutes of the trace", ylabel="stored, % of what fits", ylim=(0, 105), xlim=(0, None))
    for axes in (top, bottom):
        _finish(axes)
    _save(figure, path)


def hits_figure(
    path: Path, trace: str, num_unique: int, outcomes: Mapping[str, Sequence[Outcome]], infinite: Outcome
) -> None:
    """Prefix hits against capacity, a line for each policy, the optimum above them. Unavailable as in replay_figure."""
    figure, axes = _pyplot().subplots(figsize=(9, 5.5), layout="constrained")
    colours = cycle(POLICIES)
    for policy in sorted(outcomes, key=lambda name: name != BEST):
        points = sorted((100 * one.num_blocks / num_unique, 100 * one.prefix_hit) for one in outcomes[policy])
        is_best = policy == BEST
        axes.plot(
            *zip(*points, strict=True),
            label=policy,
            color="black" if is_best else next(colours),
            linewidth=2.5 if is_best else 1.8,
            marker="o",
            markersize=4,
            zorder=3 if is_best else 2,
        )
    most = 100 * infinite.prefix_hit
    axes.axhline(most, color=FAR, linestyle="--", linewidth=1, label=f"infinite cache: {most:.1f} %")
    axes.set_xscale("log")
    sizes = sorted({100 * one.num_blocks / num_unique for of_policy in outcomes.values() for one in of_policy})
    if len(sizes) <= LABELS_MAX:
        axes.set_xticks(sizes, [f"{float(f'{size:.2g}'):g}" for size in sizes])
        axes.minorticks_off()
    axes.set(xlabel="capacity, % of the unique blocks", ylabel="prefix hits, % of blocks asked for", ylim=(0, None))
    figure.suptitle(f"{trace}: hits against capacity, {num_unique:,} unique blocks")
    _finish(axes, ncols=len(outcomes) + 1)
    _save(figure, path)


def _finish(axes: Any, ncols: int = 2) -> None:
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=min(ncols, 6), frameon=False, borderaxespad=0.2)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)


def _save(figure: Any, path: Path) -> None:
    try:
        figure.savefig(path, dpi=130)
    except (OSError, ValueError) as error:
        raise Unavailable(f"cannot write the plot to {path}: {error}") from None
    finally:
        _pyplot().close(figure)


def _smooth(values: list[float], width: int = 15) -> list[float]:
    """Mean of the last `width` values at each point."""
    return [sum(values[max(0, i + 1 - width) : i + 1]) / min(width, i + 1) for i in range(len(values))]
