"""Ways to a store: embedded, and through a daemon's server that runs in this process."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from daemon_process import Process
from service_helpers import WAYS, Way, open_way


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Way]:
    """One of the ways, with default settings: 8 MiB of memory, no disk."""
    with ExitStack() as stack:
        yield open_way(request.param, tmp_path, stack)


@pytest.fixture(params=WAYS)
def disk_way(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Way]:
    """The same with a disk tier behind it."""
    disk: dict[str, Any] = {"nbytes": "32 MiB", "path": str(tmp_path / "disk")}
    with ExitStack() as stack:
        yield open_way(request.param, tmp_path, stack, disk=disk)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Process]:
    process = Process(tmp_path)
    yield process
    if process._process is not None and process.process.poll() is None:
        process.end(signal.SIGKILL)


@pytest.fixture
def remote(tmp_path: Path) -> Iterator[Way]:
    """A client, a server and its store, all in this process."""
    with ExitStack() as stack:
        yield open_way("remote", tmp_path, stack)
