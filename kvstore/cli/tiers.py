"""The tiers of kvstore simulate: its options, and what it prints of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import click

from kvstore._core import tiered as core
from kvstore._core.simulation import policies as known_policies
from kvstore.cli import render
from kvstore.errors import InvalidRequest
from kvstore.simulate import Demand, blocks_of
from kvstore.tiered import (
    BASELINE,
    DISK_ORDERS,
    PROMOTIONS,
    SECOND_TOUCH,
    SETUPS,
    WRITE_BACKS,
    Costs,
    Plan,
    TieredOutcome,
    play_tiers,
)

RUNS_MAX = 1000
RUNS_AT_ONCE = 2  # each on a thread of its own
TIERS = ("hbm", "dram", "nvme")
TIER_POLICIES = ("lru", "gittins")  # unless others are named
DIMENSIONS = ("setup", "promotion", "write_back", "disk_order", "disk_chance", "disk_gain")  # of Plan
TIER_OPTIONS = (*DIMENSIONS, "block_mib", "recompute_ms", "dram_gbs", "nvme_gbs")
Callback = Callable[[click.Context, click.Parameter, str], Any]


def _listed(read: Callable[[str], Any]) -> Callback:
    """An option of several values, with commas between."""

    def callback(_context: click.Context, _option: click.Parameter, text: str) -> tuple[Any, ...]:
        return tuple(dict.fromkeys(read(part.strip()) for part in text.split(",")))

    return callback


def _name_of(known: Sequence[str]) -> Callback:
    def read(text: str) -> str:
        if text not in known:
            raise click.BadParameter(f"{text!r}; there are {', '.join(known)}")
        return text

    return _listed(read)


def _number(text: str, most: float) -> float:
    try:
        value = float(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a number") from None
    if not 0 <= value <= most:
        raise click.BadParameter(f"{text} is not from 0 to {most:g}")
    return value


def _chance(text: str) -> float | str:
    return text if text == SECOND_TOUCH else _number(text, 1.0)


def _capacities(_context: click.Context, _option: click.Parameter, text: str) -> tuple[float, ...]:
    if not text:
        return ()
    parts = text.split(",")
    if len(parts) != len(TIERS):
        raise click.BadParameter(f"{len(parts)} sizes; it takes one each of HBM, DRAM and NVMe")
    try:
        sizes = tuple(int(part) if part.strip().isdecimal() else float(part) for part in parts)
        for size in sizes:
            blocks_of(size, 1)
    except InvalidRequest as error:
        raise click.BadParameter(str(error)) from None
    except ValueError:
        raise click.BadParameter(f"{text!r} are not numbers") from None
    return sizes


KNOBS = [  # DIMENSIONS of the runs
    click.option(
        "--setup",
        callback=_name_of(SETUPS),
        default=",".join(SETUPS),
        show_default=True,
        help="When a block is put into DRAM. write-through: when it was missed; victim: when HBM evicts it, and it "
        "leaves DRAM when it comes back into HBM.",
    ),
    click.option(
        "--promotion",
        callback=_name_of(tuple(PROMOTIONS)),
        default=BASELINE.promotion,
        show_default=True,
        help="What comes of a block that is found on NVMe. keep: into DRAM too, and the copy stays; move: into DRAM, "
        "and the copy goes; no-refill: not into DRAM while NVMe has it.",
    ),
    click.option(
        "--write-back",
        callback=_name_of(WRITE_BACKS),
        default=BASELINE.write_back,
        show_default=True,
        help="When it is decided whether NVMe gets a block: when DRAM evicts it, or when it is put into DRAM.",
    ),
    click.option(
        "--disk-order",
        callback=_name_of(DISK_ORDERS),
        default=BASELINE.disk_order,
        show_default=True,
        help="chain: what a block extends is written before it, as a daemon does it; leaf: it is written alone.",
    ),
    click.option(
        "--disk-chance",
        callback=_listed(_chance),
        default="0",
        show_default=True,
        help=f"Written only if asked for again within {core.CHANCE_S // 60} minutes so likely, as the policy expects "
        f"it; 0: all; {SECOND_TOUCH}: if asked for twice.",
    ),
    click.option(
        "--disk-gain",
        callback=_listed(lambda text: _number(text, core.GAIN_MAX)),
        default="0",
        show_default=True,
        help="Written to a full NVMe only if worth so many times what has to go, as the policy ranks; 0: always.",
    ),
]
COSTS = [  # fields of Costs, in other units
    click.option(
        "--block-mib", type=click.FloatRange(0.001), default=160.0, show_default=True, help="Size of a block."
    ),
    click.option(
        "--recompute-ms", type=click.FloatRange(0), default=64.0, show_default=True, help="Time to compute a block."
    ),
    click.option("--dram-gbs", type=click.FloatRange(0.001), default=25.0, show_default=True, help="GB/s out of DRAM."),
    click.option("--nvme-gbs", type=click.FloatRange(0.001), default=6.0, show_default=True, help="GB/s out of NVMe."),
]


def tier_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Decorates the command with --tiers and what goes with it; it gets them as further arguments."""
    for option in reversed([*KNOBS, *COSTS]):
        command = option(command)
    return click.option(
        "--tiers",
        callback=_capacities,
        default="",
        help="Sizes of HBM, DRAM and NVMe, as those of --capacity: play the trace through all three. The options "
        "below go with it, those of several values with commas between.",
    )(command)


def run_tiers(path: str, asked: Demand, policies: Sequence[str], options: Mapping[str, Any], *, as_json: bool) -> None:
    """Play every plan that the options name, the baseline first, and print what came of them."""
    sizes = tuple(blocks_of(size, asked.num_unique) for size in options["tiers"])
    plans = _plans(policies, options)
    costs = Costs(
        block_nbytes=round(options["block_mib"] * (1 << 20)),
        recompute_ms=options["recompute_ms"],
        dram_nbytes_per_s=1e9 * options["dram_gbs"],
        nvme_nbytes_per_s=1e9 * options["nvme_gbs"],
    )
    with render.progress("requests", len(plans) * asked.num_requests) as bar:
        outcomes = []
        for outcome in _play(asked, plans, sizes, costs, lambda num: bar.advance(bar.task_ids[0], num)):
            outcomes.append(outcome)
            if as_json:
                render.print_json(_fields(outcome, outcomes[0], sizes))
    if not as_json:
        _show(path, asked, sizes, outcomes)


def _plans(policies: Sequence[str], options: Mapping[str, Any]) -> list[Plan]:
    unknown = [name for name in policies if name not in known_policies()]
    if unknown:
        raise click.UsageError(f"{', '.join(unknown)} cannot keep tiers; {', '.join(known_policies())} can")
    chosen = product(policies, *(options[name] for name in DIMENSIONS))
    plans = [Plan(policy=policy, **dict(zip(DIMENSIONS, values, strict=True))) for policy, *values in chosen]
    plans = list(dict.fromkeys([BASELINE, *plans]))
    if len(plans) > RUNS_MAX:
        raise click.UsageError(f"{len(plans)} runs; at most {RUNS_MAX}")
    return plans


def _play(
    asked: Demand, plans: Sequence[Plan], sizes: tuple[int, ...], costs: Costs, advance: Callable[[int], None]
) -> Iterator[TieredOutcome]:
    """The outcomes in the order of the plans. Who stops listening waits for those under way, and no others begin."""
    hbm, dram, nvme = sizes
    with ThreadPoolExecutor(RUNS_AT_ONCE) as threads:
        played = [threads.submit(play_tiers, asked, plan, (hbm, dram, nvme), costs, advance) for plan in plans]
        try:
            for run in played:
                yield run.result()
        finally:
            threads.shutdown(wait=False, cancel_futures=True)


def _ratio(part: float, whole: float) -> float | None:
    return round(part / whole, 6) if whole else None


def _fields(outcome: TieredOutcome, baseline: TieredOutcome, sizes: tuple[int, ...]) -> dict[str, Any]:
    numbers = {name: round(value, 6) for name, value in asdict(outcome).items() if name != "plan"}
    return {
        **asdict(outcome.plan),
        "blocks": dict(zip(TIERS, sizes, strict=True)),
        "hit": round(outcome.hit, 6),
        **numbers,
        "hit_gain": round(outcome.hit - baseline.hit, 6),
        "ttft_ratio": _ratio(outcome.ttft_ms, baseline.ttft_ms),
        "nvme_writes_ratio": _ratio(outcome.nvme_writes, baseline.nvme_writes),
    }


def _label(plan: Plan) -> str:
    """Set-up and policy, and what is not the baseline's."""
    others = {name: value for name, value in asdict(plan).items() if name not in ("setup", "policy")}
    changed = [
        f"{value}" if isinstance(value, str) else f"{name.removeprefix('disk_')} {value:g}"
        for name, value in others.items()
        if value != getattr(BASELINE, name)
    ]
    return ", ".join([f"{plan.setup} {plan.policy}", *changed])


def _times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.3f}"


def _show(path: str, asked: Demand, sizes: tuple[int, ...], outcomes: Sequence[TieredOutcome]) -> None:
    columns = ("", "hit", *TIERS, "DRAM w", "NVMe w", "load", "TTFT", "x TTFT", "x NVMe w")
    rows = [
        (
            _label(outcome.plan),
            *(f"{100 * share:.1f}" for share in (outcome.hit, outcome.hbm, outcome.dram, outcome.nvme)),
            *(f"{written:.3f}" for written in (outcome.dram_writes, outcome.nvme_writes)),
            *(f"{time_ms:,.0f}" for time_ms in (outcome.load_ms, outcome.ttft_ms)),
            _times(_ratio(outcome.ttft_ms, outcomes[0].ttft_ms)),
            _times(_ratio(outcome.nvme_writes, outcomes[0].nvme_writes)),
        )
        for outcome in outcomes
    ]
    out = render.console()
    counts = [render.format_count(num) for num in (asked.num_requests, asked.num_asked, asked.num_unique, *sizes)]
    out.print(
        f"{Path(path).name}: hits in % and writes, of blocks asked for; ms a request; x: of the first row", markup=False
    )
    out.print("{} requests, {} blocks, {} of them unique; {} in HBM, {} in DRAM, {} on NVMe\n".format(*counts))
    out.print(render.table("", columns, rows))
