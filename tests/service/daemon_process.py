"""The daemon as a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from service_helpers import wait_for

import kvstore


class Process:
    """`kvstore serve` over one folder; `start` it as often as it dies."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.socket = folder, folder / "run" / "k.sock"
        self.config, self.log = folder / "kvstore.toml", folder / "log"
        self.write()
        self._process: subprocess.Popen[bytes] | None = None

    def write(self, mover: str = "", serve: str = "", host: str = "4 MiB", disk: str = "32 MiB") -> None:
        self.config.write_text(
            f'[host]\nnbytes = "{host}"\n[disk]\nnbytes = "{disk}"\npath = "{self.folder / "disk"}"\n'
            f'[mover]\n{mover}\n[serve]\nsocket = "{self.socket}"\nlog_format = "json"\n{serve}\n'
        )

    def start(self) -> None:
        command = [sys.executable, "-m", "kvstore", "serve", "--config", str(self.config)]
        lives = self.said("serving;") + 1
        # What this run of the tests is told by variables is no setting of the daemon.
        environment = {name: value for name, value in os.environ.items() if not name.upper().startswith("KVSTORE_")}
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(command, stderr=log, stdout=log, cwd=os.getcwd(), env=environment)
        assert wait_for(lambda: self.said("serving;") >= lives), self.log.read_text()

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None
        return self._process

    def stand_still(self) -> None:
        """Until SIGCONT. The signal takes its time to reach every thread, and one that still runs answers."""
        self.process.send_signal(signal.SIGSTOP)
        tasks = Path(f"/proc/{self.process.pid}/task")

        def states() -> set[str]:
            return {(task / "stat").read_text().rpartition(") ")[2][0] for task in tasks.iterdir()}

        assert wait_for(lambda: states() == {"T"}), states()

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(60)

    def lines(self) -> list[dict[str, Any]]:
        """What it logged, without what libraries print beside that."""
        found = self.log.read_text().splitlines(keepends=True) if self.log.exists() else []
        return [json.loads(line) for line in found if line.startswith("{") and line.endswith("\n")]

    def said(self, text: str) -> int:
        return sum(text in line["message"] for line in self.lines())

    def connect(self, **options: Any) -> Any:
        return kvstore.connect(f"unix:{self.socket}", **options)
