"""`kvstore.open`: a store inside this process. The one place where concrete tiers are chosen."""

from __future__ import annotations

import logging
import shutil
import tempfile
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from kvstore import policy, recording
from kvstore._core import events
from kvstore._core.index import Index
from kvstore._core.lease import LeaseTable
from kvstore.clock import SystemClock
from kvstore.config import Config
from kvstore.errors import InvalidRequest, KVStoreError, Unavailable
from kvstore.mover import Mover
from kvstore.space import Limits
from kvstore.store import BlockStore
from kvstore.tiers.base import DurableTier, Tier
from kvstore.tiers.host import HostTier

log = logging.getLogger("kvstore")


class EmbeddedStore(BlockStore):
    """A BlockStore that owns its tiers, its threads and, without a configured path, its disk folder."""

    _folder: str | None = None

    def close(self, flush_ms: float | None = None) -> None:
        """As BlockStore.close; a temporary disk folder is not worth flushing and goes away."""
        if self._folder is not None:
            super().close(0)
            shutil.rmtree(self._folder, ignore_errors=True)
        elif flush_ms is None:
            super().close()
        else:
            super().close(flush_ms)
        if self.recorder is not None:
            self.recorder.close()

    def stats(self) -> dict[str, Any]:
        """As BlockStore.stats, with the section `trace`."""
        return super().stats() | {"trace": recording.OFF if self.recorder is None else self.recorder.stats()}

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _disk(config: Config, folder: str | None) -> DurableTier:
    """The disk tier, in a temporary `folder` if it has no path of its own."""
    from kvstore.tiers.disk import DiskTier  # brings LMDB, which a store without a disk does not need

    return DiskTier(
        Path(config.disk.path or str(folder)),
        capacity_nbytes=config.disk.nbytes,
        segment_nbytes=config.disk.segment_nbytes or None,
        free_nbytes_min=config.disk.free_nbytes_min,
        io_threads=config.disk.io_threads,
    )


def _memory(config: Config, *, shared: bool) -> HostTier:
    nbytes = config.host.nbytes
    try:
        return HostTier(nbytes + nbytes // policy.SPARE_SHARE, shared=shared)
    except KVStoreError as error:
        raise Unavailable(f"host.nbytes={nbytes}: {error}") from error


def open(config: Config | None = None) -> BlockStore:
    """Open a store in this process: host memory and, unless disk.nbytes is 0, a disk tier.

    Without a configuration: 1 GiB of memory and 8 GiB of disk in a temporary folder. Errors: InvalidRequest,
    ConfigInvalid, Unavailable (memory or device cannot be had; says how much is there), LimitExceeded. Nothing stays
    behind then.
    """
    return _open(Config.load() if config is None else config, shared=False)


def open_at(config: Config, policy_ms: Callable[[], int]) -> BlockStore:
    """As `open`; the eviction policy's time is what `policy_ms` says."""
    return _open(config, shared=False, policy_ms=policy_ms)


def open_shared(config: Config) -> BlockStore:
    """As `open`, over memory that other processes can map."""
    return _open(config, shared=True)


def _open(config: Config, *, shared: bool, policy_ms: Callable[[], int] | None = None) -> BlockStore:
    if not isinstance(config, Config):
        raise InvalidRequest(f"config={config!r:.80} is not a kvstore.Config; Config.load(path) reads a file")
    with ExitStack() as undo:
        near = _memory(config, shared=shared)
        undo.callback(near.close)
        far, folder = None, None
        if config.disk.nbytes:
            folder = None if config.disk.path else tempfile.mkdtemp(prefix="kvstore-")
            if folder is not None:
                undo.callback(shutil.rmtree, folder, ignore_errors=True)
            far = _disk(config, folder)
            undo.callback(far.close)  # before its folder goes
        store = _assembled(config, near, far)
        store._folder = folder
        if policy_ms is not None:
            store.mover.policy_ms = policy_ms
        if config.trace.path:
            store.recorder = recording.Recorder(config.trace.path, config.trace.nbytes_max, store.clock)
        if far is not None:
            store.attachment.reopen = lambda: _disk(config, folder)
        _prefault(near, config.host.prefault)
        store.mover.start()
        if store.recorder is not None:
            store.recorder.start()
        undo.pop_all()
    if near.arena.fallback_reason:
        log.warning("memory is in %s pages: %s", near.arena.page_kind, near.arena.fallback_reason)
    return store


def _assembled(config: Config, near: HostTier, far: Tier | None) -> EmbeddedStore:
    index = Index(config.entries_max, policy=config.policy.eviction, ghosts_max=config.policy.ghosts_max)
    events.keep(index, config.index.events_max)
    clock = SystemClock()
    limits = Limits(
        near_nbytes=config.host.nbytes,
        writeback_queue_blocks=config.mover.writeback_queue_blocks_max,
        promote_queue_blocks=config.mover.promote_queue_blocks_max,
        write_nbytes_per_s=config.mover.write_nbytes_per_s,
        scrub_nbytes_per_s=config.mover.scrub_nbytes_per_s,
        write_nbytes_per_day=config.mover.write_nbytes_per_day,
        far_chance_min=config.policy.disk_chance_min,
        far_gain_min=config.policy.disk_gain_min,
        pin_leases_max=config.index.leases_max,
        pins_nbytes_max=config.policy.pins_nbytes_max,
        ttl_blocks_max=config.policy.ttl_blocks_max,
        prefill_tokens_per_s=config.mover.prefill_tokens_per_s,
        whatif_ghosts_max=config.policy.ghosts_max if config.policy.whatif else None,
    )
    return EmbeddedStore(
        index=index,
        leases=LeaseTable(index, config.index.leases_max),
        near=near,
        far=far,
        mover=Mover(index, near, far, threading.RLock(), clock, limits),
        clock=clock,
        reservation_ttl_ms=config.mover.reservation_ttl_ms,
        put_wait_ms=config.mover.put_wait_ms,
    )


def _prefault(near: HostTier, when: str) -> None:
    if when == "now":
        near.arena.prefault()
    elif when == "background":
        threading.Thread(target=_prefault_quietly, args=(near,), name="kvstore-prefault", daemon=True).start()


def _prefault_quietly(near: HostTier) -> None:
    try:
        near.arena.prefault()
    except Unavailable as error:  # the store serves; pages that are still missing are taken at use
        log.warning("%s", error)
