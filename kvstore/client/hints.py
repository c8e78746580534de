"""What a caller says and wants of blocks in a daemon: hints and pins."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeVar

from kvstore.arrays import Keys
from kvstore.checks import checked_keys
from kvstore.client.link import Link
from kvstore.errors import InvalidRequest, Unavailable
from kvstore.hint import STOPS, Hint, checked_hint, seconds_us
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


class Hinting(ABC):
    """The verbs `hint`, `pin` and `unpin`, by calls. While the daemon is gone they reach nobody and answer 0."""

    _link: Link
    _check_open: Callable[[], None]

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
