"""The daemon: configuration → store → server, signals, readiness, and the way down."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from typing import Any

from kvstore.access import Access
from kvstore.config import Config
from kvstore.embedded import open as open_store
from kvstore.embedded import open_shared
from kvstore.errors import KVStoreError
from kvstore.metrics import Metrics
from kvstore.probes import Probes
from kvstore.service.server import Server
from kvstore.store import BlockStore

log = logging.getLogger("kvstore.daemon")

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
RELOADABLE = ("mover.put_wait_ms",)  # besides the rows of serve.access and the files of TLS
CLOSE_FLUSH_MS = 30_000
FORWARD_S = 1.0  # handlers, which send signals on, run between two waits


class Daemon:
    """One store and the server on it, from start to drained. `load` reads the configuration, again at SIGHUP."""

    def __init__(self, load: Callable[[], Config]) -> None:
        self._load = load
        self._config = load()
        self._stats = Metrics()

    def run(self, on_ready: Callable[[Server], None] = lambda server: None) -> None:
        """Serve until SIGTERM, SIGINT or a Drain call; call it in the main thread. Errors: those of kvstore.open, and
        ConfigInvalid or Unavailable for addresses.

        Signals are blocked and waited for, so that none interrupts anything.
        """
        with _signals_wait(), ExitStack() as stack:
            self._serve(stack, on_ready)

    def _serve(self, stack: ExitStack, on_ready: Callable[[Server], None]) -> None:
        serve = self._config.serve
        probes = Probes(self._stats) if serve.metrics else None
        if probes is not None:
            stack.callback(probes.close)
            probes.listen(serve.metrics or "")  # alive before the store is there, ready after
        store = open_shared(self._config) if serve.attach and serve.socket else open_store(self._config)
        stack.callback(store.close, CLOSE_FLUSH_MS)
        main = threading.get_ident()
        server = Server(store, self._config, version("kvstore"), lambda: signal.pthread_kill(main, signal.SIGTERM))
        self._stats.watch(server.stats)
        server.start()
        stack.callback(server.drain, serve.drain_ms)
        if probes is not None:
            stack.callback(probes.set_ready, False)
            probes.set_ready(True, lambda: without_tier(store))
        log.info("serving; memory is in %s pages; process %d", store.near.arena.page_kind, os.getpid())
        on_ready(server)
        self._wait(store, server)

    def _wait(self, store: BlockStore, server: Server) -> None:
        while True:
            received = signal.sigtimedwait(SIGNALS, FORWARD_S)
            if received is None:
                continue
            if received.si_signo != signal.SIGHUP:
                log.info("draining: %s", signal.Signals(received.si_signo).name)
                return
            self.reload(store, server)

    def reload(self, store: BlockStore, server: Server) -> None:
        """Take over what may change while the daemon runs, all of it or, if anything is wrong, nothing."""
        try:
            fresh = self._load()
            access = Access.load(fresh.serve.access) if fresh.serve.access and self._config.serve.access else None
        except KVStoreError as error:
            log.error("nothing is reloaded: %s", error)
            return
        if access is not None:
            server.gatekeeper.replace(access)
        store.put_wait_ms = fresh.mover.put_wait_ms
        if server.attaching is not None:
            server.attaching.set_wait(fresh.mover.put_wait_ms)
        waiting = [key for key in changed(self._config, fresh) if key not in RELOADABLE]
        log.info("reloaded; %s", f"for a restart: {', '.join(waiting)}" if waiting else "everything is in force")


@contextmanager
def _signals_wait() -> Iterator[None]:
    """SIGNALS stay pending until somebody waits for them, as long as this lasts. Threads made from here on inherit it.
    A signal that reaches one of those that libraries made before, for the kernel takes any that does not block it, is
    sent on to the main thread. What came after the last wait is dropped: who asks twice for the end gets it once."""
    main = threading.get_ident()
    handlers = {number: signal.signal(number, lambda got, _: signal.pthread_kill(main, got)) for number in SIGNALS}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        while signal.sigtimedwait(SIGNALS, 0) is not None:
            continue
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def without_tier(store: BlockStore) -> str:
    """What /readyz adds: a store without its disk serves, but promises less."""
    return f"the {store.far_name} tier is detached\n" if store.attachment.is_detached else ""


def changed(old: Config, new: Config) -> list[str]:
    """Keys of the settings that differ."""
    before: dict[str, Any] = {one.key: one.value for one in old.explain()}
    return [one.key for one in new.explain() if before[one.key] != one.value]
