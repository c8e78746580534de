"""kvstore top against daemons that serve, stop, start again, and do not let everybody in."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from service_helpers import config_for, start, wait_for
from store_helpers import make_spec, put_chain

from kvstore.cli import main

INTERVAL = ["--interval", "0.1"]


@pytest.fixture
def target(tmp_path: Path) -> str:
    return f"unix:{tmp_path / 's'}"


@contextmanager
def running(*arguments: str, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "kvstore", "top", *arguments, *INTERVAL]
    # What runs in the background ignores SIGINT, and so would what it starts: exec keeps that, but no handler.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, **options)
    signal.signal(signal.SIGINT, before)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_one_frame_and_one_object(tmp_path, target, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with ExitStack() as stack:
        inner, _ = start(config_for(tmp_path), stack)
        put_chain(inner.namespace(make_spec()), 3)
        before = inner.stats()
        assert main(["top", target, "--once", *INTERVAL]) == 0
        text = capsys.readouterr().out
        assert "serving for" in text and "tiny" in text and "192 KiB" in text and max(map(len, text.split("\n"))) <= 80
        assert main(["top", target, "--once", "--json", *INTERVAL]) == 0
        (line,) = capsys.readouterr().out.splitlines()
        found = json.loads(line)
        assert found["reachable"] and found["stats"]["index"]["entries"] == 3
        assert found["rates"]["seconds"] >= 0.1 and found["rates"]["calls_per_s"]["calls"] > 0
        after = inner.stats()
        for section in ("shadow", "whatif"):  # go on with what was put before
            del before[section], after[section]
        assert after == before, "it only looks"
    assert main(["top", target, "--once", *INTERVAL]) == 1
    assert "not reachable since" in capsys.readouterr().out


def test_the_verb_stats_is_enough_and_needed(tmp_path, target, capsys, monkeypatch):
    rows = [
        (name, hashlib.sha256(name.encode()).hexdigest(), verb) for name, verb in (("eye", "stats"), ("pen", "write"))
    ]
    table = tmp_path / "access.toml"
    table.write_text("".join(f'[[tenant]]\nname="{a}"\ntoken_sha256=["{b}"]\nverbs=["{c}"]\n' for a, b, c in rows))
    with ExitStack() as stack:
        start(config_for(tmp_path, serve={"access": str(table)}), stack)
        monkeypatch.setenv("KVSTORE_TOKEN", "eye")
        assert main(["top", target, "--once", *INTERVAL]) == 0
        assert "eye unix:" in capsys.readouterr().out
        monkeypatch.setenv("KVSTORE_TOKEN", "pen")
        assert main(["top", target, "--once", *INTERVAL]) == 1
        assert "may not stats" in capsys.readouterr().err


def test_it_goes_on_while_the_daemon_is_gone_and_notices_a_new_life(tmp_path, target):
    with running(target, "--json", stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        objects = (json.loads(line) for line in process.stdout)
        assert not next(objects)["reachable"]
        for life in range(2):
            with ExitStack() as stack:
                start(config_for(tmp_path), stack)
                found = next(one for one in objects if one["reachable"])
                assert found["rates"]["restarted"] == (life == 1) and found["stats"]["index"]["entries"] == 0
            gone = next(one for one in objects if not one["reachable"])
            assert gone["reason"] and gone["gone_since_s"] <= gone["time_s"]
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0 and (said := process.stderr.read()) == b"", said


def test_a_pipe_that_is_closed_ends_it_without_a_word(tmp_path, target):
    with ExitStack() as stack:
        start(config_for(tmp_path), stack)
        with running(target, stdout=subprocess.PIPE) as process:
            line = process.stdout.readline()
            assert line.startswith(b"kvstore top  unix:") and b"\x1b" not in line
            process.stdout.close()
            assert process.wait(20) == 1 and (said := process.stderr.read()) == b"", said


class Terminal:
    """A terminal of a size, and what was written to it."""

    def __init__(self, columns: int, lines: int) -> None:
        self.ours, self.theirs = pty.openpty()
        self.text = b""
        self.resize(columns, lines)

    def resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self.theirs, termios.TIOCSWINSZ, struct.pack("4H", lines, columns, 0, 0))
        self.text = b""

    def shows(self, *parts: str) -> bool:
        """Does it say all of these, since it was resized?"""
        os.set_blocking(self.ours, False)
        with suppress(BlockingIOError):
            self.text += os.read(self.ours, 1 << 16)
        return all(part.encode() in self.text for part in parts)

    def close(self) -> None:
        os.close(self.ours)
        os.close(self.theirs)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_in_a_terminal_it_draws_the_whole_screen_and_leaves_it_as_it_was(tmp_path, target, number):
    terminal = Terminal(120, 50)
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    environment |= {"TERM": "xterm-256color"}
    with ExitStack() as stack:
        stack.callback(terminal.close)
        server = stack.enter_context(ExitStack())
        start(config_for(tmp_path), server)
        process = stack.enter_context(
            running(target, stdin=terminal.theirs, stdout=terminal.theirs, env=environment, start_new_session=True)
        )
        assert wait_for(lambda: terminal.shows("\x1b[?1049h", "put: callers → memory", "serving"))
        terminal.resize(80, 24)
        assert wait_for(lambda: terminal.shows("disk write", "Clients: 1"))
        server.close()
        assert wait_for(lambda: terminal.shows("not reachable since"))
        start(config_for(tmp_path), server)
        terminal.resize(80, 24)
        assert wait_for(lambda: terminal.shows("serving"))
        process.send_signal(number)
        assert wait_for(lambda: terminal.shows("\x1b[?1049l", "\x1b[?25h")), "the screen and the cursor are back"
        assert process.wait(20) == 0 and (said := process.stderr.read()) == b"", said
