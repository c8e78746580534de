"""The attach socket without our client: messages by their bytes (docs/formats.md, "Attach socket")."""

from __future__ import annotations

import array
import mmap
import os
import socket
import struct
from typing import Any, NamedTuple

import numpy as np

MAGIC = 0x3141766B
OPEN, RESERVE, COMMIT, ABANDON, PROMOTE, BYE, RETRY = range(1, 8)
OK, MALFORMED, VERSION, DENIED, LIMIT, UNKNOWN, FOREIGN = range(7)
WAIT = 9
HEAD = struct.Struct("<IHHII")
TYPES = {OPEN: 24, RESERVE: 16, COMMIT: 8, ABANDON: 8, PROMOTE: 16, BYE: 0, RETRY: 8}
GROUP = 64
LEASES_AT = 64 + 4 * 8192


class Reply(NamedTuple):
    """An answer; `status` -1: the connection has ended."""

    status: int
    detail: int
    body: bytes
    fds: list[int]


class Raw:
    """One connection."""

    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(10)
        self.socket.connect(path)
        self.fds: list[int] = []
        self.number = 0

    def send(self, message: bytes, fds: list[int] | None = None) -> None:
        """A datagram as it is."""
        control: list[Any] = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.socket.sendmsg([message], control)

    def receive(self) -> Reply:
        """The next answer."""
        try:
            data, control, _, _ = self.socket.recvmsg(1 << 20, socket.CMSG_SPACE(4 * 8))
        except ConnectionError:
            return Reply(-1, 0, b"", [])
        fds = array.array("i")
        for level, kind, payload in control:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds.frombytes(payload[: len(payload) // 4 * 4])
        self.fds += fds
        if len(data) < HEAD.size:
            return Reply(-1, 0, b"", list(fds))
        _, _, status, _, detail = HEAD.unpack_from(data)
        return Reply(status, detail, data[HEAD.size :], list(fds))

    def message(self, kind: int, body: bytes) -> bytes:
        """A well-formed head before a body."""
        self.number += 1
        return HEAD.pack(MAGIC, kind, 0, self.number, 0) + body

    def ask(self, kind: int, body: bytes = b"") -> Reply:
        """A message and its answer."""
        try:
            self.send(self.message(kind, body))
        except BrokenPipeError:
            return Reply(-1, 0, b"", [])
        return self.receive()

    def open(self, ticket: bytes, version: int = 1) -> Reply:
        """OPEN."""
        return self.ask(OPEN, struct.pack("<II", version, 0) + ticket)

    def reserve(self, ns: int, keys: Any, shard: int = 0, deadline_ms: int = 0, num_keys: int | None = None) -> Reply:
        """RESERVE."""
        num = len(keys) if num_keys is None else num_keys
        return self.ask(RESERVE, struct.pack("<IIII", ns, shard, deadline_ms, num) + keys.tobytes())

    def end(self, kind: int, reservation: int) -> Reply:
        """COMMIT, ABANDON or RETRY."""
        return self.ask(kind, struct.pack("<II", reservation, 0))

    def table(self) -> mmap.mmap:
        """This client's lease table, to write whatever one likes into."""
        return mmap.mmap(self.fds[1], os.fstat(self.fds[1]).st_size)

    def close(self) -> None:
        """Hang up and close what was sent."""
        self.socket.close()
        for descriptor in self.fds:
            os.close(descriptor)
        self.fds.clear()

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def opened(body: bytes) -> dict[str, int]:
    """The answer to OPEN."""
    names = ("arena_nbytes", "reserved_nbytes_max", "leases_max", "reservations_max", "keys_max", "lease_ms")
    return dict(zip((*names, "ns", "rights", "num_fds"), struct.unpack("<QQIIIIIII", body[:44]), strict=True))


def reserved(body: bytes) -> tuple[int, np.ndarray, np.ndarray]:
    """The answer to RESERVE: (reservation, what each position got, ids)."""
    number, num_keys, num_granted, _ = struct.unpack_from("<IIII", body)
    words = np.frombuffer(body, np.uint32, offset=16)
    assert len(words) == num_keys + num_granted
    return number, words[:num_keys], words[num_keys:]
