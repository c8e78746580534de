"""Link: the connection to one daemon, with credentials, a circuit, and repeats where they are safe."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from threading import Event
from typing import Any, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

from kvstore.checks import duration_us
from kvstore.client.circuit import Circuit
from kvstore.errors import (
    AccessDenied,
    InvalidRequest,
    KVStoreError,
    LeaseExpired,
    LimitExceeded,
    NamespaceMismatch,
    TierRefused,
    Unavailable,
)
from kvstore.v1 import kvstore_pb2 as pb

M = TypeVar("M", bound=Message)

SERVICE, ADMIN = "/kvstore.v1.KVStore/", "/kvstore.v1.Admin/"
OF_ADMIN = frozenset({"AttachTier", "DetachTier"})
PROTOCOL = 1
REPEAT_PAUSE_S = 0.01
MESSAGE_NBYTES_MAX = 64 << 20  # of an answer: statistics of many namespaces are the longest
MISMATCH_KEY = "kvstore-mismatch-bin"
OPTIONS = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", MESSAGE_NBYTES_MAX),
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),  # a connection of its own: closing it ends nobody else's
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 5_000),
)

NAMED: dict[grpc.StatusCode, type[KVStoreError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.RESOURCE_EXHAUSTED: LimitExceeded,
    grpc.StatusCode.ABORTED: LeaseExpired,
    grpc.StatusCode.UNAUTHENTICATED: AccessDenied,
    grpc.StatusCode.PERMISSION_DENIED: AccessDenied,
}
GONE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


class Stale(KVStoreError):
    """The daemon does not know a handle (any more): open the namespace again."""

    code = "NOT_FOUND"


class Link:
    """Calls one daemon. Safe to use from several threads.

    What a call raises is an error of kvstore; Unavailable whenever there is no answer, whatever the reason.
    """

    def __init__(
        self, target: str, *, token: str | None, tls: bool | Mapping[str, str] | None, timeout_ms: float
    ) -> None:
        self.target = _checked_target(target)
        self.timeout_s = duration_us("timeout_ms", timeout_ms) / 1e6
        self._metadata = (("authorization", f"Bearer {_checked_token(token)}"),) if token is not None else None
        self._channel = _channel(self.target, tls)
        self._unary: dict[str, grpc.UnaryUnaryMultiCallable[bytes, bytes]] = {}
        self._read: grpc.UnaryStreamMultiCallable[bytes, bytes] = self._channel.unary_stream(SERVICE + "Read")
        self._write: grpc.StreamStreamMultiCallable[bytes, bytes] = self._channel.stream_stream(SERVICE + "Write")
        self._watch: grpc.UnaryStreamMultiCallable[bytes, bytes] = self._channel.unary_stream(SERVICE + "Watch")
        self._capabilities: pb.Capabilities | None = None
        self._closed = Event()
        self.circuit = Circuit(self._probe)

    # ---- one message for one message ----

    def ask(self, name: str, request: Message, kind: type[M], timeout_s: float | None = None, *, repeat: bool) -> M:
        """Call a method; once more after a short pause when there was no answer and a `repeat` does no harm."""
        message = request.SerializeToString()
        try:
            return self._once(name, message, kind, timeout_s, trips=not repeat)
        except Unavailable:
            if not repeat or self.circuit.is_open or self._closed.wait(REPEAT_PAUSE_S):
                raise
        return self._once(name, message, kind, timeout_s, trips=True)

    def _once(self, name: str, message: bytes, kind: type[M], timeout_s: float | None, *, trips: bool) -> M:
        self.circuit.require_closed()
        call = self._method(name)
        try:
            return kind.FromString(call(message, timeout=timeout_s or self.timeout_s, metadata=self._metadata))
        except (grpc.RpcError, DecodeError, ValueError) as error:  # ValueError: the channel was closed meanwhile
            raise self.error(error, trips=trips) from None

    def begin(self, name: str, request: Message, timeout_s: float) -> grpc.Future[bytes]:
        """Call a method and do not wait. Errors: Unavailable."""
        self.circuit.require_closed()
        try:
            return self._method(name).future(request.SerializeToString(), timeout=timeout_s, metadata=self._metadata)
        except ValueError as error:
            raise self.error(error, trips=False) from None

    def _method(self, name: str) -> grpc.UnaryUnaryMultiCallable[bytes, bytes]:
        method = self._unary.get(name)
        if method is None:
            service = ADMIN if name in OF_ADMIN else SERVICE
            method = self._unary[name] = self._channel.unary_unary(service + name)
        return method

    # ---- streams ----

    def read(self, request: Message, timeout_s: float) -> Any:
        """Begin a Read: an iterator of encoded ReadReply with `cancel`; what it raises goes through `error`."""
        self.circuit.require_closed()
        return self._began(lambda: self._read(request.SerializeToString(), timeout=timeout_s, metadata=self._metadata))

    def write(self, requests: Iterator[bytes], timeout_s: float) -> Any:
        """Begin a Write with encoded WriteRequest; as `read`."""
        self.circuit.require_closed()
        return self._began(lambda: self._write(requests, timeout=timeout_s, metadata=self._metadata))

    def watch(self, request: Message) -> Any:
        """Begin a Watch: an iterator of encoded WatchReply without an end; as `read`."""
        self.circuit.require_closed()
        return self._began(lambda: self._watch(request.SerializeToString(), metadata=self._metadata))

    def _began(self, begin: Callable[[], Any]) -> Any:
        try:
            return begin()
        except ValueError as error:
            raise self.error(error, trips=False) from None

    # ---- what there is, and what went wrong ----

    @property
    def capabilities(self) -> pb.Capabilities:
        """What the daemon said it can do; asked once per connection. Errors: Unavailable."""
        if self._capabilities is None:
            found = self.ask("GetCapabilities", pb.GetCapabilitiesRequest(), pb.Capabilities, repeat=True)
            if found.protocol < PROTOCOL:
                raise Unavailable(f"{self.target} speaks no protocol {PROTOCOL}")
            self._capabilities = found
        return self._capabilities

    def _probe(self) -> bool:
        self._capabilities = None  # another life of the daemon may have others
        try:
            message = pb.GetCapabilitiesRequest().SerializeToString()
            self._method("GetCapabilities")(message, timeout=self.timeout_s, metadata=self._metadata)
        except grpc.RpcError as error:
            return error.code() not in GONE  # whoever refuses is there
        except ValueError:  # closed meanwhile
            return True
        return True

    def error(self, error: Exception, *, trips: bool = True) -> KVStoreError:
        """What an error of gRPC means; `trips`: if the daemon is gone, nobody else shall wait for it."""
        if self._closed.is_set():
            return Unavailable("the store is closed")
        if not isinstance(error, grpc.RpcError):
            return Unavailable(f"{self.target} answered what is no answer: {error}")
        code, text = error.code(), error.details() or ""
        if code in NAMED:
            return NAMED[code](text)
        if code == grpc.StatusCode.NOT_FOUND:
            return Stale(text)
        if code == grpc.StatusCode.FAILED_PRECONDITION:
            return _mismatch(error) or TierRefused(text)
        if code in GONE and (trips or code == grpc.StatusCode.DEADLINE_EXCEEDED):
            self.circuit.trip(f"{self.target} does not answer: {text}")
        return Unavailable(f"{self.target}: {code.name} {text}")

    def close(self) -> None:
        """End the connection and every call on it. Idempotent."""
        self._closed.set()
        self.circuit.end()
        self._channel.close()


def _mismatch(error: grpc.RpcError) -> NamespaceMismatch | None:
    for item in error.trailing_metadata() or ():
        if item.key == MISMATCH_KEY and isinstance(item.value, bytes):
            found = pb.Mismatch.FromString(item.value)
            return NamespaceMismatch(found.name, found.field, found.stored, found.wanted)
    return None


def _checked_target(target: str) -> str:
    if not isinstance(target, str) or not re.fullmatch(r"unix:.+|[^:/]+:\d{1,5}|\[[0-9a-fA-F:.]+\]:\d{1,5}", target):
        raise InvalidRequest(f"target={target!r:.80} is neither unix:PATH nor HOST:PORT")
    return target


def _checked_token(token: str) -> str:
    if not isinstance(token, str) or not re.fullmatch(r"[\x21-\x7e]{1,4000}", token):
        raise InvalidRequest("token is not 1 to 4,000 printable ASCII characters without a space")
    return token


def _channel(target: str, tls: bool | Mapping[str, str] | None) -> grpc.Channel:
    if tls is None or tls is False:
        return grpc.insecure_channel(target, options=OPTIONS)
    files = {} if tls is True else dict(tls)
    unknown = files.keys() - {"ca", "cert", "key"}
    if unknown or ("cert" in files) != ("key" in files):
        raise InvalidRequest(f"tls has {', '.join(files)}: it may have ca, and cert and key together")
    try:
        found = {name: Path(path).read_bytes() for name, path in files.items()}
    except OSError as error:
        raise InvalidRequest(f"tls: a file cannot be read: {error}") from None
    credentials = grpc.ssl_channel_credentials(found.get("ca"), found.get("key"), found.get("cert"))
    return grpc.secure_channel(target, credentials, options=OPTIONS)
