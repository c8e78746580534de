"""A whole store over a real disk tier whose device can be made to refuse or to fall silent."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from disk_helpers import wait_until
from store_helpers import BLOCK, all_right, make_spec, make_store, payload

from kvstore._core import blockio
from kvstore.clock import SystemClock
from kvstore.errors import Unavailable
from kvstore.tiers.base import Outcome
from kvstore.tiers.disk import DiskTier
from kvstore.tiers.manifest import ManifestError

MIB = 1 << 20


class MovableClock(SystemClock):
    """The machine's clock, and what a test puts on top of it."""

    shift_us = 0

    def now_us(self) -> int:
        return super().now_us() + self.shift_us


class FaultyEngine:
    """The engine of the disk tier, and what a device does to it: refuses (an errno), or answers nothing (`gate`)."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self.kind, self.refusal = engine.kind, engine.refusal
        self.read_errno = self.write_errno = 0
        self.gate = threading.Event()
        self.gate.set()
        self._lock = threading.Lock()
        self._held: list[Any] = []
        self._verdicts: dict[int, tuple[Outcome, int]] = {}  # of batches under way, by id

    @property
    def num_held(self) -> int:
        """Batches that wait for an answer."""
        return len(self._held)

    def submit(self, batch: Any) -> None:
        code = self.write_errno if batch.owner[0].writing else self.read_errno
        with self._lock:
            if not self.gate.is_set():
                self._held.append(batch)
                return
            if code:
                self._verdicts[id(batch)] = (Outcome.IO_ERROR, code)
        self._engine.submit(batch)

    def take(self, wait_us: int) -> Any:
        batch = self._engine.take(wait_us)
        verdict = None if batch is None else self._verdicts.pop(id(batch), None)
        if verdict is not None:
            batch.outcomes[:], batch.errnos[:] = verdict
        return batch

    def answer(self) -> None:
        """The device is well again, and does what it was asked meanwhile."""
        with self._lock:
            self.gate.set()
            held, self._held = self._held, []
        for batch in held:
            self.submit(batch)

    def stop(self) -> None:
        """As the real one: waits for what is under way."""
        self.gate.wait()
        for batch in self._held:
            self._verdicts[id(batch)] = (Outcome.CLOSED, 0)
            self._engine.submit(batch)
        self._engine.stop()


class FaultyDisk:
    """The store under test, with its thread running. What is `refused` fails with that errno."""

    def __init__(self, path: Path, num_blocks: int = 32, **options: Any) -> None:
        self.clock = MovableClock()
        real_engine = blockio.Engine
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(blockio, "Engine", lambda *args, **rest: FaultyEngine(real_engine(*args, **rest)))
            self.tier = DiskTier(path, **{"capacity_nbytes": 16 * MIB, "clock_us": self.clock.now_us, **options})
        self.engine: FaultyEngine = self.tier._io._engine  # type: ignore[assignment]
        self.store = make_store(num_blocks, self.tier, clock=self.clock)
        self.ns = self.store.namespace(make_spec())
        self.sync_errno = self.commit_errno = 0
        real_sync, real_apply = self.tier._journal._sync, self.tier._manifest.apply

        def sync(segment: int) -> None:
            if self.sync_errno:
                raise OSError(self.sync_errno, os.strerror(self.sync_errno))
            real_sync(segment)

        def apply(changes: Any) -> None:
            if self.commit_errno:
                raise ManifestError(os.strerror(self.commit_errno))
            real_apply(changes)

        self.tier._journal._sync, self.tier._manifest.apply = sync, apply  # type: ignore[method-assign]
        self.store.mover.start()

    def chain(self, num_blocks: int, prompt: int) -> Any:
        return self.ns.keys([prompt + 1] * 4 + [0] * 4 * (num_blocks - 1))

    def put(self, num_blocks: int, prompt: int) -> Any:
        keys = self.chain(num_blocks, prompt)
        result = self.ns.put(keys, payload(keys))
        assert result.stored == num_blocks, result
        return keys

    def cold(self, prompt: int) -> Any:
        """A prompt of four blocks that is only on disk."""
        keys = self.put(4, prompt)
        assert self.store.flush(60_000)
        for other in range(8):
            self.put(4, 1000 * prompt + 500 + other)
            assert self.store.flush(60_000)
        assert self.store.index.match(keys) == (4, 0, 0)
        return keys

    def serves_from_memory(self, prompt: int) -> None:
        """What is put can be had at once, whatever the device does."""
        keys = self.put(4, prompt)
        num_blocks, out = self.ns.get(keys, deadline_ms=0)
        assert num_blocks == 4 and all_right(keys, list(out))

    def is_right(self, keys: Any, deadline_ms: float | None = 60_000) -> bool:
        num_blocks, out = self.ns.get(keys, deadline_ms=deadline_ms)
        return num_blocks == len(keys) and all_right(keys, list(out[:num_blocks]))

    def named(self) -> list[Any]:
        """Entries that the manifest has: what a start would find."""
        manifest = self.tier._manifest
        return [entry for segment in manifest.segments() for row in manifest.rows(segment)[0] for entry in row.entries]

    @property
    def disk(self) -> dict[str, Any]:
        return self.store.stats()["tiers"]["disk"]

    @property
    def moved(self) -> dict[str, Any]:
        return self.store.stats()["mover"]

    def passes(self, num_s: float) -> None:
        self.clock.shift_us += int(num_s * 1_000_000)

    def rests(self) -> str:
        """Wait until the tier is not asked any more; why."""
        wait_until(lambda: not self.disk["healthy"])
        return str(self.disk["reason"])

    def recovers(self) -> None:
        """With time alone everything that was queued gets written."""
        wait_until(self._recovered)

    def _recovered(self) -> bool:
        self.passes(1)
        return bool(self.disk["healthy"] and not self.moved["queued_blocks"] and not self.moved["writes_under_way"])

    def close(self) -> None:
        self.engine.read_errno = self.engine.write_errno = self.sync_errno = self.commit_errno = 0
        self.engine.answer()
        try:
            self.store.close()
        except Unavailable:
            self.store.close(0)


EIO, ENOSPC, EROFS = errno.EIO, errno.ENOSPC, errno.EROFS
assert BLOCK * 32 <= 2 * MIB
