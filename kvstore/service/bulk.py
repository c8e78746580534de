"""Read and Write: blocks to and from remote clients, each byte copied once between the arena and a message."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import numpy as np

from kvstore import frames
from kvstore._core import transfer
from kvstore.errors import InvalidRequest, LeaseExpired, LimitExceeded
from kvstore.hint import Hint
from kvstore.lease import Lease
from kvstore.putting import PREFIX_GONE
from kvstore.room import Room
from kvstore.service.calls import parsed, rate_of, remaining_ms
from kvstore.service.hints import hint_in
from kvstore.service.identity import Caller
from kvstore.service.limits import Held, Limits
from kvstore.service.namespaces import Namespaces, Opened
from kvstore.v1 import kvstore_pb2 as pb


class Bulk:
    """The streams. What a call holds ends with it: a generator that nobody goes on with closes its `with` blocks."""

    def __init__(self, namespaces: Namespaces, limits: Limits, held: Held) -> None:
        self._namespaces, self._limits, self._held = namespaces, limits, held

    def read(self, caller: Caller, request: pb.ReadRequest, context: grpc.ServicerContext) -> Iterator[bytes]:
        """As the protocol says."""
        opened = self._namespaces.get(caller, request.namespace, "read")
        hint = hint_in(request)
        if hint is not None:
            caller.rule.require("write")  # it says which blocks stay
        wanted_ms = request.deadline_ms if request.HasField("deadline_ms") else None
        left_ms = remaining_ms(context, wanted_ms, self._limits.call_ms_max)
        keys = opened.keys(request.keys)
        nbytes = len(keys) * opened.namespace.spec.block_nbytes
        if len(keys) > 1 and nbytes > self._limits.call_nbytes_max:
            raise LimitExceeded(f"{len(keys)} blocks of {nbytes} bytes: call_nbytes_max={self._limits.call_nbytes_max}")
        leased, rate = opened.namespace.lease, rate_of(request)
        with (
            self._held.long_call(caller.client),
            leased(keys, left_ms, hint=hint, prefill_tokens_per_s=rate) as lease,
        ):
            nbytes = lease.num_blocks * opened.namespace.spec.block_nbytes
            with self._held.blocks(caller.client, nbytes, leased=lease.num_blocks):
                yield from self._sent(lease, opened.namespace.spec.block_nbytes)
            self._held.count("sent_nbytes", nbytes)

    def _sent(self, lease: Lease, block_nbytes: int) -> Iterator[bytes]:
        header = pb.ReadHeader(
            num_blocks=lease.num_blocks,
            num_pending=lease.pending,
            num_promoted=lease.num_promoted,
            load_us=lease.load_us,
            num_skipped=lease.skipped,
            recompute_us=lease.recompute_us,
        )
        yield pb.ReadReply(header=header).SerializeToString()
        views = lease.views
        for first, count, offset, nbytes in frames.cuts(block_nbytes, len(views), self._limits.piece_nbytes_max):
            run = views[first : first + count]
            yield frames.encode_data(run if count > 1 else [run[0][offset : offset + nbytes]])

    def write(self, caller: Caller, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        """As the protocol says."""
        remaining_ms(context, None, self._limits.call_ms_max)  # a client that says nothing holds a thread until then
        with self._held.long_call(caller.client):
            header = _header(next(requests, b""))
            opened = self._namespaces.get(caller, header.namespace, "write")
            has_deadline = header.HasField("deadline_ms")
            left_ms = remaining_ms(context, header.deadline_ms if has_deadline else None, self._limits.call_ms_max)
            keys, num_considered = self._considered(opened, header)
            deadline_ms = left_ms if has_deadline else None  # None: as the store is configured
            hint = hint_in(header)
            with opened.namespace.reserve(keys[:num_considered], header.shard, deadline_ms, hint=hint) as room:
                nbytes = len(room.wanted) * opened.namespace.spec.part_nbytes
                with self._held.blocks(caller.client, nbytes, reserved=len(room.wanted)):
                    yield from self._received(room, requests, header.start, num_considered, opened)
                self._held.count("received_nbytes", nbytes)

    def _considered(self, opened: Opened, header: pb.WriteHeader) -> tuple[np.ndarray, int]:
        """The keys, and how many of them one call may reserve: those stored already, and what fits behind them."""
        keys = opened.keys(header.keys)
        if header.start > len(keys):
            raise InvalidRequest(f"start={header.start} is behind the last of {len(keys)} keys")
        most = max(1, self._limits.call_nbytes_max // opened.namespace.spec.block_nbytes)
        if len(keys) <= most:
            return keys, len(keys)
        return keys, min(len(keys), opened.namespace.peek(keys).num_blocks + most)

    def _received(
        self, room: Room, requests: Iterator[bytes], start: int, num_considered: int, opened: Opened
    ) -> Iterator[bytes]:
        rejected = dict(room.rejected)
        gone = len(room.wanted) > 0 and int(room.wanted[0]) < start
        if gone:  # what this was to extend has left the store since the caller looked
            rejected = dict.fromkeys(range(room.present, num_considered), PREFIX_GONE)
            room.release()
        wanted = [] if gone else room.wanted.tolist()
        grant = pb.WriteGrant(
            wanted=wanted, num_present=room.present, rejected=_grouped(rejected), num_considered=num_considered
        )
        yield pb.WriteReply(grant=grant).SerializeToString()
        if wanted:
            commit = self._fill(room, requests, opened.namespace.spec.part_nbytes)
        else:
            commit = _commit(next(requests, b""))
        lost = 0 if gone else _lost(room, hint_in(commit))
        result = pb.WriteResult(num_stored=len(wanted) - lost, num_lost=lost)
        yield pb.WriteReply(result=result).SerializeToString()

    def _fill(self, room: Room, requests: Iterator[bytes], part_nbytes: int) -> pb.WriteCommit:
        """Copy every piece to its place; the commit that follows them."""
        views = room.views
        at, end = 0, len(views) * part_nbytes
        for message in requests:
            data = frames.decode_data(message)
            if data is None:
                commit = _commit(message)
                break
            if not 0 < len(data) <= min(end - at, self._limits.piece_nbytes_max):
                raise InvalidRequest(f"a piece of {len(data)} bytes where {end - at} of {end} bytes are to come")
            _copy(views, at, data, part_nbytes)
            at += len(data)
        else:
            raise InvalidRequest(f"the stream ended after {at} of {end} bytes and without a commit")
        if at < end:
            raise InvalidRequest(f"a commit after {at} of {end} bytes")
        return commit


def _lost(room: Room, hint: Hint | None) -> int:
    """Commit; how many blocks had been undone before."""
    try:
        room.commit(hint=hint)
    except LeaseExpired as error:
        if not error.num_lost:
            raise
        return error.num_lost
    return 0


def _copy(views: list[memoryview], at: int, data: memoryview, part_nbytes: int) -> None:
    """Copy a piece of the stream that begins `at` bytes into it, without the GIL where it is large."""
    while len(data):
        number, offset = divmod(at, part_nbytes)
        if offset == 0 and len(data) >= part_nbytes:
            count = len(data) // part_nbytes
            targets = transfer.list_addresses(views[number : number + count], part_nbytes, writable=True)
            nbytes = count * part_nbytes
            sources = transfer.piece_addresses(data[:nbytes], part_nbytes, writable=False)
            transfer.copy_pieces(targets, sources, part_nbytes)
        else:
            nbytes = min(part_nbytes - offset, len(data))
            target = np.frombuffer(views[number], dtype=np.uint8)
            np.copyto(target[offset : offset + nbytes], np.frombuffer(data[:nbytes], dtype=np.uint8))
        at, data = at + nbytes, data[nbytes:]


def _header(message: bytes) -> pb.WriteHeader:
    request = parsed(pb.WriteRequest, message)
    if request.WhichOneof("kind") != "header":
        raise InvalidRequest("the first message of a Write is a header")
    return request.header


def _commit(message: bytes) -> pb.WriteCommit:
    request = parsed(pb.WriteRequest, message)
    kind = request.WhichOneof("kind")
    if kind != "commit":
        raise InvalidRequest(f"{kind or 'an empty message or the end of the stream'} where a commit was expected")
    return request.commit


def _grouped(rejected: dict[int, str]) -> list[pb.Rejection]:
    """Positions by reason: a reason is said once, however many positions it is about."""
    groups: dict[str, list[int]] = {}
    for position, reason in rejected.items():
        groups.setdefault(reason, []).append(position)
    return [pb.Rejection(reason=reason, positions=positions) for reason, positions in groups.items()]
