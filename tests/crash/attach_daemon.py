"""A store with its server in a process of its own.

At the end of its standard input it waits until nobody is attached any more, says what is left, and holds the store
against its own rules: {"stats": ..., "problems": [...]}.
"""

from __future__ import annotations

import json
import sys
import time

from kvstore.config import Config
from kvstore.embedded import open_shared
from kvstore.service.server import Server

GONE_S_MAX = 20.0  # after the last process has ended


def problems_of(stats: dict) -> list[str]:
    """What nobody holds any more and is still held."""
    wanted = {
        "leases_in_use": stats["lookups"]["leases_in_use"],
        "writing": stats["index"]["writing"],
        "removed_pending": stats["index"]["removed_pending"],
        "defects": stats["mover"]["defects"],
        "corrupt_blocks": stats["mover"]["corrupt_blocks"],
        **{name: stats["attached"][name] for name in ("num_clients", "num_silent", "num_reservations")},
        **{name: stats["attached"][name] for name in ("reserved_nbytes", "num_malformed")},
    }
    return [f"{name}={value}" for name, value in wanted.items() if value]


def main(text: str) -> None:
    config = Config(**json.loads(text))
    with open_shared(config) as store:
        server = Server(store, config, "test", on_drain=lambda: None)
        server.start()
        print("ready", flush=True)
        sys.stdin.read()
        end_s = time.monotonic() + GONE_S_MAX
        while (problems := problems_of(server.stats())) and time.monotonic() < end_s:
            time.sleep(0.02)
        stats = server.stats()
        server.drain(0)
        store.check()
        print(json.dumps({"stats": stats, "problems": problems}), flush=True)


main(sys.argv[1])
