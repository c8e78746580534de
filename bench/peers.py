"""Servers in processes of their own: the daemon, and a bare gRPC server that does nothing but gRPC.

`python -m bench.peers SOCKET` is the bare one: the same library, number of threads and message limits as the daemon,
handlers that take and give bytes.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc

import kvstore

METHODS = "bench.Bare"
THREADS = 32
OPTIONS = (("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1))
READY = "ready"


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
        command = [sys.executable, "-m", "bench.peers", socket]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None and process.stdin is not None
            assert process.stdout.readline().strip() == READY
            with grpc.insecure_channel(f"unix:{socket}", options=OPTIONS) as channel:
                yield channel
            process.stdin.close()


@contextmanager
def daemon(host_nbytes: int) -> Iterator[kvstore.BlockStore]:
    """A client's store over a daemon with so much memory and no disk."""
    with tempfile.TemporaryDirectory(prefix="kvstore-bench-") as folder:
        socket = Path(folder) / "run" / "s"
        settings = {
            "KVSTORE_HOST_NBYTES": str(host_nbytes),
            "KVSTORE_HOST_PREFAULT": "now",
            "KVSTORE_DISK_NBYTES": "0",
            "KVSTORE_SERVE_SOCKET": str(socket),
            "KVSTORE_SERVE_THREADS": str(THREADS),
        }
        command = [sys.executable, "-m", "kvstore", "serve"]
        with subprocess.Popen(command, env=os.environ | settings, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            for line in process.stderr:
                if "serving;" in line:
                    break
            else:
                raise RuntimeError("the daemon did not start")
            with kvstore.connect(f"unix:{socket}", timeout_ms=30_000) as store:
                yield store
            process.terminate()


if __name__ == "__main__":
    serve(sys.argv[1])
