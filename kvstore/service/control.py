"""The RPCs of one message for one message: wire ↔ values around the verbs of the store."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable

import grpc
from google.protobuf.message import Message

from kvstore.arrivals import Terms, bring
from kvstore.block import Match
from kvstore.checks import prefill_rate
from kvstore.config import Config
from kvstore.errors import KVStoreError
from kvstore.events import IDLE_MS
from kvstore.namespace import NamespaceSpec
from kvstore.service.attaching import Attaching
from kvstore.service.calls import Methods, rate_of, remaining_ms
from kvstore.service.hints import Hints
from kvstore.service.identity import Caller
from kvstore.service.limits import HANDLES_MAX, Held, Limits
from kvstore.service.namespaces import Namespaces
from kvstore.service.statistics import Statistics
from kvstore.service.tiers import Tiers
from kvstore.store import BlockStore
from kvstore.v1 import kvstore_pb2 as pb

PROTOCOL = 1

log = logging.getLogger("kvstore.service")


def spec_of(message: pb.NamespaceSpec) -> NamespaceSpec:
    """Errors: InvalidRequest names the field."""
    return NamespaceSpec(**{field.name: getattr(message, field.name) for field in message.DESCRIPTOR.fields})


def match_reply(match: Match) -> pb.MatchReply:
    """A Match as it is sent."""
    return pb.MatchReply(
        num_blocks=match.num_blocks,
        by_tier=match.by_tier,
        load_us=match.load_us,
        num_skipped=match.skipped,
        recompute_us=match.recompute_us,
    )


class CannotAttach(KVStoreError):
    """This server has no attach socket."""

    code = "FAILED_PRECONDITION"


class Control:
    """The verbs on blocks that carry no blocks."""

    def __init__(self, store: BlockStore, namespaces: Namespaces, limits: Limits, held: Held, version: str) -> None:
        self._store, self._namespaces, self._limits, self._held = store, namespaces, limits, held
        self._version = version
        self.statistics = Statistics(store, held)
        self.attaching: Attaching | None = None  # once it listens

    def methods(self) -> Methods:
        """Name in the protocol → function and request."""
        return {
            "GetCapabilities": (self.capabilities, pb.GetCapabilitiesRequest),
            "OpenNamespace": (self.open_namespace, pb.OpenNamespaceRequest),
            "Match": (self.match, pb.MatchRequest),
            "Attach": (self.attach, pb.AttachRequest),
            "Explain": (self.explain, pb.ExplainRequest),
            "Prefetch": (self.prefetch, pb.PrefetchRequest),
            "Remove": (self.remove, pb.RemoveRequest),
            "Clear": (self.clear, pb.ClearRequest),
            "MakeDurable": (self.make_durable, pb.MakeDurableRequest),
            "Flush": (self.flush, pb.FlushRequest),
            "Stats": (self.stats, pb.StatsRequest),
            **Hints(self._namespaces).methods(),
        }

    def capabilities(self, caller: Caller, request: pb.GetCapabilitiesRequest, _: grpc.ServicerContext) -> Message:
        """As the protocol says."""
        limits = self._limits
        return pb.Capabilities(
            protocol=PROTOCOL,
            server_version=self._version,
            keys_max=limits.keys_max,
            piece_nbytes_max=limits.piece_nbytes_max,
            call_nbytes_max=limits.call_nbytes_max,
            client_nbytes_max=limits.client_nbytes_max,
            call_ms_max=limits.call_ms_max,
            near_tier=self._store.near.name,
            far_tier=self._store.far.name if self._store.far is not None else "",
            attach_path=self.attaching.path if self.attaching is not None else "",
            watches_max=limits.watches_of(caller.tenant) if self._store.feed.num_kept else 0,
            events_max=self._store.feed.num_kept,
            heartbeat_ms=IDLE_MS,
            handles_max=HANDLES_MAX,
            prefill_tokens_per_s=self._store.mover.limits.prefill_tokens_per_s,
        )

    def open_namespace(self, caller: Caller, request: pb.OpenNamespaceRequest, _: grpc.ServicerContext) -> Message:
        """As the protocol says."""
        quota = request.quota_nbytes if request.HasField("quota_nbytes") else None
        handle, opened = self._namespaces.open(caller, spec_of(request.spec), quota)
        return pb.OpenNamespaceReply(namespace=handle, title=opened.title, event_seed=opened.event_seed)

    def match(self, caller: Caller, request: pb.MatchRequest, _: grpc.ServicerContext) -> Message:
        """As the protocol says."""
        opened = self._namespaces.get(caller, request.namespace, "read")
        return match_reply(opened.namespace.match(opened.keys(request.keys), prefill_tokens_per_s=rate_of(request)))

    def attach(self, caller: Caller, request: pb.AttachRequest, _: grpc.ServicerContext) -> Message:
        """As the protocol says."""
        caller.rule.require("attach")
        opened = self._namespaces.get(caller, request.namespace, "read")
        if self.attaching is None:
            raise CannotAttach("nobody can attach to this server: serve.attach is off, or it has no unix socket")
        ticket = self.attaching.ticket(opened.namespace.number, may_write="write" in caller.rule.verbs)
        return pb.AttachReply(ticket=ticket, key_seed=opened.seed if opened.tenant else b"")

    def explain(self, caller: Caller, request: pb.ExplainRequest, _: grpc.ServicerContext) -> Message:
        """As the protocol says."""
        opened = self._namespaces.get(caller, request.namespace, "read")
        return pb.ExplainReply(reasons=opened.namespace.explain(opened.keys(request.keys)))

    def prefetch(self, caller: Caller, request: pb.PrefetchRequest, context: grpc.ServicerContext) -> Message:
        """As the protocol says."""
        opened = self._namespaces.get(caller, request.namespace, "read")
        wanted_ms = request.deadline_ms if request.HasField("deadline_ms") else None
        left_ms = remaining_ms(context, wanted_ms, self._limits.call_ms_max)
        with self._held.long_call(caller.client):
            keys, rate = opened.keys(request.keys), rate_of(request)
            deadline_us = self._store.clock.now_us() + int(left_ms * 1000)
            bring(opened.namespace, self._store, keys, Terms(deadline_us, prefill_rate(rate)))
            return match_reply(opened.namespace.match(keys, prefill_tokens_per_s=rate))

    def remove(self, caller: Caller, request: pb.RemoveRequest, _: grpc.ServicerContext) -> Message:
        """As the protocol says."""
        opened = self._namespaces.get(caller, request.namespace, "remove")
        return pb.RemoveReply(num_blocks=opened.namespace.remove(opened.keys(request.keys)))

    def clear(self, caller: Caller, request: pb.ClearRequest, _: grpc.ServicerContext) -> Message:
        """As the protocol says."""
        opened = self._namespaces.get(caller, request.namespace, "remove")
        return pb.RemoveReply(num_blocks=opened.namespace.clear())

    def flush(self, caller: Caller, request: pb.FlushRequest, context: grpc.ServicerContext) -> Message:
        """As the protocol says."""
        caller.rule.require("write")
        wanted_ms = request.deadline_ms if request.HasField("deadline_ms") else None
        left_ms = remaining_ms(context, wanted_ms, self._limits.call_ms_max)
        with self._held.long_call(caller.client):
            return pb.FlushReply(done=self._store.flush(left_ms))

    def make_durable(self, caller: Caller, request: pb.MakeDurableRequest, context: grpc.ServicerContext) -> Message:
        """As the protocol says."""
        opened = self._namespaces.get(caller, request.namespace, "write")
        wanted_ms = request.deadline_ms if request.HasField("deadline_ms") else None
        left_ms = remaining_ms(context, wanted_ms, self._limits.call_ms_max)
        with self._held.long_call(caller.client):
            return pb.FlushReply(done=opened.namespace.make_durable(opened.keys(request.keys), left_ms))

    def stats(self, caller: Caller, request: pb.StatsRequest, _: grpc.ServicerContext) -> Message:
        """As the protocol says; `service` has what the calls under way hold."""
        caller.rule.require("stats")
        return pb.StatsReply(json=json.dumps(self.statistics.seen_by(caller)))


class Admin:
    """The RPCs of whoever runs the server."""

    def __init__(self, namespaces: Namespaces, config: Config, tiers: Tiers, drain: Callable[[], None]) -> None:
        self._namespaces, self._config, self._tiers, self._drain = namespaces, config, tiers, drain

    def methods(self) -> Methods:
        """Name in the protocol → function and request."""
        return {
            "Drain": (self.drain, pb.DrainRequest),
            "ClearAll": (self.clear_all, pb.ClearAllRequest),
            "SetQuota": (self.set_quota, pb.SetQuotaRequest),
            "GetConfig": (self.get_config, pb.GetConfigRequest),
            **self._tiers.methods(),
        }

    def drain(self, caller: Caller, request: pb.DrainRequest, _: grpc.ServicerContext) -> Message:
        """As the protocol says."""
        caller.rule.require("admin")
        log.info("asked to drain by %s", caller.client)
        self._drain()
        return pb.DrainReply()

    def clear_all(self, caller: Caller, request: pb.ClearAllRequest, _: grpc.ServicerContext) -> Message:
        """As the protocol says."""
        caller.rule.require("admin")
        return pb.RemoveReply(num_blocks=self._namespaces.clear_all())

    def set_quota(self, caller: Caller, request: pb.SetQuotaRequest, _: grpc.ServicerContext) -> Message:
        """As the protocol says."""
        self._namespaces.set_quota(caller, request.namespace, request.quota_nbytes)
        return pb.SetQuotaReply()

    def get_config(self, caller: Caller, request: pb.GetConfigRequest, _: grpc.ServicerContext) -> Message:
        """As the protocol says."""
        caller.rule.require("admin")
        settings = [
            pb.Setting(key=one.key, value=json.dumps(one.value), origin=one.origin) for one in self._config.explain()
        ]
        return pb.GetConfigReply(settings=settings)
