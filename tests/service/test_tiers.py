"""Tiers that are detached and attached over the wire: who may, what is answered, and how a daemon says so."""

from __future__ import annotations

import hashlib
import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from service_helpers import config_for, idle, start, wait_for
from store_helpers import all_right, chain, make_spec, put_chain

import kvstore
from kvstore import aio
from kvstore.cli import main
from kvstore.daemon import without_tier
from kvstore.errors import AccessDenied, InvalidRequest, TierRefused, Unavailable
from kvstore.metrics import Metrics
from kvstore.probes import Probes
from kvstore.service.server import ADMIN, TIERS
from kvstore.v1 import kvstore_pb2 as pb


def disk(folder: Path) -> dict[str, Any]:
    return {"nbytes": "16 MiB", "path": str(folder / "disk")}


def test_it_leaves_and_comes_back_by_the_same_verbs(disk_way):
    ns = disk_way.store.namespace(make_spec())
    keys = put_chain(ns, 3)
    assert disk_way.store.detach_tier("disk") == disk_way.store.detach_tier("disk") == (True, 0)
    assert ns.match(keys).by_tier == {"host": 3}
    assert not disk_way.store.flush(1_000) and not ns.make_durable(keys, 50)
    stats = disk_way.store.stats()["tiers"]["disk"]
    assert (stats["attached"], stats["reason"], stats["capacity_nbytes"]) == (False, "detached", 0)
    with disk_way.inner.lock:
        disk_way.inner.mover.put.evict(disk_way.inner.near_capacity, False, 0)
    assert ns.match(keys).num_blocks == 0 and "the disk tier is detached" in ns.explain(keys)[0]
    assert disk_way.store.attach_tier("disk") == (3, 0)
    assert disk_way.store.attach_tier("disk").blocks == 3
    assert ns.match(keys).by_tier == {"disk": 3} and all_right(keys, ns.get(keys)[1])
    for verb in (disk_way.store.detach_tier, disk_way.store.attach_tier):
        with pytest.raises(InvalidRequest, match="'disk'"):
            verb("host")


def test_what_is_removed_meanwhile_over_the_wire_stays_away(disk_way):
    ns = disk_way.store.namespace(make_spec())
    one, two = put_chain(ns, 3), put_chain(ns, 3, 1)
    disk_way.store.detach_tier("disk")
    ns.remove(one[1:2])
    disk_way.store.attach_tier("disk")
    assert (ns.match(one).num_blocks, ns.match(two).num_blocks) == (1, 3)
    disk_way.store.detach_tier("disk")
    ns.clear()
    disk_way.store.attach_tier("disk")
    assert (ns.match(one).num_blocks, ns.match(two).num_blocks) == (0, 0)


def test_a_refusal_has_its_name_on_the_wire(disk_way):
    with disk_way.inner.attachment._alone("disk"), pytest.raises(TierRefused, match="already"):
        disk_way.store.detach_tier("disk", 10)
    with disk_way.inner.attachment._alone("disk"), pytest.raises(TierRefused, match="already"):
        disk_way.store.attach_tier("disk")
    disk_way.store.detach_tier("disk")
    path = disk_way.inner.attachment._left._folder.path
    with (
        kvstore.open(kvstore.Config(host={"nbytes": "4 MiB"}, disk={"nbytes": "32 MiB", "path": str(path)})),
        pytest.raises(Unavailable, match="in use"),
    ):
        disk_way.store.attach_tier("disk")


def test_a_store_of_memory_only_has_none_to_detach(way):
    with pytest.raises(InvalidRequest, match="memory only"):
        way.store.detach_tier("disk")


def test_the_calls_need_a_deadline_and_leave_nothing_behind(remote):
    channel = remote.raw()
    for name, request in (("DetachTier", pb.DetachTierRequest()), ("AttachTier", pb.AttachTierRequest())):
        with pytest.raises(grpc.RpcError) as refused:
            channel.unary_unary(f"/{ADMIN}/{name}")(request.SerializeToString())
        assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT and "call_ms_max" in refused.value.details()
    assert wait_for(lambda: idle(remote))
    channel.close()


def test_only_an_admin_may(tmp_path):
    row = '[[tenant]]\nname = "{0}"\ntoken_sha256 = ["{1}"]\nverbs = {2}\n'
    rows = [("engine", ["read", "write", "remove", "stats"]), ("boss", ["admin"])]
    text = "".join(row.format(name, hashlib.sha256(name.encode()).hexdigest(), verbs) for name, verbs in rows)
    (tmp_path / "access.toml").write_text(text)
    config = config_for(tmp_path, serve={"access": str(tmp_path / "access.toml")}, disk=disk(tmp_path))
    with ExitStack() as stack:
        inner, _ = start(config, stack)
        target = f"unix:{tmp_path / 's'}"
        engine, boss = (stack.enter_context(kvstore.connect(target, token=name)) for name in ("engine", "boss"))
        for verb in (engine.detach_tier, engine.attach_tier):
            with pytest.raises(AccessDenied, match="may not admin"):
                verb("disk")
        assert inner.far is not None
        assert boss.detach_tier("disk").released and inner.far is None


def test_health_metrics_and_probes_say_that_it_is_detached(tmp_path):
    with ExitStack() as stack:
        inner, server = start(config_for(tmp_path, disk=disk(tmp_path)), stack)
        store = stack.enter_context(kvstore.connect(f"unix:{tmp_path / 's'}"))
        channel = stack.enter_context(grpc.insecure_channel(f"unix:{tmp_path / 's'}"))
        metrics = Metrics()
        metrics.watch(lambda: server.stats())
        probes = Probes(metrics)
        probes.set_ready(True, lambda: without_tier(inner))

        def seen() -> tuple[int, bytes, bool]:
            request = health_pb2.HealthCheckRequest(service=TIERS)
            status = health_pb2_grpc.HealthStub(channel).Check(request).status
            return status, probes.answer("/readyz")[1], b'kvstore_tiers_attached{tier="disk"} 1.0' in metrics.text()

        assert seen() == (1, b"ready\n", True)
        store.detach_tier("disk")
        assert seen() == (2, b"ready\nthe disk tier is detached\n", False)
        assert b'kvstore_tiers_healthy{tier="disk"} 0.0' in metrics.text()
        store.attach_tier("disk")
        assert seen() == (1, b"ready\n", True)


def test_the_command(tmp_path, capsys):
    with ExitStack() as stack:
        inner, _ = start(config_for(tmp_path, disk=disk(tmp_path)), stack)
        ns = inner.namespace(make_spec())
        keys = put_chain(ns, 3)
        server = ["--server", f"unix:{tmp_path / 's'}"]
        assert main(["tier", "detach", "disk", *server, "--deadline-ms", "20000"]) == 0
        assert capsys.readouterr().out == "disk is detached\n" and inner.far is None
        ns.remove(keys[2:])
        assert main(["tier", "attach", "disk", *server]) == 0
        assert capsys.readouterr().out == "disk is attached: 2 blocks, 1 others dropped\n"
        assert main(["tier", "detach", "disk", *server, "--json", "--force"]) == 0
        assert json.loads(capsys.readouterr().out) == {"released": True, "unwritten": 0}
        assert main(["tier", "attach", "disk", *server, "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == {"blocks": 2, "dropped": 0}
        assert main(["tier", "detach", "hbm", *server]) == 1
        assert "hbm" in capsys.readouterr().err
        assert main(["tier", "attach", "disk", *server, "--force"]) == 2
        assert main(["tier", "eject", "disk", *server]) == 2


async def leave_and_come(target: str) -> tuple[Any, Any]:
    async with aio.connect(target) as store:
        return await store.detach_tier("disk"), await store.attach_tier("disk")


def test_as_coroutines(tmp_path):
    import asyncio

    with ExitStack() as stack:
        inner, _ = start(config_for(tmp_path, disk=disk(tmp_path)), stack)
        put_chain(inner.namespace(make_spec()), 2)
        assert asyncio.run(leave_and_come(f"unix:{tmp_path / 's'}")) == ((True, 0), (2, 0))
        assert inner.namespace(make_spec()).match(chain(inner.namespace(make_spec()), 2)).num_blocks == 2
