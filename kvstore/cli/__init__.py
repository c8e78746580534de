"""The `kvstore` command. Each subcommand is one file of this folder, imported only when it is called.

A subcommand's file NAME.py defines `command`, a function under `@click.command(cls=Command, example="kvstore
NAME ...")`; its line in COMMANDS is all it takes to add it. Exit codes: 0, 1 (it failed), 2 (it was called
wrongly).
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from kvstore.errors import KVStoreError

# Name → what it does, in the order in which --help shows them.
COMMANDS = {
    "advise": "Say what more or less memory or disk would bring a daemon.",
    "check": "Verify the folder of a disk tier, and drop what is bad.",
    "demo": "Run a chat workload against a store and show where its blocks come from.",
    "doctor": "Say which kernel settings and limits a store meets here, and what they cost.",
    "replay": "Replay a request trace against a store.",
    "serve": "Serve a store to other processes and machines.",
    "simulate": "Hit ratios of a request trace under each eviction policy, and the best there can be.",
    "stats": "Show the numbers of a daemon.",
    "tier": "Detach the disk tier of a daemon, or attach it again.",
    "top": "Watch a daemon: tiers, hits, bandwidth, evictions, namespaces, clients.",
}


class Command(click.Command):
    """A subcommand: its help ends with an example that can be pasted."""

    def __init__(self, *args: Any, example: str, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.example = example

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Show the example."""
        super().format_epilog(ctx, formatter)
        with formatter.section("Example"):
            formatter.write_text(self.example)


class Commands(click.Group):
    """A group that knows its subcommands from a table and imports `{package}.{name}` when one is called."""

    def __init__(self, *args: Any, package: str, table: Mapping[str, str], **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.package, self.table = package, table

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names whose file exists."""
        folders = [Path(folder) for folder in import_module(self.package).__path__]
        return [name for name in self.table if any((folder / f"{name}.py").exists() for folder in folders)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one subcommand; None for a name that is not in the table."""
        if cmd_name not in self.list_commands(ctx):
            return None
        command: click.Command = import_module(f"{self.package}.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The table's own texts, so that --help imports no subcommand."""
        rows = [(name, self.table[name]) for name in self.list_commands(ctx)]
        if rows:
            with formatter.section("Commands"):
                formatter.write_dl(rows)


def program(package: str = __name__, table: Mapping[str, str] = COMMANDS) -> Commands:
    """The top-level command over the subcommands of `package`."""
    group = Commands(
        "kvstore",
        package=package,
        table=table,
        help="Tiered KV-cache store for LLM inference.",
        epilog="kvstore COMMAND --help explains a command and shows an example.",
    )
    return click.version_option(package_name="kvstore", prog_name="kvstore")(group)


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """SIGTERM ends a command as ^C does, so that it can put away what it made, such as a temporary disk tier."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def main(arguments: Sequence[str] | None = None, group: click.Command | None = None) -> int:
    """Run the command line and give its exit code. An error of kvstore is one line on standard error."""
    try:
        with _sigterm_interrupts():
            code = (group or program()).main(arguments, prog_name="kvstore", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except KVStoreError as error:
        click.echo(f"kvstore: {error}", err=True)
    except (click.Abort, KeyboardInterrupt):
        click.echo("kvstore: interrupted", err=True)
    except BrokenPipeError:  # the reader of a pipe has seen enough; Python must not flush into it at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1
