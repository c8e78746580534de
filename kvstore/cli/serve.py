"""kvstore serve: the daemon."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from kvstore import logs
from kvstore.cli import Command, render
from kvstore.config import Config
from kvstore.daemon import Daemon


@click.command(cls=Command, example="kvstore serve --config deploy/kvstore.toml --socket /run/kvstore/kvstore.sock")
@click.option("--config", "path", type=click.Path(path_type=Path), help="TOML file; deploy/kvstore.toml is a sample.")
@click.option("--socket", help="Unix socket, instead of serve.socket.")
@click.option("--listen", help="HOST:PORT, instead of serve.listen.")
@click.option("--metrics", help="HOST:PORT of /metrics, /healthz and /readyz, instead of serve.metrics.")
@click.option("--show-config", is_flag=True, help="Print every setting in force with its origin, and exit.")
def command(path: Path | None, socket: str | None, listen: str | None, metrics: str | None, show_config: bool) -> int:
    """Serve one store to the processes of this machine, and to others.

    SIGTERM drains: calls under way end, everything is made durable, then the daemon exits. SIGHUP takes over the rows
    of serve.access, renewed certificates and mover.put_wait_ms.
    """
    overrides: dict[str, Any] = {"serve.socket": socket, "serve.listen": listen, "serve.metrics": metrics}

    def load() -> Config:
        return Config.load(path, **overrides)

    config = load()
    if show_config:
        rows = [(one.key, one.value, one.origin) for one in config.explain()]
        render.console().print(render.table("", ("setting", "value", "from"), rows, num_left=3))
        return 0
    logs.set_up(sys.stderr, config.serve.log_format)
    Daemon(load).run()
    return 0
