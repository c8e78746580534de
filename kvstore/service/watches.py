"""Watch: what happens to the blocks of a tenant, to whoever may read them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

import grpc

from kvstore._core import events as core
from kvstore.errors import LimitExceeded
from kvstore.events import Position, Reason
from kvstore.feed import Batch, Feed, Run, runs
from kvstore.service.calls import Door
from kvstore.service.identity import Caller, Gatekeeper
from kvstore.service.limits import HANDLES_MAX, Held
from kvstore.service.namespaces import Namespaces
from kvstore.v1 import kvstore_pb2 as pb


class Watches:
    """The streams. Each holds a thread and a position, and nothing else: who takes its messages slowly is overtaken."""

    def __init__(self, feed: Feed, namespaces: Namespaces, gatekeeper: Gatekeeper, door: Door, held: Held) -> None:
        self._feed, self._namespaces, self._gatekeeper = feed, namespaces, gatekeeper
        self._door, self._held = door, held

    def end(self) -> None:
        """The door was closed: let every watch see that, and end."""
        self._feed.wake()

    def watch(self, caller: Caller, request: pb.WatchRequest, context: grpc.ServicerContext) -> Iterator[bytes]:
        """As the protocol says."""
        if len(request.namespaces) > HANDLES_MAX:
            raise LimitExceeded(f"{len(request.namespaces)} namespaces are more than handles_max={HANDLES_MAX}")
        self._feed.require_kept()
        with self._held.watch(caller.tenant):
            context.add_callback(self._feed.wake)  # called when the client is gone, or the deadline
            position, until_us = Position(request.epoch, request.seq), 0
            while context.is_active():
                self._door.require_open()
                batch = self._read(position, until_us, context, request.namespaces)
                if context.is_active():
                    yield _reply(batch)
                position, until_us = batch.position, self._feed.idle_us()

    def _read(self, position: Position, until_us: int, context: grpc.ServicerContext, handles: Sequence[int]) -> Batch:
        def choose(numbers: Collection[int]) -> Mapping[int, str]:
            """Who the caller is, and what it may do, can have changed since it began."""
            caller = self._gatekeeper.caller(context)
            if not handles:
                return self._namespaces.titles(caller, "read", numbers)
            chosen = [self._namespaces.get(caller, handle, "read") for handle in handles]
            return {one.namespace.number: one.title for one in chosen if one.namespace.number in numbers}

        def ended() -> bool:
            return self._door.is_closed or not context.is_active()

        return self._feed.read(position, until_us, choose, ended)


def _reply(batch: Batch) -> bytes:
    events = [_event(run, batch.titles[run.ns]) for run in runs(batch.rows)]
    epoch, seq = batch.position
    return pb.WatchReply(epoch=epoch, seq=seq, gap=batch.gap, events=events).SerializeToString()


def _event(run: Run, title: str) -> pb.Event:
    if run.kind == core.STORED:
        return pb.Event(title=title, stored=pb.BlocksStored(keys=run.keys, parent=run.parent))
    if run.kind == core.REMOVED:
        reason = pb.Reason.Name(Reason(run.reason))
        return pb.Event(title=title, removed=pb.BlocksRemoved(keys=run.keys, reason=reason))
    return pb.Event(title=title, cleared=pb.NamespaceCleared())
