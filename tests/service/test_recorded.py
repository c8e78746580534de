"""What a daemon records of callers that ask it in each way, and what it cannot see."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest
from service_helpers import WAYS, open_way, wait_for
from store_helpers import BLOCK, TOKENS, chain, make_spec, payload

from kvstore.hint import STOPS, Hint
from kvstore.service.limits import Limits
from kvstore.trace import Request, read_trace


def requests_of(name: str, folder: Path) -> list[Request]:
    """Of four callers, each with a prompt of its own, and one who comes again."""
    with ExitStack() as stack:
        way = open_way(name, folder, stack, trace={"path": str(folder / "trace")})
        ns = way.store.namespace(make_spec())
        for prompt in range(4):
            keys = chain(ns, 3 + prompt, prompt)
            assert ns.match(keys).num_blocks == 0
            assert ns.get(keys)[0] == 0
            assert ns.put(keys, payload(keys)).stored == 3 + prompt
        keys = chain(ns, 4, 1)
        with ns.lease(keys) as lease:
            assert lease.num_blocks == 4
        with ns.reserve(chain(ns, 6, 1)) as room:
            room.fill(payload(chain(ns, 6, 1))[4:])
            room.commit()
        stats = way.store.stats()["trace"]
        assert (stats["on"], stats["reason"], stats["dropped_calls"]) == (True, "", 0)
        if name == "attached":  # its keys are still on their way
            assert wait_for(lambda: way.store.stats()["trace"]["calls"] == 5)
            assert way.store.stats()["attached"]["num_unrecorded"] == 0
    return list(read_trace(folder / "trace"))


@pytest.mark.parametrize("name", WAYS)
def test_every_caller_is_a_request(tmp_path: Path, name: str) -> None:
    requests = requests_of(name, tmp_path)
    assert [len(request.block_ids) for request in requests[:4]] == [3, 4, 5, 6]
    assert all(request.input_tokens == len(request.block_ids) * TOKENS for request in requests)
    assert len({request.namespace for request in requests}) == 1
    again = requests[1].block_ids.tolist()
    if name == "attached":  # it saw the blocks in memory: what it reserved behind them is all that the daemon was told
        assert len(requests) == 4 and requests[1].output_tokens == 2 * TOKENS
    else:
        assert [request.block_ids.tolist() for request in requests[4:]] == [again]
        assert requests[4].output_tokens == 2 * TOKENS


@pytest.mark.parametrize("name", WAYS)
def test_what_a_caller_says_of_its_answer_is_recorded(tmp_path: Path, name: str) -> None:
    with ExitStack() as stack:
        way = open_way(name, tmp_path, stack, trace={"path": str(tmp_path / "trace")})
        ns = way.store.namespace(make_spec())
        for prompt, stop in enumerate(STOPS):
            keys = chain(ns, 3 + prompt, prompt)
            with ns.lease(keys, hint=Hint(priority=1), prefill_tokens_per_s=0) as lease:
                assert lease.num_blocks == lease.skipped == 0
            assert ns.put(keys, payload(keys), hint=Hint(stop, output_tokens=70 + prompt)).stored == 3 + prompt
        if name == "attached":  # its keys are still on their way
            assert wait_for(lambda: way.store.stats()["trace"]["calls"] == 2 * len(STOPS))
    requests = list(read_trace(tmp_path / "trace"))
    assert [(request.stop_reason, request.output_tokens) for request in requests] == [
        (stop, 70 + prompt) for prompt, stop in enumerate(STOPS)
    ]


def test_a_long_write_of_several_calls_is_one_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Limits.__init__, "__defaults__", (65_536, 2 << 20, 3 * BLOCK))
    with ExitStack() as stack:
        way = open_way("remote", tmp_path, stack, trace={"path": str(tmp_path / "trace")})
        ns = way.store.namespace(make_spec())
        keys = chain(ns, 10)
        ns.match(keys)
        assert ns.put(keys, payload(keys)).stored == 10
    (request,) = read_trace(tmp_path / "trace")
    assert len(request.block_ids) == 10


def test_what_is_far_is_seen_of_attached_callers_too(tmp_path: Path) -> None:
    disk = {"nbytes": "32 MiB", "path": str(tmp_path / "disk")}
    with ExitStack() as stack:
        way = open_way("attached", tmp_path, stack, disk=disk, trace={"path": str(tmp_path / "trace")})
        ns = way.store.namespace(make_spec())
        waited, hurried, others = chain(ns, 20), chain(ns, 20, 1), chain(ns, 120, 9)
        for keys in (waited, hurried):
            ns.put(keys, payload(keys))
        assert way.store.flush()
        ns.put(others, payload(others))
        with ns.lease(waited) as lease:
            assert lease.num_blocks == 20 and lease.num_promoted > 0
        with ns.lease(hurried, deadline_ms=0) as lease:
            assert lease.pending > 0
        assert wait_for(lambda: way.store.stats()["trace"]["calls"] == 5)
    requests = list(read_trace(tmp_path / "trace"))
    chains = [request.block_ids.tolist() for request in requests]
    assert [len(ids) for ids in chains] == [20, 20, 120, 20, 20] and chains[:2] == chains[3:]
