"""The RPCs by which callers say what they know and want of blocks: Hint, Pin and Unpin; and hints in other messages."""

from __future__ import annotations

import grpc
from google.protobuf.message import Message

from kvstore.errors import InvalidRequest
from kvstore.hint import STOPS, Hint
from kvstore.service.calls import Methods
from kvstore.service.identity import Caller
from kvstore.service.namespaces import Namespaces
from kvstore.v1 import kvstore_pb2 as pb


def hint_in(message: pb.HintRequest | pb.ReadRequest | pb.WriteHeader | pb.WriteCommit) -> Hint | None:
    """The hint that a message carries, if it does. Errors: InvalidRequest names the field."""
    if not message.HasField("hint"):
        return None
    sent = message.hint
    return Hint(
        stop=STOPS[sent.ending] if sent.ending in range(len(STOPS)) else "",
        output_tokens=sent.output_tokens if sent.HasField("output_tokens") else None,
        priority=sent.priority,
        ttl_s=sent.ttl_s if sent.HasField("ttl_s") else None,
    )


class Hints:
    """Three verbs, each for whoever may write: they say which blocks stay."""

    def __init__(self, namespaces: Namespaces) -> None:
        self._namespaces = namespaces

    def methods(self) -> Methods:
        """Name in the protocol → function and request."""
        return {
            "Hint": (self.hint, pb.HintRequest),
            "Pin": (self.pin, pb.PinRequest),
            "Unpin": (self.unpin, pb.UnpinRequest),
        }

    def hint(self, caller: Caller, request: pb.HintRequest, _: grpc.ServicerContext) -> Message:
        """As the protocol says."""
        opened = self._namespaces.get(caller, request.namespace, "write")
        hint = hint_in(request)
        if hint is None:
            raise InvalidRequest("a Hint without a hint says nothing")
        return pb.HintReply(num_blocks=opened.namespace.hint(opened.keys(request.keys), hint))

    def pin(self, caller: Caller, request: pb.PinRequest, _: grpc.ServicerContext) -> Message:
        """As the protocol says."""
        opened = self._namespaces.get(caller, request.namespace, "write")
        return pb.PinReply(num_blocks=opened.namespace.pin(opened.keys(request.keys), request.ttl_s))

    def unpin(self, caller: Caller, request: pb.UnpinRequest, _: grpc.ServicerContext) -> Message:
        """As the protocol says."""
        opened = self._namespaces.get(caller, request.namespace, "write")
        return pb.UnpinReply(num_blocks=opened.namespace.unpin(opened.keys(request.keys)))
