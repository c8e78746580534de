"""Hint: what an engine knows of a request, for the blocks of its chain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kvstore.checks import described, whole_number
from kvstore.errors import InvalidRequest

STOPS = ("", "tool_use", "end_turn", "session_closed")  # the core's and the protocol's numbers are the positions
OUTPUT_TOKENS_MAX = 2**31 - 1
TTL_S_MAX = 2**31 // 1000  # 24 days

Numbers = tuple[int, int, int]  # as the core takes a hint: ending, priority, output tokens or -1


def seconds_us(name: str, value: Any) -> int:
    """A time given in seconds as microseconds. Errors: InvalidRequest."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not 0 <= value <= TTL_S_MAX:  # a NaN is in no range
        raise InvalidRequest(f"{name}={described(value)} is not a number of seconds from 0 to {TTL_S_MAX}")
    return int(value * 1_000_000)


@dataclass(frozen=True, slots=True)
class Hint:
    """What is known of the request behind a chain. A hint that is wrong costs hits, and nothing else.

    `stop`: how the answer that follows the chain ended: "tool_use" (it goes on soon), "end_turn" (when a person has
    answered), "session_closed" (never), or "" (not known). `output_tokens`: how long that answer is. `priority`: from
    -1 (let it go first) to 1. `ttl_s`: when so many seconds are over, those blocks of the chain that nobody has used
    again are removed. Errors: InvalidRequest names the field.
    """

    stop: str = ""
    output_tokens: int | None = None
    priority: int = 0
    ttl_s: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.stop, str) or self.stop not in STOPS:
            allowed = ", ".join(map(repr, STOPS))
            raise InvalidRequest(f"stop={described(self.stop)} is not one of {allowed}")
        if self.output_tokens is not None:
            whole_number("output_tokens", self.output_tokens, 0, OUTPUT_TOKENS_MAX)
        whole_number("priority", self.priority, -1, 1)
        if self.ttl_s is not None:
            seconds_us("ttl_s", self.ttl_s)

    @property
    def numbers(self) -> Numbers:
        """As the core takes it; the time to live is the store's own."""
        tokens = -1 if self.output_tokens is None else int(self.output_tokens)
        return STOPS.index(self.stop), int(self.priority), tokens

    @property
    def ttl_us(self) -> int | None:
        """The time to live; None: none."""
        return None if self.ttl_s is None else seconds_us("ttl_s", self.ttl_s)


def hint_of(numbers: Numbers) -> Hint:
    """What the core was given as these."""
    ending, priority, tokens = numbers
    return Hint(stop=STOPS[ending], output_tokens=None if tokens < 0 else tokens, priority=priority)


def checked_hint(hint: Any) -> Hint | None:
    """Errors: InvalidRequest for something else than a Hint or None."""
    if hint is not None and not isinstance(hint, Hint):
        raise InvalidRequest(f"hint={described(hint)} is not a kvstore.Hint")
    return hint
