"""Figures. The only module that imports matplotlib (`pip install kvstore[plot]`)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvstore.errors import Unavailable

if TYPE_CHECKING:
    from kvstore.replay import Result

HIT, NEAR, FAR = "#1b6ca8", "#d1495b", "#8d96a3"


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError:
        raise Unavailable("plots need matplotlib: pip install 'kvstore[plot]'") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def replay_figure(path: Path, trace: str, result: Result, host_blocks: int, disk_blocks: int) -> None:
    """Hit ratio and tier occupancy over the trace's time, one below the other. Unavailable without matplotlib or
    where the file cannot be written."""
    pyplot = _pyplot()
    minutes = [sample.trace_s / 60 for sample in result.samples]
    figure, (top, bottom) = pyplot.subplots(2, 1, figsize=(9, 6), sharex=True, layout="constrained")
    ratios = [100 * sample.hit_ratio for sample in result.samples]
    top.plot(minutes, ratios, color=HIT, alpha=0.35, linewidth=0.8)
    top.plot(minutes, _smooth(ratios), color=HIT, linewidth=2, label="prefix hit ratio (moving mean)")
    top.axhline(100 * result.prefix_hit, color="black", linestyle=":", linewidth=1)
    top.annotate(f"whole trace: {100 * result.prefix_hit:.1f} %", (minutes[0], 100 * result.prefix_hit), va="bottom")
    top.set(ylabel="hits, % of blocks", ylim=(0, None), title=f"Replay of {trace}")
    top.legend(loc="lower right", frameon=False)
    near = [sample.near_blocks for sample in result.samples]
    bottom.plot(minutes, near, color=NEAR, linewidth=2, label=f"memory ({host_blocks:,} fit)")
    if disk_blocks:
        far = [sample.far_blocks for sample in result.samples]
        bottom.plot(minutes, far, color=FAR, linewidth=2, label=f"disk ({disk_blocks:,} fit)")
    bottom.set(xlabel="minutes of the trace", ylabel="blocks stored", ylim=(0, None))
    bottom.legend(loc="lower right", frameon=False)
    for axes in (top, bottom):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    try:
        figure.savefig(path, dpi=130)
    except (OSError, ValueError) as error:
        raise Unavailable(f"cannot write the plot to {path}: {error}") from None
    finally:
        pyplot.close(figure)


def _smooth(values: list[float], width: int = 15) -> list[float]:
    """Mean of the last `width` values at each point."""
    return [sum(values[max(0, i + 1 - width) : i + 1]) / min(width, i + 1) for i in range(len(values))]
