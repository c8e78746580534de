"""kvstore simulate: what share of a request trace each eviction policy would hit, beside the best that can be."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from kvstore.cli import Command, render
from kvstore.cli.tiers import TIER_OPTIONS, TIER_POLICIES, run_tiers, tier_options
from kvstore.errors import InvalidRequest
from kvstore.simulate import INFINITE, OPT, Demand, Outcome, blocks_of, demand, known_policies, mean_hit, simulate
from kvstore.trace import read_trace

CAPACITIES = "0.003,0.01,0.03,0.1,0.3"
RUNS_MAX = 1000  # policies times capacities
RUNS_AT_ONCE = 2  # each on a thread of its own
WITHOUT_TIERS = {"capacities": "capacity", "plot": "plot"}  # name → option

Outcomes = Mapping[str, Sequence[Outcome]]  # by policy, in the order of the capacities


def _policies(_context: click.Context, _option: click.Parameter, text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(text.split(",")))
    unknown = [name for name in names if name not in known_policies()]
    if unknown:
        raise click.BadParameter(f"{', '.join(map(repr, unknown))}; there are {', '.join(known_policies())}")
    return names


def _capacities(_context: click.Context, _option: click.Parameter, text: str) -> tuple[float, ...]:
    return tuple(dict.fromkeys(_capacity(part) for part in text.split(",")))


def _capacity(text: str) -> float:
    try:
        value = int(text) if text.strip().isdecimal() else float(text)
        blocks_of(value, 1)
    except InvalidRequest as error:
        raise click.BadParameter(str(error)) from None
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a number") from None
    return value


@click.command(
    cls=Command, example="kvstore simulate trace.jsonl.gz --policy lru,opt --capacity 0.01,0.1 --plot hits.png"
)
@click.argument("trace", type=click.Path(exists=True, dir_okay=False))
@click.option(
    "--policy",
    "policies",
    callback=_policies,
    default=lambda: ",".join(name for name in known_policies() if name != INFINITE),
    show_default="all but infinite",
    help="Names, with commas between: eviction policies; opt: the offline optimum; infinite: without any eviction.",
)
@click.option(
    "--capacity",
    "capacities",
    callback=_capacities,
    default=CAPACITIES,
    show_default=True,
    help="Sizes, with commas between: up to 1 a share of the trace's unique blocks, above it a number of blocks.",
)
@click.option(
    "--limit", type=click.IntRange(0), default=0, show_default=True, help="Only the first N requests; 0: all."
)
@click.option("--plot", type=click.Path(dir_okay=False), default="", help="Draw hits against capacity into this file.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per run, then a summary but with --tiers.")
@tier_options
@click.pass_context
def command(
    context: click.Context,
    /,
    trace: str,
    policies: tuple[str, ...],
    capacities: tuple[float, ...],
    limit: int,
    plot: str,
    as_json: bool,
    **tiers: Any,
) -> int:
    """Play the requests of TRACE through the store's own bookkeeping, without bytes, for each policy and capacity.

    A hit is a block of a request's stored prefix, as a share of all blocks that are asked for. With --tiers the
    policies keep DRAM and NVMe, HBM is the engine's, and every run is compared with a plain one: write-through, lru.
    """
    _refuse_mixed(context, has_tiers=bool(tiers["tiers"]))
    if tiers["tiers"]:
        run_tiers(trace, _demand(trace, limit), _tier_policies(context, policies), tiers, as_json=as_json)
        return 0
    if len(policies) * len(capacities) > RUNS_MAX:
        raise click.UsageError(f"{len(policies)} policies at {len(capacities)} capacities; at most {RUNS_MAX} runs")
    if plot:
        from kvstore.cli.plot import require_plot

        require_plot(Path(plot))
    asked = _demand(trace, limit)
    runs = [(policy, capacity) for policy in policies for capacity in capacities]
    outcomes: dict[str, list[Outcome]] = {policy: [] for policy in policies}
    with render.progress("requests", len(runs) * asked.num_requests) as bar:
        played = _play(asked, runs, lambda num: bar.advance(bar.task_ids[0], num))
        for (policy, capacity), outcome in zip(runs, played, strict=True):
            outcomes[policy].append(outcome)
            if as_json:
                render.print_json(_fields(outcome, capacity))
    if as_json:
        render.print_json({"summary": _summary(outcomes)})
    else:
        _show(trace, asked, outcomes, capacities)
    if plot:
        _plot(Path(plot), trace, asked, outcomes)
    return 0


def _is_given(context: click.Context, name: str) -> bool:
    return context.get_parameter_source(name) is not ParameterSource.DEFAULT


def _refuse_mixed(context: click.Context, *, has_tiers: bool) -> None:
    """Options that would be passed over are refused."""
    apart = WITHOUT_TIERS if has_tiers else TIER_OPTIONS
    given = [name for name in apart if _is_given(context, name)]
    if given:
        options = ", ".join(f"--{WITHOUT_TIERS.get(name, name.replace('_', '-'))}" for name in given)
        raise click.UsageError(f"{options}: not with --tiers" if has_tiers else f"{options}: only with --tiers")


def _tier_policies(context: click.Context, policies: tuple[str, ...]) -> tuple[str, ...]:
    if _is_given(context, "policies"):
        return policies
    return TIER_POLICIES


def _demand(trace: str, limit: int) -> Demand:
    asked = demand(islice(read_trace(trace), limit or None))
    if not asked.num_asked:
        raise click.UsageError(f"{trace} has no requests for blocks")
    return asked


def _play(asked: Demand, runs: Sequence[tuple[str, float]], advance: Callable[[int], None]) -> Iterator[Outcome]:
    """The outcomes in the order of the runs. Who stops listening waits for those under way, and no others begin."""
    with ThreadPoolExecutor(RUNS_AT_ONCE) as threads:
        played = [
            threads.submit(simulate, asked, policy, blocks_of(capacity, asked.num_unique), advance)
            for policy, capacity in runs
        ]
        try:
            for run in played:
                yield run.result()
        finally:
            threads.shutdown(wait=False, cancel_futures=True)


def _fields(outcome: Outcome, capacity: float) -> dict[str, Any]:
    return {
        "policy": outcome.policy,
        "capacity": capacity,
        "blocks": outcome.num_blocks,
        "prefix_hit": round(outcome.prefix_hit, 6),
        "block_hit": round(outcome.block_hit, 6),
        "fills": outcome.fills,
        "ns_per_block": None if outcome.ns_per_block is None else round(outcome.ns_per_block, 1),
    }


def _summary(outcomes: Outcomes) -> dict[str, dict[str, float | None]]:
    means = {policy: mean_hit(of_policy) for policy, of_policy in outcomes.items()}
    best = means.get(OPT, 0.0)
    return {
        policy: {"mean": round(mean, 6), "of_opt": round(mean / best, 6) if best else None}
        for policy, mean in means.items()
    }


def _show(trace: str, asked: Demand, outcomes: Outcomes, capacities: Sequence[float]) -> None:
    summary = _summary(outcomes)
    sizes = [f"{100 * capacity:g} %" if capacity <= 1 else f"{capacity:,}" for capacity in capacities]
    rows = [
        (
            policy,
            *(f"{100 * outcome.prefix_hit:.2f}" for outcome in of_policy),
            f"{100 * (summary[policy]['mean'] or 0.0):.2f}",
            render.format_ratio(summary[policy]["of_opt"] or 0.0, 1 if summary[policy]["of_opt"] is not None else 0),
        )
        for policy, of_policy in outcomes.items()
    ]
    out = render.console()
    counts = [render.format_count(num) for num in (asked.num_requests, asked.num_asked, asked.num_unique)]
    out.print(f"Prefix hits of {Path(trace).name}, % of blocks asked for", markup=False)
    out.print("{} requests, {} blocks, {} of them unique\n".format(*counts))
    out.print(render.table("", ("policy", *sizes, "mean", "of opt"), rows))


def _plot(path: Path, trace: str, asked: Demand, outcomes: Outcomes) -> None:
    from kvstore.cli.plot import hits_figure

    shown = {policy: of_policy for policy, of_policy in outcomes.items() if policy != INFINITE}
    hits_figure(path, Path(trace).name, asked.num_unique, shown, simulate(asked, INFINITE, 0))
