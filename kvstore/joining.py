"""Joining: which calls of a caller are one request. Pure: whoever uses it brings the times."""

from __future__ import annotations

import enum
from collections import OrderedDict
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kvstore.trace import TOKENS_MAX, Request

REQUEST_US = 60_000_000  # from the first call of a request to its last
REQUESTS_MAX = 4_096  # under way
IDS_MAX = 1 << 18  # of the requests under way


class Step(enum.IntEnum):
    """How far a call brings a request: it only says something, it asks, it takes what is there, it puts the rest."""

    TELL = 0
    MATCH = 1
    TAKE = 2
    PUT = 3


class Call(NamedTuple):
    """What one call asked for. `output_tokens` and `stop_reason`: 0 and "" where the caller did not say."""

    at_us: int
    step: Step
    namespace: int
    block_tokens: int
    block_ids: NDArray[np.uint64]
    output_tokens: int = 0
    stop_reason: str = ""


@dataclass(slots=True, eq=False)
class Pending:
    """A request that more calls may belong to."""

    call: Call  # the first
    ids: list[int]
    step: Step
    output_tokens: int  # as callers say; 0: nobody does
    stop_reason: str
    answer_tokens: int = 0  # as far as whole blocks of it were put


class Joining:
    """The requests of the last REQUEST_US, fewer when there are very many; calls come in, requests go out in order.

    A lookup belongs to the request of exactly this chain that has not come so far: `match` and `prefetch` to one that
    has put nothing, `lease` and `get` to one that has only been matched. A put belongs to the latest request whose
    chain begins with its own, or that its own begins with: engines put a prompt piece by piece, and then the answer,
    whose whole blocks make `output_tokens` if nobody says better. What is only told belongs as a put does. Whatever
    belongs to none is a request by itself, but for what is only told.
    """

    def __init__(self) -> None:
        self._under_way: OrderedDict[int, Pending] = OrderedDict()  # by number, the oldest first
        self._by_last: dict[int, Pending] = {}  # an id → the latest request whose chain ends with it
        self._by_id: dict[int, Pending] = {}  # an id → the latest request that has it
        self._num_ids = self._number = 0
        self._began_us: int | None = None
        self._latest_ms = 0  # threads note their calls a little out of order, and a trace never goes back

    def __len__(self) -> int:
        return len(self._under_way)

    def add(self, call: Call) -> list[Request]:
        """Take in a call; the requests that nothing can belong to any more."""
        over = self.over(call.at_us)
        if not len(call.block_ids):
            return over
        ids: list[int] = call.block_ids.tolist()
        is_lookup = call.step in (Step.MATCH, Step.TAKE)
        pending = self._lookup_of(ids, call.step) if is_lookup else self._put_of(ids)
        if pending is not None:
            _tell(pending, call)
        elif call.step is not Step.TELL:
            over += self._begin(call, ids)
        return over

    def over(self, now_us: int) -> list[Request]:
        """The requests whose time is up."""
        found = []
        while self._under_way:
            pending = next(iter(self._under_way.values()))
            if now_us - pending.call.at_us < REQUEST_US:
                break
            found.append(self._end())
        return found

    def all(self) -> list[Request]:
        """Everything that is under way: there are no more calls."""
        return [self._end() for _ in range(len(self._under_way))]

    def _lookup_of(self, ids: list[int], step: Step) -> Pending | None:
        pending = self._by_last.get(ids[-1])
        if pending is None:
            return None
        is_open = pending.step < Step.PUT if step is Step.MATCH else pending.step < step
        return pending if is_open else None

    def _put_of(self, ids: list[int]) -> Pending | None:
        pending = self._by_last.get(ids[-1]) or self._by_id.get(ids[-1])
        if pending is not None:
            return pending
        return next((found for one in reversed(ids) if (found := self._by_last.get(one)) is not None), None)

    def _begin(self, call: Call, ids: list[int]) -> list[Request]:
        over = []
        while self._under_way and (len(self) >= REQUESTS_MAX or self._num_ids + len(ids) > IDS_MAX):
            over.append(self._end())
        pending = Pending(call, ids, call.step, call.output_tokens, call.stop_reason)
        self._under_way[self._number] = pending
        self._number += 1
        self._num_ids += len(ids)
        self._by_id.update(dict.fromkeys(ids, pending))
        self._by_last[ids[-1]] = pending
        return over

    def _end(self) -> Request:
        _, pending = self._under_way.popitem(last=False)
        self._num_ids -= len(pending.ids)
        if self._by_last.get(pending.ids[-1]) is pending:
            del self._by_last[pending.ids[-1]]
        for one in pending.ids:
            if self._by_id.get(one) is pending:
                del self._by_id[one]
        call = pending.call
        self._began_us = call.at_us if self._began_us is None else self._began_us
        self._latest_ms = max(self._latest_ms, (call.at_us - self._began_us) // 1000)
        return Request(
            timestamp_ms=self._latest_ms,
            input_tokens=len(pending.ids) * call.block_tokens,
            output_tokens=min(pending.output_tokens or pending.answer_tokens, TOKENS_MAX),
            block_ids=call.block_ids,
            stop_reason=pending.stop_reason,
            block_tokens=call.block_tokens,
            namespace=call.namespace,
        )


def _tell(pending: Pending, call: Call) -> None:
    """What one more call says of a request."""
    pending.step = max(pending.step, call.step)
    pending.stop_reason = call.stop_reason or pending.stop_reason
    pending.output_tokens = max(pending.output_tokens, call.output_tokens)
    if call.step is Step.PUT:
        answer_tokens = (len(call.block_ids) - len(pending.ids)) * call.block_tokens
        pending.answer_tokens = max(pending.answer_tokens, answer_tokens)
