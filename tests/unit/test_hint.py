"""Hint: what may be said, and how the store is told of it."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from store_helpers import BLOCK, FakeClock, ObedientTier, chain, make_spec, make_store, payload, put_chain, settle

from kvstore import Hint
from kvstore import hints as hints_module
from kvstore.errors import InvalidRequest, Unavailable
from kvstore.hint import OUTPUT_TOKENS_MAX, STOPS, TTL_S_MAX


def test_a_hint_says_nothing_by_itself():
    hint = Hint()
    assert (hint.stop, hint.output_tokens, hint.priority, hint.ttl_s) == ("", None, 0, None)
    assert hint.numbers == (0, 0, -1) and hint.ttl_us is None
    with pytest.raises(dataclasses.FrozenInstanceError):
        hint.priority = 1  # type: ignore[misc]


@pytest.mark.parametrize(("number", "stop"), list(enumerate(STOPS)))
def test_the_core_gets_numbers(number: int, stop: str):
    hint = Hint(stop=stop, output_tokens=OUTPUT_TOKENS_MAX, priority=-1, ttl_s=1.5)
    assert hint.numbers == (number, -1, OUTPUT_TOKENS_MAX) and hint.ttl_us == 1_500_000
    assert Hint(output_tokens=0).numbers == (0, 0, 0)


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("stop", "length", "'tool_use'"),
        ("stop", None, "'session_closed'"),
        ("stop", 1, "'end_turn'"),
        ("output_tokens", -1, str(OUTPUT_TOKENS_MAX)),
        ("output_tokens", OUTPUT_TOKENS_MAX + 1, "between 0 and"),
        ("output_tokens", 1.5, "between 0 and"),
        ("priority", 2, "between -1 and 1"),
        ("priority", -2, "between -1 and 1"),
        ("priority", True, "between -1 and 1"),
        ("ttl_s", -0.001, f"from 0 to {TTL_S_MAX}"),
        ("ttl_s", TTL_S_MAX + 1, f"from 0 to {TTL_S_MAX}"),
        ("ttl_s", float("nan"), f"from 0 to {TTL_S_MAX}"),
        ("ttl_s", "5", f"from 0 to {TTL_S_MAX}"),
    ],
)
def test_what_cannot_be_is_refused_with_field_value_and_range(field: str, value: Any, allowed: str):
    with pytest.raises(InvalidRequest) as caught:
        Hint(**{field: value})
    assert field in str(caught.value) and repr(value) in str(caught.value) and allowed in str(caught.value)


class Told:
    """The door to the core, with a list of what went through it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[int, tuple[int, int, int]]] = []
        tell = hints_module.core.tell

        def listen(index: Any, deepest: int, numbers: tuple[int, int, int]) -> None:
            self.calls.append((deepest, numbers))
            tell(index, deepest, numbers)

        monkeypatch.setattr(hints_module.core, "tell", listen)


def test_the_deepest_block_is_told_of(monkeypatch: pytest.MonkeyPatch):
    store = make_store(4, ObedientTier(64 * BLOCK), clock=FakeClock())
    ns = store.namespace(make_spec())
    keys, told = put_chain(ns, 3), Told(monkeypatch)
    ids = store.index.find(keys).tolist()
    hint = Hint(stop="end_turn", output_tokens=9, priority=1)
    ns.lease(chain(ns, 9), 0, hint=hint).release()
    ns.get(keys[:2], hint=hint)
    ns.hint(keys[:1], hint)
    assert told.calls == [(ids[2], (2, 1, 9)), (ids[1], (2, 1, 9)), (ids[0], (2, 1, 9))]
    more = chain(ns, 4)
    ns.put(more, payload(more)[3:], start=3, hint=hint)
    assert told.calls[-1] == (int(store.index.find(more)[3]), (2, 1, 9)) and len(told.calls) == 4


def test_far_blocks_that_are_leased_are_told_of(monkeypatch: pytest.MonkeyPatch):
    store = make_store(4, ObedientTier(64 * BLOCK), clock=FakeClock())
    ns = store.namespace(make_spec())
    keys = put_chain(ns, 4)
    settle(store)
    put_chain(ns, 4, prompt=1)
    assert ns.match(keys).by_tier == {"far": 4}
    told = Told(monkeypatch)
    ns.lease(keys, 0, hint=Hint(priority=-1)).release()
    assert told.calls == [(int(store.index.find(keys)[3]), (0, -1, -1))]


def test_what_the_commit_says_counts(monkeypatch: pytest.MonkeyPatch):
    ns = make_store(8).namespace(make_spec(shards=2))
    keys, told = chain(ns, 2), Told(monkeypatch)
    rooms = [ns.reserve(keys, shard, hint=Hint(priority=-1)) for shard in (0, 1)]
    rooms[0].commit()
    assert told.calls == [], "nothing is visible yet"
    rooms[1].commit(hint=Hint(priority=1))
    assert [numbers for _, numbers in told.calls] == [(0, 1, -1)]


def test_the_wish_has_the_hint(monkeypatch: pytest.MonkeyPatch):
    """What making room may know: it goes down with every attempt to reserve."""
    store = make_store(8)
    ns = store.namespace(make_spec())
    seen: list[Any] = []
    put = store.mover.put

    class Listening:
        def reserve(self, *arguments: Any) -> Any:
            seen.append(arguments[-1])
            return put.reserve(*arguments)

        def __getattr__(self, name: str) -> Any:
            return getattr(put, name)

    monkeypatch.setattr(store.mover, "put", Listening())
    keys = chain(ns, 2)
    ns.put(keys, payload(keys), hint=Hint(stop="tool_use"))
    ns.reserve(chain(ns, 3)).release()
    assert seen == [(1, 0, -1), None]


def test_a_lease_without_a_hint_takes_no_lock():
    store = make_store(8)
    ns = store.namespace(make_spec())
    keys = put_chain(ns, 2)

    class Refusing:
        def __enter__(self) -> None:
            raise AssertionError("the lock was taken")

        def __exit__(self, *_: object) -> None:
            raise AssertionError

    ns._store.lock = Refusing()  # type: ignore[assignment]
    ns.lease(keys).release()
    with pytest.raises(AssertionError, match="lock"):
        ns.lease(keys, hint=Hint())


def test_a_closed_store_is_told_nothing():
    store = make_store(8)
    ns = store.namespace(make_spec())
    keys = put_chain(ns, 1)
    store.close()
    for call in (lambda: ns.hint(keys, Hint()), lambda: ns.pin(keys, 1), lambda: ns.unpin(keys)):
        with pytest.raises(Unavailable):
            call()


def test_keys_are_checked():
    ns = make_store(8).namespace(make_spec())
    for call in (lambda keys: ns.hint(keys, Hint()), lambda keys: ns.pin(keys, 1), ns.unpin):
        with pytest.raises(InvalidRequest, match="keys"):
            call(np.zeros((2, 31), dtype=np.uint8))
