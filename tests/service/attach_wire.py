"""The attach socket without our client: any bytes, order and descriptors; and as a program, a client that gets into
a state and stays there until it is killed or told to end.

    python attach_wire.py PATH TICKETS STATE NAMESPACE KEYS
"""

from __future__ import annotations

import array
import mmap
import os
import socket
import struct
import subprocess
import sys
from typing import Any, NamedTuple

MAGIC, VERSION = 0x3141766B, 2
OPEN, RESERVE, COMMIT, ABANDON, PROMOTE, BYE, RETRY = range(1, 8)
OK, MALFORMED, WRONG_VERSION, DENIED, LIMIT, UNKNOWN, FOREIGN, CLOSING, MEMORY, WAIT = range(10)
LIMIT_LEASES, LIMIT_RESERVATIONS, LIMIT_RESERVED = 2, 3, 4
DEFAULT_WAIT = 0xFFFFFFFF
PRESENT, BUSY, REFUSED = 0xFFFFFFFF, 0xFFFFFFFE, 0xFFFFFFFD
STATES = ("connected", "opened", "leasing", "reserved", "waiting", "silent", "mute")
LEASES_AT, GROUPS_TOP_AT = 32_832, 12  # docs/formats.md, "Lease table"


def head(kind: int, *, magic: int = MAGIC, status: int = 0, number: int = 1, detail: int = 0) -> bytes:
    return struct.pack("<IHHII", magic, kind, status, number, detail)


NO_HINT = struct.pack("<BbHI", 0, 0, 0, 0xFFFFFFFF)


def chain(ns: int, keys: bytes, *, shard: int = 0, num_keys: int | None = None, **other: Any) -> bytes:
    """The body of RESERVE and PROMOTE; `other`: `deadline_ms` and `hint`."""
    num_keys = len(keys) // 32 if num_keys is None else num_keys
    return struct.pack("<IIII", ns, shard, other.get("deadline_ms", 0), num_keys) + other.get("hint", NO_HINT) + keys


def ended(reservation: int) -> bytes:
    """The body of COMMIT, ABANDON and RETRY."""
    return struct.pack("<II", reservation, 0)


class Answer(NamedTuple):
    status: int
    detail: int
    body: bytes
    fds: list[int]

    @property
    def reservation(self) -> int:
        number: int = struct.unpack_from("<I", self.body)[0]
        return number

    @property
    def granted(self) -> int:
        number: int = struct.unpack_from("<I", self.body, 8)[0]
        return number


class Raw:
    """One connection."""

    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 18)
        self.socket.settimeout(10)
        self.socket.connect(path)
        self.fds: list[int] = []
        self.number = 0

    def send(self, message: bytes, fds: tuple[int, ...] = ()) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.socket.sendmsg([message], rights)

    def answer(self) -> Answer | None:
        """The next one; None when the daemon has hung up."""
        try:
            message, rights, _, _ = self.socket.recvmsg(1 << 18, 1024)
        except ConnectionResetError:
            return None
        fds = array.array("i")
        for level, kind, data in rights:
            assert (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
            fds.frombytes(data[: len(data) - len(data) % 4])
        self.fds += fds
        if not message:
            return None
        magic, _, status, self.number, detail = struct.unpack_from("<IHHII", message)
        assert magic == MAGIC
        return Answer(status, detail, message[16:], list(fds))

    def ask(self, kind: int, body: bytes = b"", **fields: int) -> Answer:
        self.send(head(kind, **fields) + body)
        answer = self.answer()
        assert answer is not None, "the daemon hung up"
        return answer

    def open(self, ticket: bytes) -> Answer:
        return self.ask(OPEN, struct.pack("<II", VERSION, 0) + ticket)

    def is_over(self) -> bool:
        """Does nothing come any more?"""
        return self.answer() is None

    def close(self) -> None:
        self.socket.close()
        for fd in self.fds:
            os.close(fd)
        self.fds = []

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def table_of(fd: int) -> mmap.mmap:
    """A client's own lease table."""
    return mmap.mmap(fd, os.fstat(fd).st_size)


class Child:
    """This program, in one of STATES."""

    def __init__(self, path: str, ticket: bytes, state: str, ns: int = 0, keys: bytes = b"") -> None:
        command = [sys.executable, "-S", __file__, path, ticket.hex(), state, str(ns), keys.hex()]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None and self._process.stdout.readline() == "ready\n"

    def tell(self, what: str) -> None:
        """`bye`: say BYE and do not wait for the answer."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{what}\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "done\n"

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate(timeout=20)


def get_into(state: str, raw: Raw, ticket: bytes, ns: int, keys: bytes) -> Any:
    if state == "connected":
        return None
    fds = raw.open(ticket).fds
    wish = chain(ns, keys, deadline_ms=60_000)
    if state == "leasing":
        table = table_of(fds[1])
        table[GROUPS_TOP_AT : GROUPS_TOP_AT + 4] = struct.pack("<I", 1)
        table[LEASES_AT : LEASES_AT + 64 * 4] = struct.pack("<64I", *range(1, 65))
        return table
    if state == "reserved":
        assert raw.ask(RESERVE, wish).granted > 0
    elif state == "waiting":
        assert raw.ask(RESERVE, wish).status == WAIT
    elif state == "silent":
        assert raw.ask(RESERVE, wish).granted > 0
        raw.socket.close()
    elif state == "mute":  # requests, and nobody who takes the answers
        raw.socket.settimeout(1)
        try:
            while True:
                raw.send(head(RESERVE) + wish)
        except OSError:
            pass
    return None


def main(path: str, ticket: str, state: str, ns: str, keys: str) -> None:
    raw = Raw(path)
    kept = get_into(state, raw, bytes.fromhex(ticket), int(ns), bytes.fromhex(keys))
    print("ready", flush=True)
    for line in sys.stdin:
        if line == "bye\n":
            raw.send(head(BYE))
        print("done", flush=True)
    del kept


if __name__ == "__main__":
    main(*sys.argv[1:6])
