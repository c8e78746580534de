"""One Read, and one Write, as a client sees them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from queue import SimpleQueue

import grpc
from google.protobuf.message import DecodeError

from kvstore import frames
from kvstore.client.blocks import Sink
from kvstore.client.link import Link
from kvstore.errors import Unavailable
from kvstore.v1 import kvstore_pb2 as pb

NBYTES_PER_S_MIN = 32 << 20  # a stream that is slower than this counts as stuck


def transfer_s(nbytes: int) -> float:
    """How long so many bytes may be under way."""
    return nbytes / NBYTES_PER_S_MIN


class Reading:
    """A Read that is under way: its header, then its pieces into a sink."""

    def __init__(self, link: Link, request: pb.ReadRequest, num_keys: int, timeout_s: float) -> None:
        self._link = link
        self._call = link.read(request, timeout_s)
        try:
            header = pb.ReadReply.FromString(next(self._call)).header
        except (grpc.RpcError, DecodeError, StopIteration) as error:
            raise link.error(error) from None
        if header.num_blocks > num_keys:
            self._call.cancel()
            raise Unavailable(f"{link.target} answered with {header.num_blocks} blocks for {num_keys} keys")
        self.header = header

    def __enter__(self) -> Reading:
        return self

    def __exit__(self, *_: object) -> None:
        self._call.cancel()

    def into(self, sink: Sink, block_nbytes: int) -> int:
        """Take all pieces; how many blocks came whole. A stream that breaks ends the prefix there."""
        at, end = 0, self.header.num_blocks * block_nbytes
        try:
            for message in self._call:
                data = frames.decode_data(message)
                block, offset = divmod(at, block_nbytes)
                if data is None or not _fits(len(data), offset, end - at, block_nbytes):
                    raise Unavailable(f"{self._link.target} sent a piece that does not fit")
                sink.take(block, offset, data)
                at += len(data)
        except grpc.RpcError as error:
            self._link.error(error)  # trips the circuit when the daemon is gone
        finally:
            self._call.cancel()
        return at // block_nbytes


def _fits(nbytes: int, offset: int, left: int, block_nbytes: int) -> bool:
    """Whole blocks, or a stretch that stays in one."""
    if not 0 < nbytes <= left:
        return False
    return offset + nbytes <= block_nbytes or (offset == 0 and nbytes % block_nbytes == 0)


class Writing:
    """A Write that is under way: the grant, then `commit` or `close`. Without a commit the daemon undoes it."""

    def __init__(self, link: Link, header: pb.WriteHeader, timeout_s: float) -> None:
        self._link = link
        self._outbox: SimpleQueue[Iterable[bytes] | None] = SimpleQueue()
        self._outbox.put([pb.WriteRequest(header=header).SerializeToString()])
        self._call = link.write(_until_none(self._outbox.get), timeout_s)
        self.grant = self._next("grant").grant

    def _next(self, kind: str) -> pb.WriteReply:
        try:
            reply = pb.WriteReply.FromString(next(self._call))
        except (grpc.RpcError, DecodeError, StopIteration) as error:
            self.close()
            raise self._link.error(error) from None
        if reply.WhichOneof("kind") != kind:
            self.close()
            raise Unavailable(f"{self._link.target} answered a Write with {reply.WhichOneof('kind')}, not a {kind}")
        return reply

    def commit(self, pieces: Iterable[bytes], hint: pb.RequestHint | None = None) -> pb.WriteResult:
        """Send the pieces and make the blocks visible; `hint` instead of the header's. Errors: Unavailable."""
        self._outbox.put(pieces)
        self._outbox.put([pb.WriteRequest(commit=pb.WriteCommit(hint=hint)).SerializeToString()])
        self._outbox.put(None)
        return self._next("result").result

    def close(self) -> None:
        """End the call; what was not committed is undone. Idempotent."""
        self._call.cancel()
        self._outbox.put(None)


def _until_none(get: Callable[[], Iterable[bytes] | None]) -> Iterator[bytes]:
    while (messages := get()) is not None:
        yield from messages
