"""What every RPC has around it: parsing, identity, the door that closes, and errors turned into codes."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

from kvstore.errors import InvalidRequest, KVStoreError, NamespaceMismatch, Unavailable
from kvstore.service.identity import Caller, Gatekeeper
from kvstore.service.limits import Held
from kvstore.v1 import kvstore_pb2 as pb

log = logging.getLogger("kvstore.service")

MISMATCH_KEY = "kvstore-mismatch-bin"
TEXT_MAX = 512
REPLY_MARGIN_MS = 20  # what is left of a deadline for the answer to arrive in

M = TypeVar("M", bound=Message)
Unary = Callable[[Caller, Any, grpc.ServicerContext], Message]
Methods = Mapping[str, tuple[Unary, type[Message]]]  # name in the protocol → function and request
Stream = Callable[[Caller, Any, grpc.ServicerContext], Iterator[bytes]]


class Door:
    """Closes when the server drains: calls that come later have no effect."""

    def __init__(self) -> None:
        self._closed = threading.Event()

    def close(self) -> None:
        """From now on every new call is Unavailable. Idempotent."""
        self._closed.set()

    @property
    def is_closed(self) -> bool:
        """Has the server begun to drain?"""
        return self._closed.is_set()

    def require_open(self) -> None:
        """Errors: Unavailable once closed."""
        if self._closed.is_set():
            raise Unavailable("the server is draining")


class Calls:
    """Makes gRPC handlers of functions that take a caller and a message, and raise errors of kvstore."""

    def __init__(self, gatekeeper: Gatekeeper, door: Door, held: Held) -> None:
        self._gatekeeper, self._door, self._held = gatekeeper, door, held

    def _admit(self, context: grpc.ServicerContext) -> Caller:
        self._held.count("calls")
        self._door.require_open()
        caller = self._gatekeeper.caller(context)
        self._held.seen(caller.client, caller.tenant)
        return caller

    def admit(self, context: grpc.ServicerContext) -> Caller:
        """Who calls; ends the call of somebody unknown, or while the server drains."""
        try:
            return self._admit(context)
        except Exception as error:
            self._refuse(context, error)

    def _refuse(self, context: grpc.ServicerContext, error: Exception) -> NoReturn:
        self._held.count("refused")
        refuse(context, error)

    def unary(self, function: Unary, kind: type[Message]) -> grpc.RpcMethodHandler[bytes, bytes]:
        """One message for one message."""

        def handle(request: bytes, context: grpc.ServicerContext) -> bytes:
            try:
                return function(self._admit(context), parsed(kind, request), context).SerializeToString()
            except Exception as error:
                self._refuse(context, error)

        return grpc.unary_unary_rpc_method_handler(handle)

    def answering(self, function: Stream, kind: type[Message]) -> grpc.RpcMethodHandler[bytes, bytes]:
        """One message for a stream of encoded ones."""

        def handle(request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
            try:
                yield from function(self._admit(context), parsed(kind, request), context)
            except Exception as error:
                self._refuse(context, error)

        return grpc.unary_stream_rpc_method_handler(handle)

    def conversing(self, function: Stream) -> grpc.RpcMethodHandler[bytes, bytes]:
        """A stream of encoded messages for another."""

        def handle(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
            try:
                yield from function(self._admit(context), requests, context)
            except Exception as error:
                self._refuse(context, error)

        return grpc.stream_stream_rpc_method_handler(handle)


def parsed(kind: type[M], message: bytes) -> M:
    """Errors: InvalidRequest for bytes that are no such message."""
    try:
        return kind.FromString(message)
    except DecodeError:
        raise InvalidRequest(f"{len(message)} bytes are not a {kind.DESCRIPTOR.name}") from None


def remaining_ms(context: grpc.ServicerContext, wanted_ms: float | None, call_ms_max: int) -> float:
    """How long a call may wait: what it asked for, and no longer than its deadline. Errors: InvalidRequest."""
    left_s = context.time_remaining()
    if left_s is None or left_s * 1000 > call_ms_max + 1000:  # clocks of two machines tick differently
        raise InvalidRequest(f"this call needs a deadline of at most call_ms_max={call_ms_max} ms")
    left_ms = max(0.0, left_s * 1000 - REPLY_MARGIN_MS)
    if wanted_ms is None:
        return left_ms
    if not 0 <= wanted_ms < float("inf"):
        raise InvalidRequest(f"deadline_ms={wanted_ms} is not a number of milliseconds")
    return min(wanted_ms, left_ms)


def rate_of(request: Any) -> float | None:
    """What a request says of how fast its caller computes; None: nothing."""
    return request.prefill_tokens_per_s if request.HasField("prefill_tokens_per_s") else None


def refuse(context: grpc.ServicerContext, error: Exception) -> NoReturn:
    """End the call with the code and the words of an error; a defect is logged and not told."""
    if not isinstance(error, KVStoreError):
        if not context.is_active():  # the client is gone, or its deadline: nobody is told anything
            raise error
        log.exception("a call failed by a defect", exc_info=error)
        context.abort(grpc.StatusCode.INTERNAL, "internal error; the server's log has it")
    if isinstance(error, NamespaceMismatch):
        texts = (error.name, error.field, str(error.stored), str(error.wanted))
        name, field, stored, wanted = (text[:TEXT_MAX] for text in texts)
        details = pb.Mismatch(name=name, field=field, stored=stored, wanted=wanted)
        context.set_trailing_metadata(((MISMATCH_KEY, details.SerializeToString()),))
    context.abort(grpc.StatusCode[error.code], str(error)[: 4 * TEXT_MAX])
