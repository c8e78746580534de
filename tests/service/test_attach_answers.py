"""Answers that no daemon of ours would give: an error of ours, the line is given up, and no descriptor is kept."""

from __future__ import annotations

import array
import os
import random
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import attach_wire as wire
import pytest

from kvstore._core.link import Link
from kvstore.errors import AccessDenied, InvalidRequest, LeaseExpired, LimitExceeded, Unavailable

KEYS = bytes(3 * 32)
OPENED = struct.pack("<QQ8I", 1 << 20, 1 << 20, 64, 64, 8192, 60_000, 1, 3, 3, 0)
ANY = (AccessDenied, InvalidRequest, LeaseExpired, LimitExceeded, Unavailable)


class Impostor:
    """Listens where a daemon would, and answers what it was told to."""

    def __init__(self, path: Path) -> None:
        self.path, self.answer, self.sent = str(path), b"", str(path.with_name("sent"))
        self.fd = os.open(self.sent, os.O_CREAT | os.O_RDWR)
        self.num_fds = 3
        self._listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listening.bind(self.path)
        self._listening.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            line, _ = self._listening.accept()
            with line:
                while request := line.recv(1 << 20):
                    if request == b"stop":
                        return
                    number = request[8:12]
                    message = self.answer[:8] + number + self.answer[12:] if len(self.answer) >= 12 else self.answer
                    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [self.fd] * self.num_fds))]
                    line.sendmsg([message], rights if self.num_fds else [])

    def stop(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as line:
            line.connect(self.path)
            line.send(b"stop")
            self._thread.join()
        self._listening.close()
        os.close(self.fd)

    def link(self) -> Link:
        return Link(self.path, 5_000)


@pytest.fixture
def impostor(tmp_path: Path) -> Iterator[Impostor]:
    impostor = Impostor(tmp_path / "s")
    yield impostor
    impostor.stop()


def num_kept(path: str) -> int:
    """Descriptors of this process that lead there."""
    links = [Path(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")]
    return sum(link.is_symlink() and os.readlink(link) == path for link in links)


@pytest.mark.parametrize("num", [4, 5, 100])
def test_more_descriptors_than_there_are_make_no_sense(impostor: Impostor, num: int):
    impostor.answer, impostor.num_fds = wire.head(wire.OPEN) + OPENED, num
    link = impostor.link()
    with pytest.raises(Unavailable):
        link.open(bytes(16))
    assert link.is_over and num_kept(impostor.sent) == 1


@pytest.mark.parametrize(
    "answer",
    [
        b"x",
        wire.head(wire.OPEN)[:15],
        wire.head(wire.OPEN, magic=1) + OPENED,
        wire.head(wire.BYE) + OPENED,
        wire.head(wire.OPEN) + OPENED + bytes(100),
    ],
)
def test_an_answer_to_something_else_ends_the_line(impostor: Impostor, answer: bytes):
    impostor.answer = answer
    link = impostor.link()
    with pytest.raises(Unavailable):
        link.open(bytes(16))
    assert link.is_over and num_kept(impostor.sent) == 1
    with pytest.raises(Unavailable):
        link.bye()


@pytest.mark.parametrize("status", [number for number in range(1, 12) if number not in (wire.UNKNOWN, wire.WAIT)])
def test_a_refusal_keeps_no_descriptors(impostor: Impostor, status: int):
    impostor.answer = wire.head(wire.OPEN, status=status) + OPENED
    link = impostor.link()
    with pytest.raises(ANY):
        link.open(bytes(16))
    assert num_kept(impostor.sent) == 1


def test_any_answer_to_a_reservation_is_checked(impostor: Impostor):
    seed = int.from_bytes(os.urandom(4), "little")
    print(f"seed {seed}")
    rng = random.Random(seed)
    impostor.num_fds = 0
    good = wire.head(wire.RESERVE) + struct.pack("<4I", 7, 3, 2, 0) + struct.pack("<5I", 1, wire.BUSY, 5, 11, 12)
    calls: list[Callable[[Link], object]] = [
        lambda link: link.reserve(KEYS, 1, 0, 0),
        lambda link: link.commit(1),
        lambda link: link.promote(KEYS, 1, 0),
    ]
    kinds = (wire.RESERVE, wire.COMMIT, wire.PROMOTE)
    impostor.answer = good
    found = impostor.link().reserve(KEYS, 1, 0, 0)
    assert not isinstance(found, int) and found[0] == 7 and found[1].tolist() == [0, 2]
    for _ in range(300):
        which = rng.randrange(3)
        answer = bytearray(good)
        answer[4:6] = struct.pack("<H", kinds[which])
        for _ in range(rng.randint(1, 3)):
            at = 4 * rng.randrange(3, len(answer) // 4)
            answer[at : at + 4] = struct.pack("<I", rng.choice((0, 1, 2, 3, 4, 0xFFFFFFFD, 0xFFFFFFFF, 0x7FFFFFFF)))
        impostor.answer = bytes(answer[: rng.choice((len(answer), rng.randrange(16, len(answer))))])
        try:
            calls[which](impostor.link())
        except ANY:
            continue
