"""RemoteNamespace: the verbs on blocks, in a daemon."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, TypeVar

import grpc
import numpy as np

from kvstore import hashing
from kvstore.arrays import Keys
from kvstore.block import BlockLayout, Match, PutResult
from kvstore.checks import checked_keys, duration_us, prefill_rate, whole_number
from kvstore.client.blocks import Collected, Copied
from kvstore.client.hints import Hinting, Wish, sent, wish
from kvstore.client.lease import RemoteLease
from kvstore.client.link import Link, Stale
from kvstore.client.putting import UNAVAILABLE, Put, rejections
from kvstore.client.room import RemoteRoom
from kvstore.client.streams import Reading, Writing, transfer_s
from kvstore.clock import SystemClock
from kvstore.copying import Located, locate
from kvstore.errors import InvalidRequest, Unavailable
from kvstore.hint import Hint
from kvstore.namespace import NamespaceSpec
from kvstore.policy import TokenRate
from kvstore.v1 import kvstore_pb2 as pb

T = TypeVar("T")
_SPEC_FIELDS = pb.NamespaceSpec.DESCRIPTOR.fields


class RemoteNamespace(Hinting):
    """As kvstore.Namespace, in a daemon. Made by RemoteStore.namespace; safe to use from several threads.

    While the daemon is gone a match or lease finds nothing and a put is rejected; afterwards the namespace is opened
    again by itself. Errors of every verb besides those of the embedded one: AccessDenied; NamespaceMismatch when the
    daemon came back with another namespace of this name.
    """

    def __init__(
        self, link: Link, spec: NamespaceSpec, quota_nbytes: int | None, check_open: Callable[[], None]
    ) -> None:
        self._link, self.spec, self._quota_nbytes = link, spec, quota_nbytes
        self._check_open = check_open
        self._clock = SystemClock()
        self._seed = spec.digest()
        self._handle: int | None = None
        self._event_seed = b""
        self._lock = threading.Lock()
        self._computed = TokenRate()  # of this process: it goes with each call, the daemon keeps none

    # ---- the handle ----

    def open(self) -> None:
        """Shake hands with the daemon. Errors: NamespaceMismatch, InvalidRequest, LimitExceeded, Unavailable."""
        with self._lock:
            if self._handle is None:
                spec = pb.NamespaceSpec(**{field.name: getattr(self.spec, field.name) for field in _SPEC_FIELDS})
                request = pb.OpenNamespaceRequest(spec=spec, quota_nbytes=self._quota_nbytes)
                reply = self._link.ask("OpenNamespace", request, pb.OpenNamespaceReply, repeat=True)
                self._event_seed, self._handle = reply.event_seed, reply.namespace

    def _with_handle(self, call: Callable[[int], T]) -> T:
        """Call with the handle; once more with a new one when the daemon has begun another life since."""
        for last in (False, True):
            if self._handle is None:
                self.open()
            handle = self._handle
            assert handle is not None
            try:
                return call(handle)
            except Stale as error:
                self._handle = None
                if last:
                    raise Unavailable(str(error)) from None
        raise AssertionError("unreachable")

    def handle(self) -> int:
        """The handle, opening the namespace if need be. Errors: as `open`."""
        return self._with_handle(lambda handle: handle)

    def is_over(self, link: Link) -> bool:
        """Is this the connection that it was opened over?"""
        return self._link is link

    def forget_handle(self) -> None:
        """The daemon has begun another life."""
        self._handle = None

    def _call_s(self, deadline_ms: float | None, nbytes: int) -> float:
        """How long a call may take that waits for `deadline_ms` and then moves bytes. Errors: Unavailable."""
        most_s = self._link.capabilities.call_ms_max / 1000
        if deadline_ms is None:
            return most_s
        return min(most_s, deadline_ms / 1000 + self._link.timeout_s + transfer_s(nbytes))

    # ---- keys ----

    def keys(self, token_ids: Any = None, *, block_hashes: Sequence[bytes] | None = None) -> Keys:
        """As Namespace.keys."""
        if (token_ids is None) == (block_hashes is None):
            raise InvalidRequest("keys are made of either token_ids or block_hashes: give one of them")
        if block_hashes is not None:
            return hashing.mix_keys(self._seed, block_hashes)
        return hashing.chain_keys(self._seed, token_ids, self.spec.block_tokens, self.spec.hash)

    def event_keys(self, keys: Keys) -> Keys:
        """What events call these blocks. A daemon knows the blocks of a tenant by other keys than the tenant does, and
        says once how they are made; they are the same in each of its lives. Errors: InvalidRequest; Unavailable while
        the daemon is gone and has not said it."""
        keys = checked_keys(keys)
        if not self._event_seed:
            self.handle()
        return hashing.mix_keys(self._event_seed, keys) if self._event_seed else keys

    # ---- reading ----

    def match(self, keys: Keys, *, prefill_tokens_per_s: float | None = None) -> Match:
        """As Namespace.match."""
        self._check_open()
        sent, given = checked_keys(keys).tobytes(), prefill_rate(prefill_tokens_per_s)

        def ask(handle: int) -> Match:
            request = pb.MatchRequest(namespace=handle, keys=sent, prefill_tokens_per_s=self._rate(given))
            return _match(self._link.ask("Match", request, pb.MatchReply, repeat=True))

        try:
            return self._with_handle(ask)
        except Unavailable:
            return Match(0)

    def lease(
        self,
        keys: Keys,
        deadline_ms: float | None = None,
        *,
        hint: Hint | None = None,
        prefill_tokens_per_s: float | None = None,
    ) -> RemoteLease:
        """As Namespace.lease; the blocks are copied here, and a `deadline_ms` is for those that are far."""
        self._check_open()
        keys = checked_keys(keys)
        sink = Collected(self.spec.block_nbytes)
        headers = self._read(keys, wish(deadline_ms, hint, prefill_tokens_per_s), sink)
        lease = RemoteLease(sink.blocks, len(keys), self.spec.block_nbytes)
        if headers:
            lease.pending, lease.load_us = headers[-1].num_pending, headers[-1].load_us
            lease.skipped, lease.recompute_us = headers[-1].num_skipped, headers[-1].recompute_us
            lease.num_promoted = sum(header.num_promoted for header in headers)
        return lease

    def get(
        self,
        keys: Keys,
        out: Any = None,
        deadline_ms: float | None = None,
        *,
        hint: Hint | None = None,
        prefill_tokens_per_s: float | None = None,
    ) -> tuple[int, Any]:
        """As Namespace.get."""
        self._check_open()
        asked = wish(deadline_ms, hint, prefill_tokens_per_s)
        found = None if out is None else locate(out, self.spec.block_nbytes, None, None, writable=True)
        keys = checked_keys(keys)
        if found is None:
            sink = Collected(self.spec.block_nbytes)
            self._read(keys, asked, sink)
            made = np.empty((len(sink.blocks), self.spec.block_nbytes), dtype=np.uint8)
            for row, block in zip(made, sink.blocks, strict=True):
                row[:] = np.frombuffer(block, dtype=np.uint8)
            return len(made), made
        return self._read_into(keys, asked, found), out

    def _read(self, keys: Keys, asked: Wish, sink: Collected) -> list[pb.ReadHeader]:
        """Read the prefix in as many calls as its size needs; the headers of the calls."""
        headers: list[pb.ReadHeader] = []
        for _, part in self._calls(keys):
            reading = self._reading(part, asked)
            if reading is None:
                break
            headers.append(reading.header)
            if reading.into(sink, self.spec.block_nbytes) < len(part):
                break
        return headers

    def _read_into(self, keys: Keys, asked: Wish, out: Located) -> int:
        num_copied = 0
        for first, part in self._calls(keys):
            reading = self._reading(part, asked)
            if reading is None:
                break
            num_blocks = reading.header.num_blocks
            with reading:
                rest = out.require_room(first + num_blocks).rows(first, first + num_blocks)
                came = reading.into(Copied(rest, self.spec.block_nbytes), self.spec.block_nbytes)
            num_copied += came
            if came < len(part):
                break
        return num_copied

    def _calls(self, keys: Keys) -> Iterator[tuple[int, Keys]]:
        """The keys in runs that one Read may ask for, with the position of the first; none while the daemon is gone."""
        try:
            limits = self._link.capabilities
        except Unavailable:
            return
        most = max(1, min(limits.keys_max, limits.call_nbytes_max // self.spec.block_nbytes))
        for first in range(0, len(keys), most):
            yield first, keys[first : first + most]

    def _reading(self, keys: Keys, asked: Wish) -> Reading | None:
        """A Read that has begun; None while the daemon is gone."""

        def begin(handle: int) -> Reading:
            request = pb.ReadRequest(
                namespace=handle,
                keys=keys.tobytes(),
                deadline_ms=asked.deadline_ms,
                hint=asked.hint,
                prefill_tokens_per_s=self._rate(asked.prefill_tokens_per_s),
            )
            call_s = self._call_s(asked.deadline_ms, len(keys) * self.spec.block_nbytes)
            return Reading(self._link, request, len(keys), call_s)

        try:
            return self._with_handle(begin)
        except Unavailable:
            return None

    def prefetch(
        self,
        keys: Keys,
        tier: str = "host",
        deadline_ms: float | None = None,
        *,
        prefill_tokens_per_s: float | None = None,
    ) -> Future[Match]:
        """As Namespace.prefetch; its result is an empty Match when the daemon is gone."""
        self._check_open()
        sent, given = checked_keys(keys).tobytes(), prefill_rate(prefill_tokens_per_s)
        if deadline_ms is not None:
            duration_us("deadline_ms", deadline_ms)
        answer: Future[Match] = Future()
        answer.set_running_or_notify_cancel()

        def begin(handle: int) -> grpc.Future[bytes]:
            near = self._link.capabilities.near_tier
            if tier != near:
                raise InvalidRequest(f"tier={tier!r}: blocks can be prefetched to {near!r} only")
            rate = self._rate(given)
            request = pb.PrefetchRequest(
                namespace=handle, keys=sent, deadline_ms=deadline_ms, prefill_tokens_per_s=rate
            )
            return self._link.begin("Prefetch", request, self._call_s(deadline_ms, 0))

        try:
            call = self._with_handle(begin)
        except Unavailable:
            answer.set_result(Match(0))
        else:
            call.add_done_callback(lambda done: self._arrived(answer, done))
        return answer

    def _arrived(self, answer: Future[Match], call: grpc.Future[bytes]) -> None:
        try:
            answer.set_result(_match(pb.MatchReply.FromString(call.result())))
        except (grpc.RpcError, grpc.FutureCancelledError) as error:
            meant = self._link.error(error)
            if isinstance(meant, (Unavailable, Stale)):
                answer.set_result(Match(0))
            else:
                answer.set_exception(meant)

    # ---- writing ----

    def reserve(
        self, keys: Keys, shard: int = 0, deadline_ms: float | None = None, *, hint: Hint | None = None
    ) -> RemoteRoom:
        """As Namespace.reserve; the blocks of one room are those that one call may carry, ask again for the rest."""
        self._check_open()
        keys, shard = checked_keys(keys), self._checked_shard(shard)
        nbytes = self.spec.part_nbytes
        try:
            writing = self._writing(keys, 0, shard, deadline_ms, hint)
        except Unavailable:
            return RemoteRoom(None, dict.fromkeys(range(len(keys)), UNAVAILABLE), nbytes, nbytes)
        return RemoteRoom(writing, rejections(writing.grant), nbytes, self._link.capabilities.piece_nbytes_max)

    def _checked_shard(self, shard: int) -> int:
        return whole_number("shard", shard, 0, self.spec.shards - 1)

    def _writing(self, keys: Keys, start: int, shard: int, deadline_ms: float | None, hint: Hint | None) -> Writing:
        if deadline_ms is not None:
            duration_us("deadline_ms", deadline_ms)
        message = sent(hint)

        def begin(handle: int) -> Writing:
            header = pb.WriteHeader(
                namespace=handle, keys=keys.tobytes(), start=start, shard=shard, deadline_ms=deadline_ms, hint=message
            )
            return Writing(self._link, header, self._link.capabilities.call_ms_max / 1000)

        return self._with_handle(begin)

    def put(
        self,
        keys: Keys,
        blocks: Any,
        *,
        start: int = 0,
        shard: int = 0,
        layout: BlockLayout | None = None,
        block_ids: Any = None,
        deadline_ms: float | None = None,
        durable: bool = False,
        hint: Hint | None = None,
    ) -> PutResult:
        """As Namespace.put; blocks that are stored already do not travel."""
        began_us = self._clock.now_us()
        self._check_open()
        keys, shard = checked_keys(keys), self._checked_shard(shard)
        start = whole_number("start", start, 0, len(keys))
        sources = locate(blocks, self.spec.part_nbytes, layout, block_ids, writable=False).require(len(keys) - start)
        result = Put(len(keys), start, sources, self.spec.part_nbytes).run(
            lambda at: self._writing(keys, at, shard, deadline_ms, hint),
            lambda: self._link.capabilities.piece_nbytes_max,
        )
        if not durable or result.rejected:
            return result
        left_ms = None if deadline_ms is None else max(0.0, deadline_ms - (self._clock.now_us() - began_us) / 1000)
        return replace(result, durable=self.make_durable(keys, left_ms))

    def make_durable(self, keys: Keys, deadline_ms: float | None = None) -> bool:
        """As Namespace.make_durable; False while the daemon is gone."""
        self._check_open()
        sent = checked_keys(keys).tobytes()
        if deadline_ms is not None:
            duration_us("deadline_ms", deadline_ms)

        def ask(handle: int) -> bool:
            request = pb.MakeDurableRequest(namespace=handle, keys=sent, deadline_ms=deadline_ms)
            call_s = self._call_s(deadline_ms, 0)
            return self._link.ask("MakeDurable", request, pb.FlushReply, repeat=True, timeout_s=call_s).done

        try:
            return self._with_handle(ask)
        except Unavailable:
            return False

    def remove(self, keys: Keys) -> int:
        """As Namespace.remove. Errors: Unavailable when nobody knows whether it was done; a repeat is safe."""
        self._check_open()
        sent = checked_keys(keys).tobytes()

        def ask(handle: int) -> int:
            request = pb.RemoveRequest(namespace=handle, keys=sent)
            return self._link.ask("Remove", request, pb.RemoveReply, repeat=False).num_blocks

        return self._with_handle(ask)

    def clear(self) -> int:
        """As Namespace.clear. Errors: as remove."""
        self._check_open()

        def ask(handle: int) -> int:
            return self._link.ask("Clear", pb.ClearRequest(namespace=handle), pb.RemoveReply, repeat=False).num_blocks

        return self._with_handle(ask)

    def explain(self, keys: Keys) -> list[str]:
        """As Namespace.explain; all are "unavailable" while the daemon is gone."""
        self._check_open()
        keys = checked_keys(keys)

        def ask(handle: int) -> list[str]:
            request = pb.ExplainRequest(namespace=handle, keys=keys.tobytes())
            return list(self._link.ask("Explain", request, pb.ExplainReply, repeat=True).reasons)

        try:
            return self._with_handle(ask)
        except Unavailable:
            return [UNAVAILABLE] * len(keys)

    def __repr__(self) -> str:
        return f"<RemoteNamespace {self.spec.title!r} at {self._link.target}>"


def _match(reply: pb.MatchReply) -> Match:
    return Match(reply.num_blocks, dict(reply.by_tier), reply.load_us, reply.num_skipped, reply.recompute_us)
