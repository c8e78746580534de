"""Which calls are one request."""

import numpy as np
import pytest

from kvstore import joining
from kvstore.joining import REQUEST_US, Call, Joining, Step
from kvstore.trace import Request

TELL, MATCH, TAKE, PUT = Step.TELL, Step.MATCH, Step.TAKE, Step.PUT
A, B, LONG, SHORT = [1, 2, 3], [1, 2, 7], [1, 2, 3, 4, 5], [1, 2]


def call(step: Step, ids: list[int], at_us: int = 0, **known: object) -> Call:
    return Call(at_us, step, 9, 16, np.array(ids, dtype=np.uint64), **known)  # type: ignore[arg-type]


def joined(*calls: Call) -> list[Request]:
    requests = Joining()
    found = [request for one in calls for request in requests.add(one)]
    assert len(requests) + len(found) <= len(calls)
    return found + requests.all()


@pytest.mark.parametrize(
    ("calls", "chains"),
    [
        ([(TAKE, A)], [A]),
        ([(PUT, A)], [A]),
        ([(MATCH, [])], []),
        ([(MATCH, A), (MATCH, A), (TAKE, A), (PUT, A)], [A]),
        ([(TAKE, A), (MATCH, A), (PUT, A)], [A]),  # a prefetch answers after the lease
        ([(MATCH, A), (PUT, A), (PUT, A)], [A]),  # two shards
        ([(TAKE, A), (TAKE, A)], [A, A]),
        ([(MATCH, A), (PUT, A), (MATCH, A), (PUT, A)], [A, A]),
        ([(TAKE, A), (PUT, A), (TAKE, A), (PUT, A)], [A, A]),
        ([(MATCH, A), (MATCH, B), (TAKE, A), (TAKE, B), (PUT, B), (PUT, A)], [A, B]),
        ([(MATCH, A), (MATCH, A), (TAKE, A), (TAKE, A), (PUT, A), (PUT, A)], [A, A]),  # two callers at once
        ([(TAKE, LONG), (PUT, SHORT), (PUT, A), (PUT, LONG)], [LONG]),  # piece by piece
        ([(TAKE, LONG), (TAKE, A)], [LONG, A]),  # another prompt, which the first one begins with
        ([(TAKE, A), (PUT, LONG)], [A]),  # the answer
        ([(TAKE, A), (PUT, B)], [A, B]),  # nobody asked for this one
        ([(TAKE, SHORT), (TAKE, A), (PUT, B)], [SHORT, A]),  # the answer to the first
        ([(PUT, A), (TAKE, A)], [A, A]),
        ([(MATCH, A), (MATCH, LONG), (TAKE, A), (TAKE, LONG)], [A, LONG]),
        ([(TELL, A)], []),  # it asks for nothing
        ([(MATCH, A), (TELL, A), (TAKE, A), (TELL, LONG), (PUT, A)], [A]),  # and brings a request no further
        ([(TELL, A), (TAKE, A), (PUT, A), (TELL, A)], [A]),
    ],
)
def test_calls_of_one_request(calls: list[tuple[Step, list[int]]], chains: list[list[int]]) -> None:
    found = joined(*(call(step, ids) for step, ids in calls))
    assert [request.block_ids.tolist() for request in found] == chains


def test_lines_have_times_lengths_and_what_the_caller_knew() -> None:
    first, second = joined(
        call(MATCH, A, 5_000_000),
        call(TAKE, B, 5_002_500),
        call(PUT, A, 5_900_000, stop_reason="tool_use", output_tokens=70),
        call(PUT, [*B, 8, 9], 6_000_000),
    )
    assert (first.timestamp_ms, first.input_tokens, first.output_tokens) == (0, 48, 70)
    assert (first.stop_reason, first.block_tokens, first.namespace) == ("tool_use", 16, 9)
    assert (second.timestamp_ms, second.output_tokens, second.stop_reason) == (2, 32, "")


@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1), (1, 2, 0)])
def test_what_the_caller_says_of_the_answer_counts_more_than_what_was_put(order: tuple[int, int, int]) -> None:
    answer, said, nothing = call(PUT, [*A, 8, 9]), call(TELL, A, output_tokens=20), call(TELL, [*A, 8, 9])
    (request,) = joined(call(TAKE, A), *((answer, said, nothing)[number] for number in order))
    assert request.output_tokens == 20
    (request,) = joined(call(TAKE, A), answer, nothing)
    assert request.output_tokens == 32


def test_what_is_told_of_a_longer_chain_is_no_answer() -> None:
    (request,) = joined(call(TAKE, A), call(TELL, LONG, stop_reason="end_turn"))
    assert (request.output_tokens, request.stop_reason) == (0, "end_turn")


def test_times_never_go_back() -> None:
    found = joined(call(TAKE, [1], 10_000), call(TAKE, [2], 9_000), call(TAKE, [3], 12_000), call(TAKE, [4], 11_000))
    assert [request.timestamp_ms for request in found] == [0, 0, 2, 2]


def test_a_request_ends_when_its_time_is_up() -> None:
    requests = Joining()
    assert requests.add(call(MATCH, A, 7)) == []
    assert requests.add(call(PUT, A, REQUEST_US + 6)) == []
    (over,) = requests.add(call(PUT, A, REQUEST_US + 7))
    assert over.block_ids.tolist() == A and len(requests) == 1
    assert requests.over(REQUEST_US + 7) == []
    assert len(requests.over(2 * REQUEST_US + 7)) == 1 and len(requests) == 0


def test_what_is_under_way_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining, "REQUESTS_MAX", 3)
    monkeypatch.setattr(joining, "IDS_MAX", 10)
    requests = Joining()
    for number in range(5):
        over = requests.add(call(TAKE, [100 + number]))
        assert [one.block_ids.tolist() for one in over] == ([[97 + number]] if number >= 3 else [])
    over = requests.add(call(TAKE, list(range(8))))
    assert [one.block_ids.tolist() for one in over] == [[102]] and len(requests) == 3
    over = requests.add(call(TAKE, list(range(200, 212))))  # alone it may be longer
    assert len(over) == 3 and len(requests) == 1
    assert len(requests._by_id) == 12
    requests.all()
    assert not requests._by_id and not requests._by_last and requests._num_ids == 0


def test_an_id_that_a_later_request_has_too_stays_its_own() -> None:
    requests = Joining()
    requests.add(call(TAKE, A, 0))
    requests.add(call(TAKE, LONG, 10))
    requests.over(REQUEST_US)
    assert requests.add(call(PUT, A, REQUEST_US)) == [] and len(requests) == 1
