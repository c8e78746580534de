"""The gRPC server: the protocol's methods, health and reflection, over a pool of threads."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from kvstore.access import Access
from kvstore.config import Config
from kvstore.errors import LimitExceeded
from kvstore.service.attaching import Attaching
from kvstore.service.bulk import Bulk
from kvstore.service.calls import Calls, Door, Methods, refuse
from kvstore.service.control import Admin, Control
from kvstore.service.endpoints import add_tcp, add_unix
from kvstore.service.identity import Gatekeeper
from kvstore.service.limits import MESSAGE_NBYTES_MAX, Held, Limits
from kvstore.service.namespaces import Namespaces
from kvstore.service.tiers import Tiers
from kvstore.service.watches import Watches
from kvstore.store import BlockStore
from kvstore.v1 import kvstore_pb2 as pb

log = logging.getLogger("kvstore.service")

REFLECTIONS_MAX = 2  # of the threads that are left for calls that hold nothing
STORE, ADMIN = "kvstore.v1.KVStore", "kvstore.v1.Admin"
TIERS = "kvstore.v1.tiers"  # of the health service alone: whether no tier is detached
OPTIONS = (
    ("grpc.max_send_message_length", -1),  # what is sent is cut by us
    ("grpc.max_receive_message_length", MESSAGE_NBYTES_MAX),
    ("grpc.so_reuseport", 0),  # a second server on the same port is a mistake, not a way to share it
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_time_ms", 30_000),  # a client whose machine is gone must not hold leases for ever
    ("grpc.keepalive_timeout_ms", 10_000),
)


class Reflection(reflection.ReflectionServicer):  # type: ignore[misc]
    """The standard service, for callers that are known. Its streams have no deadline and may be silent: few at a time,
    or they would hold every thread."""

    def __init__(self, calls: Calls, names: Iterable[str]) -> None:
        super().__init__(names)
        self._calls, self._free = calls, threading.BoundedSemaphore(REFLECTIONS_MAX)

    def ServerReflectionInfo(self, request_iterator: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        """As the standard says. RESOURCE_EXHAUSTED when REFLECTIONS_MAX are under way."""
        self._calls.admit(context)
        if not self._free.acquire(blocking=False):
            refuse(context, LimitExceeded(f"{REFLECTIONS_MAX} reflection streams are under way"))
        try:
            yield from super().ServerReflectionInfo(request_iterator, context)
        finally:
            self._free.release()


class Server:
    """Serves one store. Start it once; `drain` ends it. Safe to use from several threads."""

    def __init__(self, store: BlockStore, config: Config, version: str, on_drain: Callable[[], None]) -> None:
        settings = config.serve
        self._settings = settings
        self.limits = Limits(settings.threads, settings.client_nbytes_max, settings.call_ms_max, settings.watches_max)
        self.held = Held(self.limits)
        self.gatekeeper = Gatekeeper(Access.load(settings.access) if settings.access else None)
        self._door, self._namespaces = Door(), Namespaces(store)
        self._store, self._config = store, config
        self.attaching: Attaching | None = None
        self.control = Control(store, self._namespaces, self.limits, self.held, version)
        tiers = Tiers(store, self.limits, self.held, self._say_tiers)
        self._admin = Admin(self._namespaces, config, tiers, on_drain)
        self._bulk = Bulk(self._namespaces, self.limits, self.held)
        self._watches = Watches(store.feed, self._namespaces, self.gatekeeper, self._door, self.held)
        self._health = health.HealthServicer(experimental_non_blocking=True)
        num_threads = settings.threads + settings.watches_max  # a watch takes none away from the others
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="kvstore-rpc")
        most = 3 * settings.threads + settings.watches_max
        self._server = grpc.server(self._pool, options=OPTIONS, maximum_concurrent_rpcs=most)
        self._register()
        self._lock: int | None = None
        self.port = 0

    def _register(self) -> None:
        calls = Calls(self.gatekeeper, self._door, self.held)
        streams = {
            "Read": calls.answering(self._bulk.read, pb.ReadRequest),
            "Write": calls.conversing(self._bulk.write),
            "Watch": calls.answering(self._watches.watch, pb.WatchRequest),
        }
        self._server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(STORE, _unary(calls, self.control.methods()) | streams),
                grpc.method_handlers_generic_handler(ADMIN, _unary(calls, self._admin.methods())),
            )
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (STORE, ADMIN, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(Reflection(calls, names), self._server)
        self._say(health_pb2.HealthCheckResponse.NOT_SERVING)

    def _say(self, status: health_pb2.HealthCheckResponse.ServingStatus.ValueType) -> None:
        for name in ("", STORE, ADMIN, TIERS):
            self._health.set(name, status)

    def _say_tiers(self, has_all: bool) -> None:
        status = health_pb2.HealthCheckResponse
        self._health.set(TIERS, status.SERVING if has_all else status.NOT_SERVING)

    def start(self) -> None:
        """Listen and serve. Errors: ConfigInvalid for an address that must not be used so, Unavailable if it is taken;
        nothing is left behind then."""
        try:
            self._listen()
        except BaseException:
            self.drain(0)
            raise
        self._server.start()
        self._say(health_pb2.HealthCheckResponse.SERVING)

    def _listen(self) -> None:
        if self._settings.socket:
            self._lock = add_unix(self._server, self._settings.socket)
            log.info("listening on unix:%s", self._settings.socket)
            if self._settings.attach and self._store.near.is_shared:
                self.attaching = Attaching(self._store, self._config)
                self.control.attaching = self.control.statistics.attaching = self.attaching
                self.attaching.start()
        if self._settings.listen:
            self.port = add_tcp(self._server, self._settings)
            log.info("listening on %s, port %d", self._settings.listen, self.port)

    def stats(self) -> dict[str, Any]:
        """The store's statistics with those of the service. Errors: Unavailable."""
        return self.control.statistics.all()

    def drain(self, grace_ms: int) -> None:
        """No new calls; those under way get so long, then are cancelled. Returns when all have ended. Idempotent."""
        self._health.enter_graceful_shutdown()
        self._door.close()
        if self.attaching is not None:
            self.attaching.drain()
        self._watches.end()
        stopped: threading.Event = self._server.stop(grace_ms / 1000)
        stopped.wait()
        self._pool.shutdown()  # cancelled calls let go of their blocks before the store closes
        if self.attaching is not None:
            self.attaching.stop()  # who reserved slots may go on writing to them: nobody reserves any more
        lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)


def _unary(calls: Calls, methods: Methods) -> dict[str, grpc.RpcMethodHandler[bytes, bytes]]:
    return {name: calls.unary(function, kind) for name, (function, kind) in methods.items()}
