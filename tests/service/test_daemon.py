"""The daemon as a process of its own: from start to drained, killed and started again, told to read its files anew."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from daemon_process import Process
from service_helpers import open_way, wait_for
from store_helpers import TOKENS, all_right, chain, make_spec, payload

import kvstore
from kvstore.config import Config
from kvstore.daemon import changed
from kvstore.errors import AccessDenied, KVStoreError
from kvstore.metrics import COUNTERS, Metrics
from kvstore.probes import Probes

TOKEN = "a-token"


def test_a_daemon_that_is_told_to_end_keeps_what_it_has(daemon: Process):
    daemon.start()
    assert (daemon.socket.stat().st_mode & 0o777, daemon.socket.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    with daemon.connect() as store:
        ns = store.namespace(make_spec())
        keys = chain(ns, 6)
        assert ns.put(keys, payload(keys)).stored == 6
    assert daemon.end() == 0
    daemon.start()
    with daemon.connect() as store:
        num_blocks, blocks = store.namespace(make_spec()).get(keys)
        assert num_blocks == 6 and all_right(keys, list(blocks))
    assert daemon.end(signal.SIGINT) == 0
    assert all(line["level"] in ("INFO", "WARNING") for line in daemon.lines())


def test_asking_for_the_end_again_is_no_failure(daemon: Process):
    daemon.write(serve="drain_ms = 3000")
    daemon.start()
    with daemon.connect() as store:
        ns = store.namespace(make_spec())
        with ns.reserve(chain(ns, 1)):  # an open call, so that draining takes its time
            daemon.process.send_signal(signal.SIGTERM)
            assert wait_for(lambda: daemon.said("draining: SIGTERM") == 1)
            for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
                daemon.process.send_signal(number)
            assert daemon.process.wait(60) == 0


def test_a_second_daemon_does_not_take_the_socket_of_the_first(daemon: Process, tmp_path: Path):
    daemon.start()
    options = ["--socket", str(daemon.socket)]
    environment = os.environ | {"KVSTORE_DISK_NBYTES": "0", "KVSTORE_HOST_NBYTES": "1 MiB"}
    command = [sys.executable, "-m", "kvstore", "serve", *options]
    second = subprocess.run(command, capture_output=True, env=environment, timeout=60)
    assert second.returncode == 1 and b"another daemon listens there" in second.stderr
    with daemon.connect() as store:
        assert store.stats()["service"]["calls"] > 0


def test_killed_under_load_it_loses_nothing_durable_and_clients_go_on_by_themselves(daemon: Process):
    """Puts and reads from several threads of one client, while the daemon is killed and started again."""
    daemon.start()
    durable: list[Any] = []  # keys of prompts, the latest last
    wrong: list[str] = []
    stop = threading.Event()

    def work(number: int) -> None:
        rng = np.random.default_rng(number)
        while not stop.wait(0.001):  # or a dead daemon would be asked a million times
            keys = ns.keys(rng.integers(0, 1 << 32, 3 * TOKENS))
            try:
                if ns.put(keys, payload(keys), durable=bool(rng.random() < 0.25), deadline_ms=2_000).durable:
                    durable.append(keys)
                num_blocks, blocks = ns.get(keys, deadline_ms=500)
                if not all_right(keys[:num_blocks], list(blocks)):
                    wrong.append("wrong bytes")
            except KVStoreError as error:
                wrong.append(repr(error))

    with daemon.connect(timeout_ms=1_000) as store:
        ns = store.namespace(make_spec())
        workers = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(3)]
        for worker in workers:
            worker.start()
        for _ in range(3):
            seen = len(durable)
            assert wait_for(lambda seen=seen: len(durable) >= seen + 5, 60), wrong[:3]
            daemon.end(signal.SIGKILL)
            daemon.start()
        seen = len(durable)
        assert wait_for(lambda: len(durable) >= seen + 5, 60), wrong[:3]  # after the last life began, too
        stop.set()
        for worker in workers:
            worker.join(60)
        assert wrong == []
        latest = durable[-20:]  # what no later put has evicted from the small disk
        assert [ns.match(keys).num_blocks for keys in latest] == [3] * 20
    assert daemon.end() == 0


def test_hangup_takes_over_what_may_change_or_nothing(daemon: Process):
    access = daemon.folder / "access.toml"
    row = '[[tenant]]\nname = "one"\ntoken_sha256 = ["{}"]\n'
    access.write_text("")
    serve = f'access = "{access}"'
    daemon.write(serve=serve)
    daemon.start()
    with daemon.connect(token=TOKEN) as store, pytest.raises(AccessDenied, match="not known"):
        store.namespace(make_spec())
    access.write_text(row.format(hashlib.sha256(TOKEN.encode()).hexdigest()))
    daemon.write(mover="put_wait_ms = 7\nreservation_ttl_ms = 9", serve=serve)
    daemon.process.send_signal(signal.SIGHUP)
    assert wait_for(lambda: daemon.said("reloaded; for a restart: mover.reservation_ttl_ms") == 1), daemon.lines()
    with daemon.connect(token=TOKEN) as store:
        ns = store.namespace(make_spec())
        keys = chain(ns, 1)
        assert ns.put(keys, payload(keys)).stored == 1
    access.write_text("[[tenant]]\nname = 5\n")
    daemon.process.send_signal(signal.SIGHUP)
    assert wait_for(lambda: daemon.said("nothing is reloaded") == 1)
    with daemon.connect(token=TOKEN) as store:  # as before
        assert store.namespace(make_spec()).match(keys).num_blocks == 1
    assert daemon.end() == 0


def test_probes_and_metrics_over_http(daemon: Process):
    daemon.write(serve='metrics = "127.0.0.1:0"')
    config = Config.load(daemon.config)
    metrics = Metrics()
    probes = Probes(metrics)
    port = probes.listen(config.serve.metrics)

    def get(path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    assert get("/healthz") == (200, "alive\n")
    assert get("/readyz")[0] == 503 and get("/metrics") == (200, "") and get("/other")[0] == 404
    with kvstore.open(Config(host={"nbytes": "1 MiB"}, disk={"nbytes": "16 MiB"})) as store:
        metrics.watch(store.stats)
        probes.set_ready(True)
        ns = store.namespace(make_spec(block_nbytes=4096))
        keys = chain(ns, 2)
        ns.put(keys, np.zeros((2, 4096), np.uint8))
        ns.get(keys)
        text = get("/metrics")[1]
        assert get("/readyz") == (200, "ready\n")
    assert "kvstore_lookups_blocks_found_total 2.0" in text
    assert 'kvstore_tiers_used_nbytes{tier="host"} 8192.0' in text
    assert 'kvstore_namespaces_blocks{namespace="tiny"} 2.0' in text
    assert get("/metrics") == (200, "")  # closed
    probes.close()
    probes.close()


def test_counters_are_statistics_that_exist():
    with kvstore.open(Config(host={"nbytes": "1 MiB"}, disk={"nbytes": "16 MiB"})) as store:
        stats = store.stats()
    names = {
        f"{section}.{name}"
        for section in ("lookups", "traffic", "index", "mover", "policy", "trace", "shadow")
        for name in stats[section]
    }
    names |= {f"tiers.{name}" for row in stats["tiers"].values() for name in row}
    assert {name for name in COUNTERS if not name.startswith("service.")} <= names


def test_operations_explains_every_statistic_of_the_service(tmp_path: Path):
    text = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    named = set(re.findall(r"^\| `service\.([\w.]+)` \|", text, re.MULTILINE))
    with ExitStack() as stack:
        way = open_way("remote", tmp_path, stack)
        service = way.store.stats()["service"]
    (client,) = service.pop("clients").values()
    assert named == service.keys() | {f"clients.CLIENT.{name}" for name in client}
    assert {name.removeprefix("service.") for name in COUNTERS if name.startswith("service.")} <= service.keys()


def test_changed_settings_are_named():
    old, new = Config(), Config(mover={"put_wait_ms": 5}, host={"nbytes": "2 GiB"})
    assert changed(old, old) == []
    assert sorted(changed(old, new)) == ["host.nbytes", "mover.put_wait_ms"]
