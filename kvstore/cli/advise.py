"""kvstore advise: what more memory or disk would bring a daemon."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import click

from kvstore.advice import OWN, Advice, advise
from kvstore.cli import Command, render
from kvstore.cli.remote import daemon_options, opened


@click.command(cls=Command, example="kvstore advise unix:/run/kvstore/kvstore.sock --prefill-tokens-per-s 25000")
@daemon_options
@click.option(
    "--prefill-tokens-per-s",
    type=click.FloatRange(0, 1e9),
    default=0,
    help="How fast the engines compute prompts, all together; shows what hits save.",
)
@click.option("--since-start", is_flag=True, help="Of all requests since the daemon began, not of the last hour or so.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    target: str, prefill_tokens_per_s: float, since_start: bool, as_json: bool, token: str | None, ca: str | None
) -> int:
    """Say what half, 2, 4 and 8 times the memory or disk of the daemon at TARGET (unix:PATH or HOST:PORT) would hit.

    Found while it runs: it plays a sample of what it is asked for at these sizes (policy.whatif). It needs the verb
    `stats` and changes nothing.
    """
    with opened(target, token, ca) as store:
        stats = store.stats()
    found = list(advise(stats, prefill_tokens_per_s, recent=not since_start))
    if as_json:
        render.print_json(
            {
                "target": target,
                "prefill_tokens_per_s": prefill_tokens_per_s or None,
                "shadow": stats["shadow"],
                "advice": [asdict(one) for one in found],
            }
        )
    else:
        click.echo(text(found, stats["shadow"]))
    return 0


def text(found: Sequence[Advice], shadow: dict[str, Any]) -> str:
    """For people: one table, and what is to be known of its numbers."""
    if not found or not shadow["requests"]:
        return "nothing to say yet: " + (
            "no request was played" if found else "policy.whatif is off, or no namespace is open"
        )
    columns = ["tier", "size", "capacity", "hits", "change"]
    has_savings = found[0].saved_s_per_h is not None
    columns += ["prefill saved an hour", "for each GiB"] if has_savings else []
    out = render.console()
    with out.capture() as shown:
        out.print(render.table("", columns, [_row(one, has_savings) for one in found]))
    return shown.get() + "\n" + "\n".join(_notes(found, shadow, has_savings))


def _row(one: Advice, has_savings: bool) -> list[str]:
    is_own = one.size == OWN
    cells = [
        one.tier,
        "as it is" if is_own else one.size,
        render.format_nbytes(one.capacity_nbytes),
        f"{100 * one.hit_ratio:.1f} %" + ("" if one.is_full else " *"),
        "" if is_own else f"{100 * one.added_hit_ratio:+.1f}",
    ]
    if has_savings:
        cells += ["", ""] if is_own else [_saved(one.saved_s_per_h), _saved(one.saved_s_per_h_per_gib)]
    return cells


def _saved(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if abs(seconds) < 0.001:
        return "0"
    return ("+" if seconds > 0 else "-") + render.format_duration(1e6 * abs(seconds))


def _notes(found: Sequence[Advice], shadow: dict[str, Any], has_savings: bool) -> list[str]:
    requests, dropped = shadow["requests"], shadow["dropped_requests"]
    notes = [
        f"Hits are blocks found of those asked for. {render.format_count(requests)} requests were played, "
        f"{render.format_count(dropped)} were not; {shadow['asked_tokens_per_s']:,.0f} tokens a second are asked for."
    ]
    if any(not one.is_full for one in found):
        notes.append("* has room left for more than was ever asked for, so far.")
    if len({one.tier for one in found}) > 1:
        notes.append("Of the disk: what memory and disk hit together.")
    if not has_savings:
        notes.append("--prefill-tokens-per-s N says what that saves.")
    return notes
