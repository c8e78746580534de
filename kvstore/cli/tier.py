"""kvstore tier: the disk tier of a daemon leaves, so that its drive can be replaced, and comes back."""

from __future__ import annotations

import click

from kvstore.cli import Command, render
from kvstore.cli.remote import SOCKET, opened


@click.command(cls=Command, example="kvstore tier detach disk --server unix:/run/kvstore/kvstore.sock")
@click.argument("action", type=click.Choice(["detach", "attach"]))
@click.argument("tier")
@click.option("--server", default=SOCKET, show_default=True, help="The daemon: unix:PATH or HOST:PORT.")
@click.option("--deadline-ms", type=float, help="detach: until when it must be ready; half of serve.call_ms_max.")
@click.option("--force", is_flag=True, help="detach: leave by then, also if not everything could be written back.")
@click.option("--token", envvar="KVSTORE_TOKEN", help="Bearer token; better in the variable KVSTORE_TOKEN.")
@click.option("--ca", type=click.Path(exists=True), help="PEM file of who signed the daemon's certificate.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    action: str,
    tier: str,
    server: str,
    deadline_ms: float | None,
    force: bool,
    token: str | None,
    ca: str | None,
    as_json: bool,
) -> int:
    """Detach TIER from a daemon that goes on without it, or attach it again at its configured path.

    Exit code 1 also when a detached tier has not let go of its files: its device does not answer. Detach it again then.
    """
    if action == "attach" and (force or deadline_ms is not None):
        raise click.UsageError("--force and --deadline-ms are for detach")
    with opened(server, token, ca) as store:
        if action == "attach":
            attached = store.attach_tier(tier)
            text = f"{tier} is attached: {attached.blocks:,} blocks, {attached.dropped:,} others dropped"
            is_done, numbers = True, attached._asdict()
        else:
            detached = store.detach_tier(tier, deadline_ms, force=force)
            text = f"{tier} is detached"
            text += f"; {detached.unwritten:,} blocks were not written" if detached.unwritten else ""
            text += "" if detached.released else "; its device does not answer, and its files are still open"
            is_done, numbers = detached.released, detached._asdict()
    if as_json:
        render.print_json(numbers)
    else:
        click.echo(text)
    return 0 if is_done else 1
