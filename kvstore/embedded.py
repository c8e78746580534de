"""`kvstore.open`: a store inside this process. The one place where concrete tiers are chosen."""

from __future__ import annotations

import logging
import shutil
import tempfile
import threading
from pathlib import Path
from types import TracebackType

from kvstore import policy
from kvstore._core.index import Index, LeaseTable
from kvstore.clock import SystemClock
from kvstore.config import Config
from kvstore.mover import Limits, Mover
from kvstore.store import BlockStore
from kvstore.tiers.base import Tier
from kvstore.tiers.host import HostTier

log = logging.getLogger("kvstore")


class EmbeddedStore(BlockStore):
    """A BlockStore that owns its tiers, its mover's thread and, without a configured path, its disk folder."""

    _folder: str | None = None

    def close(self, flush_ms: float | None = None) -> None:
        """As BlockStore.close; a temporary disk folder is not worth flushing and goes away."""
        if self._folder is None:
            super().close() if flush_ms is None else super().close(flush_ms)
            return
        super().close(0)
        shutil.rmtree(self._folder, ignore_errors=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _disk(config: Config) -> tuple[Tier | None, str | None]:
    """The disk tier and the folder to delete at the end, if any."""
    if config.disk.nbytes == 0:
        return None, None
    from kvstore.tiers.disk import DiskTier  # brings LMDB, which a store without a disk does not need

    folder = None if config.disk.path else tempfile.mkdtemp(prefix="kvstore-")
    try:
        tier = DiskTier(
            Path(config.disk.path or str(folder)),
            capacity_nbytes=config.disk.nbytes,
            segment_nbytes=config.disk.segment_nbytes or None,
            io_threads=config.disk.io_threads,
        )
    except BaseException:
        if folder:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    return tier, folder


def open(config: Config | None = None) -> BlockStore:
    """Open a store in this process: host memory and, unless disk.nbytes is 0, a disk tier.

    Without a configuration: 1 GiB of memory and 8 GiB of disk in a temporary folder. Errors: ConfigInvalid,
    Unavailable (memory or device cannot be had; says how much is there), LimitExceeded.
    """
    config = Config.load() if config is None else config
    nbytes = config.host.nbytes
    near = HostTier(nbytes + nbytes // policy.SPARE_SHARE, shared=config.host.shared)
    try:
        far, folder = _disk(config)
    except BaseException:
        near.close()
        raise
    try:
        return _assemble(config, near, far, folder)
    except BaseException:
        if far is not None:
            far.close()
        near.close()
        if folder:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def _assemble(config: Config, near: HostTier, far: Tier | None, folder: str | None) -> BlockStore:
    """The store over its tiers, running. On failure they are the caller's to close."""
    index = Index(config.entries_max)
    clock = SystemClock()
    limits = Limits(
        near_nbytes=config.host.nbytes,
        writeback_queue_blocks=config.mover.writeback_queue_blocks_max,
        promote_queue_blocks=config.mover.promote_queue_blocks_max,
        write_nbytes_per_s=config.mover.write_nbytes_per_s,
    )
    mover = Mover(index, near, far, threading.RLock(), clock, limits)
    store = EmbeddedStore(
        index=index,
        leases=LeaseTable(index, config.index.leases_max),
        near=near,
        far=far,
        mover=mover,
        clock=clock,
        reservation_ttl_ms=config.mover.reservation_ttl_ms,
        put_wait_ms=config.mover.put_wait_ms,
    )
    store._folder = folder
    if near.arena.fallback_reason:
        log.warning("memory is in %s pages: %s", near.arena.page_kind, near.arena.fallback_reason)
    _prefault(near, config.host.prefault)
    mover.start()
    return store


def _prefault(near: HostTier, when: str) -> None:
    if when == "now":
        near.arena.prefault()
    elif when == "background":
        threading.Thread(target=near.arena.prefault, name="kvstore-prefault", daemon=True).start()
