"""What subcommands that speak to a daemon have in common: where it is, and who asks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from kvstore.client import connect

if TYPE_CHECKING:
    from kvstore.client.store import RemoteStore

SOCKET = "unix:/run/kvstore/kvstore.sock"


def daemon_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The parameters `target`, `token` and `ca` of a subcommand, for `opened`."""
    command = click.option(
        "--ca", type=click.Path(exists=True), help="PEM file of who signed the daemon's certificate."
    )(command)
    command = click.option(
        "--token", envvar="KVSTORE_TOKEN", help="Bearer token; better in the variable KVSTORE_TOKEN."
    )(command)
    return click.argument("target", default=SOCKET)(command)


def opened(target: str, token: str | None, ca: str | None) -> RemoteStore:
    """The daemon's store. Errors: those of kvstore.connect."""
    return connect(target, token=token, tls={"ca": ca} if ca else None)
