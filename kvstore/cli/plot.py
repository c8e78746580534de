"""Figures. The only module that imports matplotlib (`pip install kvstore[plot]`)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvstore.errors import Unavailable

if TYPE_CHECKING:
    from kvstore.replay import Result

HIT, NEAR, FAR = "#1b6ca8", "#d1495b", "#5c6670"


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
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False, borderaxespad=0.2)
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
