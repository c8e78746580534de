"""What a caller says and wants of blocks in a daemon: hints and pins, and how fast it computes."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from kvstore.arrays import Keys
from kvstore.checks import checked_keys, computed_tokens, duration_us, prefill_rate
from kvstore.client.link import Link
from kvstore.clock import SystemClock
from kvstore.errors import InvalidRequest, Unavailable
from kvstore.hint import STOPS, Hint, checked_hint, seconds_us
from kvstore.policy import TokenRate
from kvstore.v1 import kvstore_pb2 as pb

T = TypeVar("T")


def sent(hint: Hint | None) -> pb.RequestHint | None:
    """A hint as it travels. Errors: InvalidRequest for something else."""
    if checked_hint(hint) is None or hint is None:
        return None
    return pb.RequestHint(
        ending=pb.Ending.Name(STOPS.index(hint.stop)),
        output_tokens=hint.output_tokens,
        priority=hint.priority,
        ttl_s=hint.ttl_s,
    )


class Wish(NamedTuple):
    """What a caller says of a read, besides the keys."""

    deadline_ms: float | None
    hint: pb.RequestHint | None
    prefill_tokens_per_s: float | None


def wish(deadline_ms: float | None, hint: Hint | None, prefill_tokens_per_s: float | None) -> Wish:
    """Errors: InvalidRequest names what is wrong."""
    if deadline_ms is not None:
        duration_us("deadline_ms", deadline_ms)
    return Wish(deadline_ms, sent(hint), prefill_rate(prefill_tokens_per_s))


class Hinting(ABC):
    """The verbs `hint`, `pin` and `unpin`, by calls, and `computed`. While the daemon is gone they reach nobody and
    answer 0."""

    _link: Link
    _check_open: Callable[[], None]
    _clock: SystemClock
    _lock: threading.Lock
    _computed: TokenRate

    @abstractmethod
    def _with_handle(self, call: Callable[[int], T]) -> T:
        """Call with the handle of this namespace."""

    def _asked(self, call: Callable[[int], int]) -> int:
        self._check_open()
        try:
            return self._with_handle(call)
        except Unavailable:
            return 0

    def hint(self, keys: Keys, hint: Hint) -> int:
        """As Namespace.hint."""
        packed, message = checked_keys(keys).tobytes(), sent(hint)
        if message is None:
            raise InvalidRequest("hint=None says nothing; give a kvstore.Hint")

        def ask(handle: int) -> int:
            request = pb.HintRequest(namespace=handle, keys=packed, hint=message)
            return self._link.ask("Hint", request, pb.HintReply, repeat=True).num_blocks

        return self._asked(ask)

    def pin(self, keys: Keys, ttl_s: float) -> int:
        """As Namespace.pin."""
        packed = checked_keys(keys).tobytes()
        seconds_us("ttl_s", ttl_s)

        def ask(handle: int) -> int:
            request = pb.PinRequest(namespace=handle, keys=packed, ttl_s=ttl_s)
            return self._link.ask("Pin", request, pb.PinReply, repeat=True).num_blocks

        return self._asked(ask)

    def unpin(self, keys: Keys) -> int:
        """As Namespace.unpin."""
        packed = checked_keys(keys).tobytes()

        def ask(handle: int) -> int:
            request = pb.UnpinRequest(namespace=handle, keys=packed)
            return self._link.ask("Unpin", request, pb.UnpinReply, repeat=True).num_blocks

        return self._asked(ask)

    def computed(self, num_tokens: int, elapsed_us: float) -> None:
        """As Namespace.computed; of what this process says, for its own calls."""
        self._check_open()
        num_tokens, elapsed_us = computed_tokens(num_tokens, elapsed_us)
        with self._lock:
            self._computed.record(num_tokens, elapsed_us, self._clock.now_us())

    def _rate(self, given: float | None) -> float | None:
        """Tokens that this process computes in a second, as Namespace would know it; None: nobody knows. Errors:
        Unavailable while the daemon is gone and has not said what it is configured to."""
        if given is not None:
            return given
        return self._link.capabilities.prefill_tokens_per_s or self._computed.tokens_per_s or None
