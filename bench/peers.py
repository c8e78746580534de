"""Servers in processes of their own: the daemon, and others to compare it with.

`python -m bench.peers bare SOCKET` is a gRPC server that does nothing but gRPC: the same library, number of threads and
message limits as the daemon, handlers that take and give bytes. `ping FD` answers on one end of a pair of sockets, in
C. `load TARGET` is a client that keeps a daemon's Python threads busy: it asks for its statistics all the time.
"""

from __future__ import annotations

import os
import signal
import socket as sockets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc

import kvstore
from kvstore._core import clocked

METHODS = "bench.Bare"
THREADS = 32
OPTIONS = (("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1))
READY = "ready"
ATTACH_THREAD = "kvstore-attach"  # csrc/c/attach.c


def echo(request: bytes, _: grpc.ServicerContext) -> bytes:
    """As many bytes back as the first two say, of those that came."""
    return request[: int.from_bytes(request[:2], "little")]


def converse(requests: Iterator[bytes], _: grpc.ServicerContext) -> Iterator[bytes]:
    """The shape of a Write: an answer to the first message, one to the last."""
    yield next(requests)[:64]
    for message in requests:
        if len(message) < 8:
            break
    yield b"1234"


def send(request: bytes, _: grpc.ServicerContext) -> Iterator[bytes]:
    """As many pieces of a size as the request says."""
    piece = bytes(int.from_bytes(request[:8], "little"))
    for _number in range(int.from_bytes(request[8:], "little")):
        yield piece


def take(requests: Iterator[bytes], _: grpc.ServicerContext) -> bytes:
    """Take everything."""
    return sum(len(message) for message in requests).to_bytes(8, "little")


def serve(socket: str) -> None:
    """Serve until standard input ends."""
    handlers = {
        "Echo": grpc.unary_unary_rpc_method_handler(echo),
        "Converse": grpc.stream_stream_rpc_method_handler(converse),
        "Send": grpc.unary_stream_rpc_method_handler(send),
        "Take": grpc.stream_unary_rpc_method_handler(take),
    }
    server = grpc.server(ThreadPoolExecutor(THREADS), options=OPTIONS)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(METHODS, handlers),))
    server.add_insecure_port(f"unix:{socket}")
    server.start()
    print(READY, flush=True)
    sys.stdin.read()
    server.stop(0).wait()


@contextmanager
def bare() -> Iterator[grpc.Channel]:
    """A channel to a bare server."""
    with tempfile.TemporaryDirectory(prefix="kvstore-bench-") as folder:
        socket = f"{folder}/s"
        command = [sys.executable, "-m", "bench.peers", "bare", socket]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None and process.stdin is not None
            assert process.stdout.readline().strip() == READY
            with grpc.insecure_channel(f"unix:{socket}", options=OPTIONS) as channel:
                yield channel
            process.stdin.close()


@contextmanager
def answering() -> Iterator[int]:
    """A socket of datagrams whose other end a process without Python in its way answers (clocked.pings)."""
    ours, theirs = sockets.socketpair(sockets.AF_UNIX, sockets.SOCK_SEQPACKET)
    command = [sys.executable, "-m", "bench.peers", "ping", str(theirs.fileno())]
    with ours, subprocess.Popen(command, pass_fds=[theirs.fileno()]) as process:
        theirs.close()
        yield ours.fileno()
        ours.close()
        process.wait()


def cpu_clock(pid: int) -> int:
    """The clock of a process's CPU time, for time.clock_gettime (clock_getcpuclockid(3))."""
    return ~pid << 3 | 2


class Load:
    """A process that asks a daemon for its statistics, one call after the other, while it is `on`."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def on(self) -> None:
        """Go on, and be under way before this returns."""
        os.kill(self.pid, signal.SIGCONT)
        time.sleep(0.1)

    def off(self) -> None:
        """Stand still; the last answer has come to nothing before this returns."""
        os.kill(self.pid, signal.SIGSTOP)
        time.sleep(0.1)


@contextmanager
def load(target: str) -> Iterator[Load]:
    """A Load that is off."""
    command = [sys.executable, "-m", "bench.peers", "load", target]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline().strip() == READY
        found = Load(process.pid)
        found.off()
        yield found
        process.kill()


def ask_always(target: str) -> None:
    """The body of a Load: for ever. It comes last where cores are short: the daemon is to be busy, not the machine."""
    os.nice(19)
    with kvstore.connect(target, attach=False, timeout_ms=30_000) as store:
        store.stats()
        print(READY, flush=True)
        while True:
            store.stats()


@dataclass(frozen=True, slots=True)
class Daemon:
    """Where a daemon answers, and which process it is."""

    target: str
    pid: int


def keep_apart(daemon: Daemon, load: Load) -> None:
    """Give one core to this thread and the daemon's thread behind the attach socket, the others to the daemon's other
    threads and to the load. Where there is one core only, nothing."""
    cores = os.sched_getaffinity(0)
    first = {min(cores)}
    for pid in (daemon.pid, load.pid):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            is_ours = (thread / "comm").read_text().strip() == ATTACH_THREAD
            os.sched_setaffinity(int(thread.name), first if is_ours else cores - first or cores)
    os.sched_setaffinity(0, first)


@contextmanager
def serving(host_nbytes: int, **settings: str) -> Iterator[Daemon]:
    """A daemon with so much memory and no disk; `settings` as environment variables without KVSTORE_."""
    with tempfile.TemporaryDirectory(prefix="kvstore-bench-") as folder:
        socket = Path(folder) / "run" / "s"
        defaults = {
            "HOST_NBYTES": str(host_nbytes),
            "HOST_PREFAULT": "now",
            "DISK_NBYTES": "0",
            "SERVE_SOCKET": str(socket),
            "SERVE_THREADS": str(THREADS),
        }
        environment = {f"KVSTORE_{name}": value for name, value in (defaults | settings).items()}
        command = [sys.executable, "-m", "kvstore", "serve"]
        with subprocess.Popen(command, env=os.environ | environment, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            for line in process.stderr:
                if "serving;" in line:
                    break
            else:
                raise RuntimeError("the daemon did not start")
            try:
                yield Daemon(f"unix:{socket}", process.pid)
            finally:
                process.terminate()


@contextmanager
def daemon(host_nbytes: int) -> Iterator[kvstore.BlockStore]:
    """A client's store over a daemon with so much memory and no disk, by calls alone."""
    with (
        serving(host_nbytes) as found,
        kvstore.connect(found.target, attach=False, timeout_ms=30_000) as store,
    ):
        yield store


ROLES: dict[str, Callable[[str], None]] = {
    "bare": serve,
    "ping": lambda fd: clocked.answer_pings(int(fd)),
    "load": ask_always,
}

if __name__ == "__main__":
    ROLES[sys.argv[1]](sys.argv[2])
