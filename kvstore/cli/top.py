"""kvstore top: a live view of a daemon."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from threading import Event
from typing import Any

import click

from kvstore.cli import Command, render
from kvstore.cli.frame import Frame, Sample
from kvstore.cli.remote import daemon_options, opened
from kvstore.clock import Clock, SystemClock
from kvstore.errors import LimitExceeded, Unavailable
from kvstore.rates import Stats, rates

REDRAWS_PER_S = 4  # so that a window that was resized is soon right again


@click.command(cls=Command, example="kvstore top unix:/run/kvstore/kvstore.sock --interval 2")
@daemon_options
@click.option("--interval", type=click.FloatRange(0.1, 3600), default=1.0, show_default=True, help="Seconds.")
@click.option("--once", is_flag=True, help="One frame over one interval, then end; exit code 1 without a daemon.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object for each interval.")
def command(target: str, interval: float, once: bool, as_json: bool, token: str | None, ca: str | None) -> int:
    """Watch the daemon at TARGET (unix:PATH or HOST:PORT): tiers, hits, bandwidth, evictions, namespaces, clients.

    It needs the verb `stats` and changes nothing. When the daemon goes, the view says so and waits for it. ^C ends it.
    """
    pause = Event()  # nobody sets it
    with _without_log(), opened(target, token, ca) as store:
        found = samples(store.stats, SystemClock(), lambda: pause.wait(interval))
        if once:
            return _once(target, found, as_json)
        with suppress(KeyboardInterrupt):
            _watch(target, found, as_json)
    return 0


def samples(ask: Callable[[], Stats], clock: Clock, pause: Callable[[], Any]) -> Iterator[Sample]:
    """Ask for statistics for ever, with a pause after each answer. A daemon that is gone or too busy to answer is a
    sample too. Errors: AccessDenied."""
    before: Stats | None = None
    answered_us, gone_since_s = 0, None
    while True:
        try:
            stats = ask()
        except (Unavailable, LimitExceeded) as error:
            gone_since_s = clock.time_s() if gone_since_s is None else gone_since_s
            yield Sample(clock.time_s(), before, gone_since_s=gone_since_s, reason=str(error))
        else:
            now_us, gone_since_s = clock.now_us(), None
            found = None if before is None else rates(before, stats, (now_us - answered_us) / 1e6)
            before, answered_us = stats, now_us
            yield Sample(clock.time_s(), stats, found)
        pause()


def report(target: str, sample: Sample) -> dict[str, Any]:
    """A sample for programs: `rates` as kvstore.rates.Rates names them, `stats` as docs/operations.md does; both are
    null while the daemon is gone."""
    there = sample.gone_since_s is None
    return {
        "time_s": sample.time_s,
        "target": target,
        "reachable": there,
        "gone_since_s": sample.gone_since_s,
        "reason": sample.reason,
        "rates": asdict(sample.rates) if sample.rates is not None else None,
        "stats": sample.stats if there else None,
    }


def _complete(found: Iterator[Sample]) -> Iterator[Sample]:
    """Samples that have rates, or say that there are none to be had."""
    return (sample for sample in found if sample.rates is not None or sample.gone_since_s is not None)


def _once(target: str, found: Iterator[Sample], as_json: bool) -> int:
    sample = next(_complete(found))
    _print(target, sample, as_json)
    return int(sample.gone_since_s is not None)


def _watch(target: str, found: Iterator[Sample], as_json: bool) -> None:
    if as_json or not sys.stdout.isatty():
        for sample in _complete(found):
            _print(target, sample, as_json)
        return
    from rich.live import Live

    first = Frame(target, next(found))
    with Live(first, console=render.console(), screen=True, refresh_per_second=REDRAWS_PER_S) as live:
        for sample in found:
            live.update(Frame(target, sample), refresh=True)


def _print(target: str, sample: Sample, as_json: bool) -> None:
    if as_json:
        render.print_json(report(target, sample))
        return
    out = render.console()
    with out.capture() as text:
        out.print(Frame(target, sample))
    click.echo(text.get())  # not by rich: it ends the program by itself when nobody reads any more


@contextmanager
def _without_log() -> Iterator[None]:
    """What the client logs of a daemon that comes and goes is what the view shows; on the screen it is in the way."""
    render.without_grpc_log()
    log, handler = logging.getLogger("kvstore.client"), logging.NullHandler()
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
