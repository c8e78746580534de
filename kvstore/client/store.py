"""RemoteStore: a store in a daemon."""

from __future__ import annotations

import json
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from kvstore.block import Attached, Detached
from kvstore.checks import duration_us
from kvstore.client.attached import AttachedNamespace
from kvstore.client.attachment import Attachments
from kvstore.client.handle import RemoteNamespace
from kvstore.client.link import Link
from kvstore.client.watch import RemoteWatch
from kvstore.errors import InvalidRequest, Unavailable
from kvstore.events import START, Position, listed
from kvstore.namespace import NamespaceSpec
from kvstore.v1 import kvstore_pb2 as pb


class RemoteStore:
    """A store of KV blocks in a daemon. `kvstore.connect` makes one; `namespace` gives the verbs.

    Safe to use from several threads.
    """

    def __init__(self, link: Link, attachments: Attachments | None = None) -> None:
        self.link, self._attachments = link, attachments
        self.is_open = True

    def _check_open(self) -> None:
        if not self.is_open:
            raise Unavailable("the store is closed")

    def namespace(self, spec: NamespaceSpec, quota_nbytes: int | None = None) -> RemoteNamespace:
        """As BlockStore.namespace. When the daemon is gone, the handshake is done once it is back; its errors come from
        the verbs then. A quota needs the verb `admin`."""
        if not isinstance(spec, NamespaceSpec):
            raise InvalidRequest(f"namespace wants a NamespaceSpec, not {type(spec).__name__}")
        if spec.tenant:
            raise InvalidRequest(f"tenant={spec.tenant!r}: the tenant is who the caller is")
        self._check_open()
        if self._attachments is None:
            namespace = RemoteNamespace(self.link, spec, quota_nbytes, self._check_open)
        else:
            namespace = AttachedNamespace(self.link, spec, quota_nbytes, self._check_open, self._attachments)
        try:
            namespace.open()
        except Unavailable:
            if not self.link.circuit.is_open:  # it answered, and will not
                raise
        return namespace

    def watch(self, namespaces: Sequence[RemoteNamespace] | None = None, since: Position = START) -> RemoteWatch:
        """As BlockStore.watch; None: all that the caller may read. It outlives the
        daemon. Errors: InvalidRequest; those of the daemon come from the iterator."""
        self._check_open()
        for namespace in () if namespaces is None else listed(namespaces):
            if not isinstance(namespace, RemoteNamespace) or not namespace.is_over(self.link):
                raise InvalidRequest(f"namespaces has {namespace!r:.80}, which is no namespace of this store")
        return RemoteWatch(self.link, namespaces, Position.checked(since), self._check_open)

    def flush(self, deadline_ms: float | None = None) -> bool:
        """As BlockStore.flush; False also when the daemon is gone."""
        self._check_open()
        wanted_s = None if deadline_ms is None else duration_us("deadline_ms", deadline_ms) / 1e6
        try:
            most_s = self.link.capabilities.call_ms_max / 1000
            call_s = most_s if wanted_s is None else min(most_s, wanted_s + self.link.timeout_s)
            request = pb.FlushRequest(deadline_ms=deadline_ms)
            return self.link.ask("Flush", request, pb.FlushReply, call_s, repeat=False).done
        except Unavailable:
            return False

    def detach_tier(self, tier: str, deadline_ms: float | None = None, *, force: bool = False) -> Detached:
        """As BlockStore.detach_tier; needs the verb `admin`. Without an answer in time (Unavailable) ask again: the
        daemon goes on by itself."""
        self._check_open()
        most_s = self.link.capabilities.call_ms_max / 1000
        wanted_s = most_s / 2 if deadline_ms is None else duration_us("deadline_ms", deadline_ms) / 1e6
        request = pb.DetachTierRequest(tier=tier, deadline_ms=wanted_s * 1000, force=force)
        reply = self.link.ask("DetachTier", request, pb.DetachTierReply, most_s, repeat=False)
        return Detached(reply.released, reply.num_unwritten)

    def attach_tier(self, tier: str) -> Attached:
        """As BlockStore.attach_tier; needs the verb `admin`. Without an answer in time (Unavailable) ask again."""
        self._check_open()
        most_s = self.link.capabilities.call_ms_max / 1000
        reply = self.link.ask("AttachTier", pb.AttachTierRequest(tier=tier), pb.AttachTierReply, most_s, repeat=False)
        return Attached(reply.num_blocks, reply.num_dropped)

    def stats(self) -> dict[str, Any]:
        """As BlockStore.stats, and `service`: what calls under way hold. Errors: Unavailable, AccessDenied."""
        self._check_open()
        reply = self.link.ask("Stats", pb.StatsRequest(), pb.StatsReply, repeat=True)
        found: dict[str, Any] = json.loads(reply.json)
        return found

    def close(self) -> None:
        """End the connection; the daemon goes on. Idempotent."""
        self.is_open = False
        if self._attachments is not None:
            self._attachments.end()
        self.link.close()

    def __enter__(self) -> RemoteStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<RemoteStore {self.link.target}>"
