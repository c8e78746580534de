"""The RPCs that take a tier out of a running server and bring it back."""

from __future__ import annotations

import logging
from collections.abc import Callable

import grpc
from google.protobuf.message import Message

from kvstore.service.calls import Methods, remaining_ms
from kvstore.service.identity import Caller
from kvstore.service.limits import Held, Limits
from kvstore.store import BlockStore
from kvstore.v1 import kvstore_pb2 as pb

log = logging.getLogger("kvstore.service")


class Tiers:
    """Attach and detach. `told` hears after each whether the store has all of its tiers."""

    def __init__(self, store: BlockStore, limits: Limits, held: Held, told: Callable[[bool], None]) -> None:
        self._store, self._limits, self._held, self._told = store, limits, held, told

    def methods(self) -> Methods:
        """Name in the protocol → function and request."""
        return {
            "DetachTier": (self.detach, pb.DetachTierRequest),
            "AttachTier": (self.attach, pb.AttachTierRequest),
        }

    def detach(self, caller: Caller, request: pb.DetachTierRequest, context: grpc.ServicerContext) -> Message:
        """As the protocol says."""
        caller.rule.require("admin")
        until_ms = remaining_ms(context, None, self._limits.call_ms_max) / 2
        if request.HasField("deadline_ms"):
            until_ms = remaining_ms(context, request.deadline_ms, self._limits.call_ms_max)
        with self._held.long_call(caller.client):
            log.info("asked by %s to detach the %r tier", caller.client, request.tier)
            try:
                answer = self._store.detach_tier(request.tier, until_ms, force=request.force)
            finally:
                self._told(not self._store.attachment.is_detached)
        return pb.DetachTierReply(released=answer.released, num_unwritten=answer.unwritten)

    def attach(self, caller: Caller, request: pb.AttachTierRequest, context: grpc.ServicerContext) -> Message:
        """As the protocol says."""
        caller.rule.require("admin")
        remaining_ms(context, None, self._limits.call_ms_max)
        with self._held.long_call(caller.client):
            log.info("asked by %s to attach the %r tier", caller.client, request.tier)
            try:
                answer = self._store.attach_tier(request.tier)
            finally:
                self._told(not self._store.attachment.is_detached)
        return pb.AttachTierReply(num_blocks=answer.blocks, num_dropped=answer.dropped)
