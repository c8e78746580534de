"""Recording: what a store was asked comes back from its trace, and nothing that fails disturbs a caller."""

import gzip
import json
import logging
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from store_helpers import MIB, FakeClock, ObedientTier, chain, make_spec, make_store, payload, put_chain, settle

import kvstore
from kvstore import recording
from kvstore.cli import replay as command
from kvstore.hint import Hint
from kvstore.joining import REQUEST_US, Step
from kvstore.namespace import NamespaceSpec
from kvstore.recording import BATCH_US, Recorder
from kvstore.replay import Replay
from kvstore.store import BlockStore
from kvstore.trace import Request, read_trace

NBYTES = 64  # of a block
TOKENS = 16


def recorded(path: Path, **settings: Any) -> kvstore.Config:
    return kvstore.Config(
        host={"nbytes": 60 * 4096, "prefault": "off"},
        disk={"nbytes": 0},
        policy={"eviction": "lru"},
        trace={"path": str(path), **settings},
    )


def small_spec(**fields: Any) -> NamespaceSpec:
    return NamespaceSpec(**{"model": "m", "block_nbytes": NBYTES, "block_tokens": TOKENS, **fields})


def play(ns: Any, seed: int, num_requests: int = 400) -> tuple[int, int]:
    """Prompts that begin alike, in every way of asking: (blocks asked for, blocks found)."""
    rng = np.random.default_rng(seed)
    asked = found = 0
    for number in range(num_requests):
        document, length = int(rng.integers(8)), int(rng.integers(1, 12))
        tokens = np.arange(length * TOKENS) + 1_000_000 * document
        tokens[length // 2 * TOKENS :] += 1000 * int(rng.integers(5))
        keys = ns.keys(tokens)
        if number % 3 == 0:
            ns.match(keys)
            ns.prefetch(keys).result(10)
        if number % 3 == 1:
            hit = ns.get(keys)[0]
        else:
            with ns.lease(keys) as lease:
                hit = lease.num_blocks
        for last in sorted({min(hit + 4, length), length}):
            ns.put(keys[:last], payload(keys[hit:last], NBYTES), start=hit)
        asked, found = asked + length, found + hit
    return asked, found


def replayed(requests: list[Request], host_blocks: int = 60) -> tuple[int, int]:
    with kvstore.open(command._config(NBYTES, host_blocks, 0, "", "lru")) as store:
        result = Replay(store, store.namespace(small_spec()), verify=True).run(requests, len(requests))
    assert result.tokens_reused == result.blocks_hit * TOKENS
    return result.blocks_asked, result.blocks_hit


@pytest.mark.parametrize("name", ["trace.jsonl", "trace.jsonl.gz"])
def test_a_replay_of_a_recording_hits_as_the_store_did(tmp_path: Path, name: str) -> None:
    with kvstore.open(recorded(tmp_path / name)) as store:
        asked, found = play(store.namespace(small_spec()), seed=1)
        assert 0 < found < asked
        assert store.stats()["trace"]["calls"] > 800
    requests = list(read_trace(tmp_path / name))
    assert len(requests) == 400
    assert {(request.block_tokens, request.output_tokens) for request in requests} == {(TOKENS, 0)}
    assert replayed(requests) == (asked, found)


def test_two_recordings_have_no_id_in_common_and_tell_no_names(tmp_path: Path) -> None:
    ids, spaces = [], []
    for name in ("one", "two"):
        with kvstore.open(recorded(tmp_path / name)) as store:
            play(store.namespace(small_spec(model="secret-model", name="secret-name")), seed=2, num_requests=30)
            play(store.namespace(small_spec(model="other", block_tokens=32)), seed=2, num_requests=30)
        requests = list(read_trace(tmp_path / name))
        ids.append({one for request in requests for one in request.block_ids.tolist()})
        spaces.append({(request.namespace, request.block_tokens) for request in requests})
        assert b"secret" not in (tmp_path / name).read_bytes()
    assert len(ids[0]) == len(ids[1]) and not ids[0] & ids[1]
    assert len(spaces[0]) == 2 and not spaces[0] & spaces[1]


def test_the_file_is_bounded_and_its_end_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "trace.jsonl"
    caplog.set_level(logging.WARNING, "kvstore")
    store = with_recorder(path, nbytes_max=2000)
    ns = store.namespace(make_spec())
    for number in range(5):
        for prompt in range(10):
            put_chain(ns, 2, 10 * number + prompt)
        store.clock.us += REQUEST_US
        step(store)
    stats = store.recorder.stats()
    assert (stats["on"], stats["nbytes"]) == (False, path.stat().st_size)
    assert 1800 < path.stat().st_size <= 2000 and len(list(read_trace(path))) == stats["requests"] < 50
    assert stats["reason"] == "trace.nbytes_max=2000 is reached"
    assert [record.message for record in caplog.records] == [f"requests are recorded no more: {stats['reason']}"]
    assert len(ns.match(chain(ns, 2)).by_tier) <= 1 and store.recorder.stats()["calls"] == stats["calls"]


def with_recorder(path: Path, nbytes_max: int = 1 << 20) -> Any:
    store = make_store(256, clock=FakeClock(), block_nbytes=4096)
    store.recorder = Recorder(str(path), nbytes_max, store.clock)
    return store


def step(store: BlockStore) -> None:
    assert store.recorder is not None
    store.recorder.step()


def make_spec_small() -> NamespaceSpec:
    return make_spec(block_nbytes=4096)


def test_lines_are_written_when_their_requests_are_over(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    store = with_recorder(path)
    ns = store.namespace(make_spec_small())
    keys = put_chain(ns, 3)
    ns.lease(keys).release()
    step(store)
    assert path.read_bytes() == b""
    store.clock.us += REQUEST_US
    step(store)
    assert path.read_bytes() == b""
    store.clock.us += BATCH_US
    step(store)
    assert len(list(read_trace(path))) == 2
    ns.match(keys)
    store.recorder.close()
    store.recorder.close()
    first, second, third = read_trace(path)
    assert (first.timestamp_ms, second.timestamp_ms) == (0, 0)
    assert third.timestamp_ms == (REQUEST_US + BATCH_US) // 1000
    assert first.block_ids.tolist() == third.block_ids.tolist()
    assert (first.input_tokens, first.block_tokens) == (12, 4)


def test_a_lease_that_does_not_wait_is_asked_again(tmp_path: Path) -> None:
    """Only what is pending makes the next lease the same request."""
    store = make_store(4, ObedientTier(MIB), clock=FakeClock())
    ns = store.namespace(make_spec())
    keys = put_chain(ns, 3)
    settle(store)
    put_chain(ns, 4, 1)
    store.recorder = Recorder(str(tmp_path / "t"), 1 << 20, store.clock)
    ns = store.namespace(make_spec())
    for is_here in (False, True):
        with ns.lease(keys, deadline_ms=0) as lease:
            assert (lease.pending == 0) == is_here
        settle(store)
    ns.lease(keys, deadline_ms=0).release()
    store.recorder.close()
    assert len(list(read_trace(tmp_path / "t"))) == 2


def test_what_the_caller_knows_is_written(tmp_path: Path) -> None:
    recorder = Recorder(str(tmp_path / "t"), 1 << 20, FakeClock())
    note = recorder.of(3, 16)
    keys = np.arange(96, dtype=np.uint8).reshape(3, 32)
    note(Step.TAKE, keys)
    note(Step.PUT, keys, Hint("end_turn", output_tokens=40))
    recorder.close()
    (line,) = map(json.loads, (tmp_path / "t").read_text().splitlines())
    assert (line["output_length"], line["stop_reason"], line["input_length"]) == (40, "end_turn", 48)
    assert len(set(line["hash_ids"])) == 3 and all(0 <= one < 2**53 for one in line["hash_ids"])


@pytest.mark.parametrize("verb", ["lease", "get", "reserve", "commit", "put", "hint"])
def test_a_hint_says_how_a_request_ended(tmp_path: Path, verb: str) -> None:
    store = with_recorder(tmp_path / "t")
    ns, known = store.namespace(make_spec()), Hint("tool_use", output_tokens=7)
    keys = chain(ns, 3)
    told = {verb: {"hint": known}}
    ns.lease(keys, **told.get("lease", {})).release()
    if verb == "get":
        ns.get(keys, hint=known)
    if verb == "put":
        ns.put(keys, payload(keys), hint=known)
    else:
        with ns.reserve(keys, **told.get("reserve", {})) as room:
            room.fill(payload(keys))
            room.commit(**told.get("commit", {}))
    if verb == "hint":
        assert ns.hint(keys, known) == 3
    store.recorder.close()
    *_, request = read_trace(tmp_path / "t")
    assert (request.output_tokens, request.stop_reason) == (7, "tool_use")


def test_keys_are_copied_before_the_caller_changes_them(tmp_path: Path) -> None:
    recorder = Recorder(str(tmp_path / "t"), 1 << 20, FakeClock())
    keys = np.zeros((2, 32), dtype=np.uint8)
    for step_ in (Step.TAKE, Step.TAKE):
        recorder.of(1, 16)(step_, keys)
        keys += 1
    recorder.close()
    one, other = read_trace(tmp_path / "t")
    assert not set(one.block_ids.tolist()) & set(other.block_ids.tolist())


def test_a_full_queue_drops_and_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "QUEUE_CALLS_MAX", 4)
    monkeypatch.setattr(recording, "QUEUE_BLOCKS_MAX", 50)
    monkeypatch.setattr(recording, "CALL_BLOCKS_MAX", 20)
    recorder = Recorder(str(tmp_path / "t"), 1 << 20, FakeClock())
    note = recorder.of(1, 16)

    def ask(num_blocks: int, first: int) -> None:
        note(Step.TAKE, np.full((num_blocks, 32), first, dtype=np.uint8))

    for number in range(6):
        ask(1, number)
    assert recorder.stats()["dropped_calls"] == 2
    recorder.step()
    for number, num_blocks in enumerate((20, 21, 20, 11, 10)):
        ask(num_blocks, 100 + number)
    assert recorder.stats()["dropped_calls"] == 4
    recorder.close()
    assert len(list(read_trace(tmp_path / "t"))) == recorder.stats()["requests"] == 7


@pytest.mark.parametrize("kind", ["absent", "exists", "folder"])
def test_a_path_that_cannot_be_written_disturbs_nobody(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = {"absent": tmp_path / "a" / "t", "exists": tmp_path / "t", "folder": tmp_path}[kind]
    (tmp_path / "t").write_bytes(b"earlier")
    caplog.set_level(logging.WARNING, "kvstore")
    with kvstore.open(recorded(path)) as store:
        assert store.recorder is not None and store.recorder._thread is not None
        store.recorder._thread.join(30)
        asked, found = play(store.namespace(small_spec()), seed=3, num_requests=20)
        assert asked > found > 0
        stats = store.stats()["trace"]
        assert (stats["on"], stats["calls"]) == (False, 0) and str(path) in stats["reason"]
    assert [record.message for record in caplog.records] == [f"requests are recorded no more: {stats['reason']}"]
    assert (tmp_path / "t").read_bytes() == b"earlier"


def test_a_defect_ends_the_recording_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = with_recorder(tmp_path / "t")
    ns = store.namespace(make_spec_small())
    put_chain(ns, 2)
    monkeypatch.setattr(recording, "encode", lambda request: 1 / 0)
    store.clock.us += REQUEST_US
    step(store)
    assert store.recorder.stats()["reason"] == "a defect, see the log" and "ZeroDivisionError" in caplog.text
    put_chain(ns, 2, 1)
    store.recorder.close()


def test_without_a_path_nothing_is_recorded(tmp_path: Path) -> None:
    with kvstore.open(kvstore.Config(host={"nbytes": "1 MiB", "prefault": "off"}, disk={"nbytes": 0})) as store:
        assert store.recorder is None
        ns = store.namespace(small_spec())
        play(ns, seed=4, num_requests=5)
        assert store.stats()["trace"] == recording.OFF
        assert ns._note is None
        assert not [thread for thread in threading.enumerate() if thread.name == "kvstore-trace"]


def test_off_has_the_names_of_a_recording(tmp_path: Path) -> None:
    recorder = Recorder(str(tmp_path / "t"), 1 << 20, FakeClock())
    assert recorder.stats().keys() == recording.OFF.keys()
    recorder.close()


def test_a_killed_store_leaves_a_file_that_reads_to_its_end(tmp_path: Path) -> None:
    store = with_recorder(tmp_path / "t.gz")
    ns = store.namespace(make_spec_small())
    for prompt in range(3):
        put_chain(ns, 2, prompt)
        store.clock.us += REQUEST_US + BATCH_US
        step(store)
        store.clock.us += BATCH_US
        step(store)
        assert len(list(read_trace(tmp_path / "t.gz"))) == prompt + 1
    assert gzip.decompress((tmp_path / "t.gz").read_bytes()).count(b"\n") == 3
