"""Recording: what is asked of a store, as a trace file (kvstore.trace) that tells nothing but which blocks were equal.

A caller leaves eight bytes of each key in a bounded queue and goes on; everything else a thread of the recorder does.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kvstore import hashing
from kvstore.arrays import Keys
from kvstore.clock import Clock
from kvstore.errors import LimitExceeded, Unavailable
from kvstore.hint import Hint
from kvstore.joining import Call, Joining, Step
from kvstore.trace import LINE_NBYTES_MAX, Request, encode
from kvstore.trace_file import TraceFile

log = logging.getLogger("kvstore.trace")

QUEUE_CALLS_MAX = 8_192
QUEUE_BLOCKS_MAX = 1 << 21  # 16 MiB
CALL_BLOCKS_MAX = 1 << 18  # of one call: its line stays below LINE_NBYTES_MAX
KEY_NBYTES = 8  # of a key that are kept: keys are hashes, and these tell billions of blocks apart
FRONT = np.dtype(f"V{KEY_NBYTES}")  # copied in half the time of as many single bytes
PERIOD_S = 0.1  # between two looks at the queue
BATCH_NBYTES = 1 << 20
BATCH_US = 5_000_000  # after this time what there is is written, however little
ID_BITS = 53
SALT_NBYTES = 32
CLOSE_S = 30  # that a device which does not answer is waited for

assert CALL_BLOCKS_MAX * 17 + 1024 <= LINE_NBYTES_MAX

Note = Callable[..., None]
OFF = {"on": False, "reason": "", "calls": 0, "dropped_calls": 0, "requests": 0, "nbytes": 0}


class _Noted(NamedTuple):
    """A call in the queue; its key bytes are copied, for the array is the caller's."""

    at_us: int
    step: Step
    number: int
    block_tokens: int
    keys: bytes
    output_tokens: int
    stop_reason: str


class Recorder:
    """Writes requests to `path` until it holds `nbytes_max`. The salt that is mixed into every id is drawn anew for
    each recorder and never leaves it: two recordings have no id in common, and no id leads back to tokens.

    Nothing that fails here reaches a caller: it is logged once, `stats` has the reason, and recording is over.
    """

    def __init__(self, path: str, nbytes_max: int, clock: Clock) -> None:
        self._path, self._nbytes_max, self._clock = path, nbytes_max, clock
        self._salt = os.urandom(SALT_NBYTES)
        self._lock = threading.Lock()  # of the queue; held for no longer than it takes to append
        self._queue: deque[_Noted] = deque()
        self._queued_blocks = 0
        self._joining = Joining()
        self._batch: list[bytes] = []
        self._batch_nbytes, self._batch_us = 0, 0
        self._file: TraceFile | None = None
        self._num_calls = self._num_dropped = self._num_requests = 0
        self._is_on, self._reason = True, ""
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    # ---- what callers do ----

    def of(self, number: int, block_tokens: int) -> Note:
        """A function that notes a call about blocks of namespace `number`: note(step, keys, hint), with what the caller
        knows of the request. It takes a microsecond or two and never fails."""

        def note(step: Step, keys: Keys, hint: Hint | None = None) -> None:
            if self._is_on:
                kept = keys[:CALL_BLOCKS_MAX].view(FRONT)[:, 0].tobytes()
                known = (0, "") if hint is None else (hint.output_tokens or 0, hint.stop)
                self._put(_Noted(self._clock.now_us(), step, number, block_tokens, kept, *known), len(keys))

        return note

    def _put(self, noted: _Noted, num_blocks: int) -> None:
        with self._lock:
            self._num_calls += 1
            is_full = len(self._queue) >= QUEUE_CALLS_MAX or self._queued_blocks + num_blocks > QUEUE_BLOCKS_MAX
            if is_full or num_blocks > CALL_BLOCKS_MAX:
                self._num_dropped += 1
                return
            self._queue.append(noted)
            self._queued_blocks += num_blocks

    def stats(self) -> dict[str, Any]:
        """Numbers of the recording; units are in the names."""
        return {
            "on": self._is_on,
            "reason": self._reason,
            "calls": self._num_calls,
            "dropped_calls": self._num_dropped,
            "requests": self._num_requests,
            "nbytes": self._file.nbytes if self._file is not None else 0,
        }

    # ---- what its thread does ----

    def start(self) -> None:
        """Record in a thread of its own from now on."""
        self._thread = threading.Thread(target=self._run, name="kvstore-trace", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while self._is_on and not self._stopping.wait(PERIOD_S):
            self.step()

    def step(self) -> None:
        """Take what is queued and write what is over."""
        self._do(self._step)

    def close(self) -> None:
        """Write everything that is known, and let go of the file. Idempotent."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(CLOSE_S)
            if self._thread.is_alive():
                log.warning("%s does not answer: requests are recorded no more", self._path)
                return
        self._do(self._end)
        self._is_on = False
        if self._file is not None:
            self._file.close()
            self._file = None
        self._reason = self._reason or "closed"

    def _do(self, what: Callable[[], None]) -> None:
        if not self._is_on:
            return
        try:
            what()
        except (LimitExceeded, Unavailable) as error:
            self._stop(str(error))
            log.warning("requests are recorded no more: %s", error)
        except Exception:  # a defect: say so, and leave the store alone
            self._stop("a defect, see the log")
            log.exception("requests are recorded no more")

    def _stop(self, reason: str) -> None:
        self._is_on, self._reason = False, reason
        self._joining, self._batch = Joining(), []
        with self._lock:
            self._queue.clear()

    def _step(self) -> None:
        now_us = self._clock.now_us()
        if self._file is None:
            self._file = TraceFile(self._path, self._nbytes_max)
            log.info("requests are recorded to %s", self._path)
        for noted in self._taken():
            self._add(self._joining.add(self._call(noted)), now_us)
        self._add(self._joining.over(now_us), now_us)
        if self._batch_nbytes >= BATCH_NBYTES or (self._batch and now_us - self._batch_us >= BATCH_US):
            self._write()

    def _end(self) -> None:
        self._step()
        self._add(self._joining.all(), self._clock.now_us())
        self._write()

    def _taken(self) -> list[_Noted]:
        with self._lock:
            taken = list(self._queue)
            self._queue.clear()
            self._queued_blocks = 0
        return taken

    def _call(self, noted: _Noted) -> Call:
        namespace = int(self._ids(noted.number.to_bytes(KEY_NBYTES, "little"))[0])
        ids = self._ids(noted.keys)
        return Call(noted.at_us, noted.step, namespace, noted.block_tokens, ids, noted.output_tokens, noted.stop_reason)

    def _ids(self, keys: bytes) -> NDArray[np.uint64]:
        """Salted hashes of ID_BITS bits, one for each KEY_NBYTES."""
        if not keys:
            return np.empty(0, dtype=np.uint64)
        hashes: Any = np.frombuffer(keys, dtype=np.uint8).reshape(-1, KEY_NBYTES)
        mixed = hashing.mix_keys(self._salt, hashes)
        return np.ascontiguousarray(mixed).view("<u8")[:, 0] >> np.uint64(64 - ID_BITS)

    def _add(self, requests: list[Request], now_us: int) -> None:
        for request in requests:
            line = encode(request)
            if not self._batch:
                self._batch_us = now_us
            self._batch.append(line)
            self._batch_nbytes += len(line)
            if self._batch_nbytes >= BATCH_NBYTES:
                self._write()

    def _write(self) -> None:
        lines, self._batch, self._batch_nbytes = self._batch, [], 0
        if not lines:
            return
        assert self._file is not None
        num_written = self._file.append(lines)
        self._num_requests += num_written
        if num_written < len(lines):
            raise LimitExceeded(f"trace.nbytes_max={self._nbytes_max} is reached")
