"""RemoteWatch: the events of a daemon's store, over connections and lives of the daemon."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from kvstore.client.handle import RemoteNamespace
from kvstore.client.link import Link, Stale
from kvstore.errors import LimitExceeded, Unavailable
from kvstore.events import IDLE_MS, Cleared, Event, Events, Position, Reason, Removed, Stored, cut_keys
from kvstore.v1 import kvstore_pb2 as pb

PAUSE_S_MIN, PAUSE_S_MAX = 0.05, 1.0


class RemoteWatch:
    """As kvstore.watching.Watch, over a daemon. When the connection breaks it goes on from its position by itself, with
    a gap where something was lost meanwhile; while the daemon is gone its batches are empty. For one thread at a time,
    but for `close`. Errors: AccessDenied, LimitExceeded, InvalidRequest, NamespaceMismatch; Unavailable once the store
    is closed.
    """

    def __init__(
        self,
        link: Link,
        namespaces: Sequence[RemoteNamespace] | None,
        since: Position,
        check_open: Callable[[], None],
    ) -> None:
        self.position = since
        self._link, self._check_open = link, check_open
        self._namespaces = list(namespaces or ())
        self._call: Any = None
        self._begun = False  # a daemon has answered
        self._pause_s = PAUSE_S_MIN
        self._closed = threading.Event()

    def __iter__(self) -> RemoteWatch:
        return self

    def __next__(self) -> Events:
        waited_s = 0.0
        while waited_s < IDLE_MS / 1000:
            if self._closed.is_set():
                raise StopIteration
            self._check_open()
            found = self._next()
            if found is not None:
                self.position, self._pause_s = found.position, PAUSE_S_MIN
                return found
            self._closed.wait(self._pause_s)
            waited_s += self._pause_s
            self._pause_s = min(2 * self._pause_s, PAUSE_S_MAX)
        return Events(self.position, False, ())

    def _next(self) -> Events | None:
        """The next message; None when the daemon does not give one for now."""
        try:
            if self._call is None:
                self._call = self._begin()
                if self._closed.is_set():  # `close` came before there was anything to cancel
                    self._call.cancel()
            reply = pb.WatchReply.FromString(next(self._call))
        except Unavailable:  # as long as the circuit is open
            return None
        except (grpc.RpcError, DecodeError, StopIteration) as error:
            self._end()
            self._judge(error)
            return None
        self._begun = True
        return Events(Position(reply.epoch, reply.seq), reply.gap, tuple(map(_event, reply.events)))

    def _begin(self) -> Any:
        handles = [one.handle() for one in self._namespaces]
        epoch, seq = self.position
        return self._link.watch(pb.WatchRequest(namespaces=handles, epoch=epoch, seq=seq))

    def _judge(self, error: Exception) -> None:
        """Raise what asking again would not mend."""
        if self._closed.is_set():
            return
        self._check_open()
        meant = self._link.error(error)
        if isinstance(meant, Stale):
            for one in self._namespaces:
                one.forget_handle()
        elif isinstance(meant, LimitExceeded) and self._begun:
            return  # the daemon has not noticed yet that the connection before is gone
        elif not isinstance(meant, Unavailable):
            raise meant from None

    def _end(self) -> None:
        call, self._call = self._call, None
        if call is not None:
            call.cancel()

    def close(self) -> None:
        """End it, also while somebody waits for its next batch. Idempotent."""
        self._closed.set()
        call = self._call
        if call is not None:
            call.cancel()

    def __enter__(self) -> RemoteWatch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _event(event: pb.Event) -> Event:
    kind = event.WhichOneof("kind")
    if kind == "stored":
        return Stored(event.title, cut_keys(event.stored.keys), event.stored.parent or None)
    if kind == "removed":
        return Removed(event.title, cut_keys(event.removed.keys), Reason(event.removed.reason))
    return Cleared(event.title)
