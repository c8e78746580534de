"""kvstore demo: see a store work within seconds, with real bytes."""

from __future__ import annotations

import tempfile
import time
from typing import Any

import click

from kvstore import demo
from kvstore.caller import Traffic
from kvstore.cli import Command, render
from kvstore.cli.traffic import traffic_fields, traffic_table
from kvstore.config import SEGMENT_NBYTES_MAX


@click.command(cls=Command, example="kvstore demo --requests 40 --prefill-tokens-per-s 25000")
@click.option(
    "--requests",
    "num_requests",
    type=click.IntRange(1, 100_000),
    default=90,
    show_default=True,
    help="Chat turns of a round; memory and disk are sized by what they need.",
)
@click.option(
    "--block-nbytes",
    type=click.IntRange(1, SEGMENT_NBYTES_MAX),
    default=demo.BLOCK_TOKENS * (128 << 10),
    show_default=True,
    help="Bytes of a block of 16 tokens; the default is that of an 8B model with 128 KiB per token.",
)
@click.option(
    "--prefill-tokens-per-s",
    type=click.IntRange(1, 10**9),
    default=10_000,
    show_default=True,
    help="How fast the engine computes a prompt; the default is about what an 8B model does on one large GPU.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the workload.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(num_requests: int, block_nbytes: int, prefill_tokens_per_s: int, seed: int, as_json: bool) -> int:
    """Run a chat workload twice against a store and show where its blocks come from.

    Memory holds an eighth of the blocks, a temporary folder on disk all of them. Each request reads its stored prefix,
    every byte of it checked, and puts what an engine would have computed.
    """
    began_s = time.monotonic()
    plan = demo.setup(seed, num_requests, block_nbytes)
    folder = tempfile.gettempdir()
    if not as_json:
        _show_setup(plan, folder)
    with render.progress(f"round 1 of {demo.NUM_ROUNDS}", demo.NUM_ROUNDS * num_requests) as bar:

        def advance(number: int) -> None:
            bar.update(bar.task_ids[0], advance=1, description=f"round {number + 1} of {demo.NUM_ROUNDS}")

        rounds = demo.run(plan, advance)
    said = _sentence(plan, rounds[-1], prefill_tokens_per_s)
    if as_json:
        report = _report(plan, rounds, prefill_tokens_per_s)
        render.print_json(report | {"seed": seed, "said": said, "elapsed_s": round(time.monotonic() - began_s, 3)})
    else:
        _show(rounds, prefill_tokens_per_s, said)
    return 0


def _saved_us(done: demo.Round, prefill_tokens_per_s: int) -> float:
    return done.tokens_reused / prefill_tokens_per_s * 1e6


def _report(plan: demo.Setup, rounds: list[demo.Round], prefill_tokens_per_s: int) -> dict[str, Any]:
    return {
        "block_tokens": demo.BLOCK_TOKENS,
        "block_nbytes": plan.block_nbytes,
        "working_blocks": plan.working_blocks,
        "host_blocks": plan.host_blocks,
        "host_nbytes": plan.host_nbytes,
        "disk_nbytes": plan.disk_nbytes,
        "prefill_tokens_per_s": prefill_tokens_per_s,
        "rounds": [_round_fields(done, prefill_tokens_per_s) for done in rounds],
        "paths": traffic_fields(_all_paths(rounds)),
    }


def _round_fields(done: demo.Round, prefill_tokens_per_s: int) -> dict[str, Any]:
    counts = done.counts
    return {
        "requests": done.requests,
        "prompt_tokens": done.prompt_tokens,
        "tokens_reused": done.tokens_reused,
        "blocks_asked": counts.blocks_asked,
        "hits": {"host": counts.blocks_hit - counts.blocks_promoted, "disk": counts.blocks_promoted},
        "misses": counts.blocks_asked - counts.blocks_hit,
        "blocks_stored": counts.blocks_stored,
        "blocks_rejected": counts.blocks_rejected,
        "blocks_verified": counts.blocks_verified,
        "prefill_saved_s": round(_saved_us(done, prefill_tokens_per_s) / 1e6, 3),
        "load_s": round(done.load_us / 1e6, 3),
        "paths": traffic_fields(done.paths),
    }


def _all_paths(rounds: list[demo.Round]) -> dict[str, Traffic]:
    return {name: sum((done.paths[name] for done in rounds), Traffic()) for name in rounds[0].paths}


def _show_setup(plan: demo.Setup, folder: str) -> None:
    nbytes = plan.block_nbytes
    kind = demo.file_system(folder)
    rows = [
        ("workload", f"{len(plan.requests):,} chat requests of {demo.CHAT.num_users} users, played twice"),
        ("block", f"{demo.BLOCK_TOKENS} tokens, {render.format_nbytes(nbytes)}"),
        ("working set", f"{plan.working_blocks:,} blocks, {render.format_nbytes(plan.working_blocks * nbytes)}"),
        ("memory", f"{plan.host_blocks:,} blocks, {render.format_nbytes(plan.host_nbytes)}"),
        ("disk", f"{render.format_nbytes(plan.disk_nbytes)} in {folder}" + (f" ({kind})" if kind else "")),
    ]
    out = render.console()
    for name, text in rows:
        out.print(f"{name:<12} {text}", markup=False)
    out.print()


def _show(rounds: list[demo.Round], prefill_tokens_per_s: int, said: str) -> None:
    out = render.console()
    columns = ("", *(f"round {number + 1}" for number in range(len(rounds))))
    lines = [_column(done, prefill_tokens_per_s) for done in rounds]
    rows = [(name, *(line[name] for line in lines)) for name in lines[0]]
    out.print(render.table("", columns, rows))
    out.print()
    out.print(traffic_table(_all_paths(rounds)))
    out.print()
    out.print(said, markup=False)


def _column(done: demo.Round, prefill_tokens_per_s: int) -> dict[str, str]:
    counts = done.counts
    return {
        "requests": render.format_count(done.requests),
        "prompt tokens": render.format_count(done.prompt_tokens),
        "tokens reused": render.format_count(done.tokens_reused),
        "  of the prompt tokens": render.format_ratio(done.tokens_reused, done.prompt_tokens),
        "blocks from memory": render.format_count(counts.blocks_hit - counts.blocks_promoted),
        "blocks from disk": render.format_count(counts.blocks_promoted),
        "blocks missed": render.format_count(counts.blocks_asked - counts.blocks_hit),
        f"prefill saved at {prefill_tokens_per_s:,} tokens/s": render.format_duration(
            _saved_us(done, prefill_tokens_per_s)
        ),
        "time to load it": render.format_duration(done.load_us),
    }


def _sentence(plan: demo.Setup, last: demo.Round, prefill_tokens_per_s: int) -> str:
    counts = last.counts
    saved_us = _saved_us(last, prefill_tokens_per_s)
    saved, load = render.format_duration(saved_us), render.format_duration(last.load_us)
    is_short = plan.host_blocks < plan.working_blocks
    memory = render.format_ratio(plan.host_blocks, plan.working_blocks) if is_short else "all"
    reused = render.format_ratio(last.tokens_reused, last.prompt_tokens)
    verdict = (
        f"spared the engine {saved} of prefill for {load} of loading"
        if saved_us > last.load_us
        else f"would have spared {saved} of prefill, but took {load} to load: this disk is slower than that engine"
    )
    return (
        f"You just saw a store with memory for {memory} of the blocks give back {reused} of round {demo.NUM_ROUNDS}'s "
        f"prompt tokens, {counts.blocks_promoted:,} of {counts.blocks_hit:,} blocks from disk and every byte checked, "
        f"which {verdict}."
    )
