"""The trace reader: what it gives out, and what it says of a line that is wrong."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from kvstore.errors import InvalidRequest
from kvstore.trace import LINE_NBYTES_MAX, Request, encode, read_trace

SHARED = Path(__file__).parents[3] / "shared" / "traces"
GOOD = {"timestamp": 5, "input_length": 1100, "output_length": 7, "hash_ids": [3, 1, 2]}


def write(folder: Path, *lines: object) -> Path:
    path = folder / "trace.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def test_fields(tmp_path: Path) -> None:
    own = {"block_tokens": 1024, "namespace": 2**53 - 1, "hash_ids": [2**53 - 1, 0]}
    agent = {**GOOD, **own, "timestamp": 9, "stop_reason": "tool_use", "other": 1}
    first, second = read_trace(write(tmp_path, GOOD, agent))
    assert (first.timestamp_ms, first.input_tokens, first.output_tokens, first.stop_reason) == (
        5,
        1100,
        7,
        "",
    )
    assert first.block_ids.dtype == np.uint64
    assert (first.block_tokens, first.namespace) == (512, 0)
    assert first.block_ids.tolist() == [3, 1, 2]
    assert (second.timestamp_ms, second.stop_reason) == (9, "tool_use")
    assert second.block_ids.tolist() == [2**53 - 1, 0]
    assert (second.block_tokens, second.namespace) == (1024, 2**53 - 1)
    with pytest.raises(ValueError, match="read-only"):
        first.block_ids[0] = 1


def test_what_is_encoded_is_read_back(tmp_path: Path) -> None:
    plain = Request(5, 32, 7, np.array([2**53 - 1, 0], np.uint64), block_tokens=16)
    full = Request(6, 0, 0, np.array([], np.uint64), "end_turn", 4096, 2**53 - 1)
    path = tmp_path / "trace.jsonl"
    path.write_bytes(encode(plain) + encode(full))
    for wanted, found in zip((plain, full), read_trace(path), strict=True):
        assert found.block_ids.tolist() == wanted.block_ids.tolist()
        for field in ("timestamp_ms", "input_tokens", "output_tokens", "stop_reason", "block_tokens", "namespace"):
            assert getattr(found, field) == getattr(wanted, field)


def test_gzip_is_known_by_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"  # no .gz in the name
    path.write_bytes(gzip.compress((json.dumps(GOOD) + "\n").encode() * 3))
    assert [request.block_ids.tolist() for request in read_trace(path)] == [[3, 1, 2]] * 3


def test_empty_prompts_and_empty_files(tmp_path: Path) -> None:
    assert list(read_trace(write(tmp_path))) == []
    (request,) = read_trace(write(tmp_path, {**GOOD, "input_length": 0, "hash_ids": []}))
    assert request.block_ids.shape == (0,)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"timestamp": -1}, "timestamp must be a whole number from 0 to 9007199254740992, not -1"),
        ({"timestamp": 1.5}, "timestamp must be a whole number from 0 to 9007199254740992, not 1.5"),
        ({"input_length": "7"}, "input_length must be a whole number from 0 to 2147483647, not '7'"),
        ({"output_length": True}, "output_length must be a whole number from 0 to 2147483647, not True"),
        ({"output_length": None}, "output_length must be a whole number from 0 to 2147483647, not None"),
        ({"hash_ids": 5}, "hash_ids must be a list of whole numbers, not 5"),
        ({"hash_ids": [1, True, 2]}, "hash_ids must be a list of whole numbers, not [1, True, 2]"),
        ({"hash_ids": [1, 2.0, 3]}, "hash_ids must be a list of whole numbers, not [1, 2.0, 3]"),
        ({"hash_ids": [1, 2, -3]}, "hash_ids must be from 0 to 9007199254740991, not -3 to 2"),
        ({"hash_ids": [1, 2, 2**53]}, "hash_ids must be from 0 to 9007199254740991, not 1 to 9007199254740992"),
        ({"hash_ids": [1, 2, 2**64]}, "hash_ids must be from 0 to 9007199254740991, not 1 to 18446744073709551616"),
        ({"hash_ids": [1]}, "hash_ids has 1 ids, not one for each 512 of 1100 tokens"),
        ({"hash_ids": [1, 2, 3, 4]}, "hash_ids has 4 ids, not one for each 512 of 1100 tokens"),
        ({"input_length": 1024}, "hash_ids has 3 ids, not one for each 512 of 1024 tokens"),
        ({"block_tokens": 550}, "hash_ids has 3 ids, not one for each 550 of 1100 tokens"),
        ({"block_tokens": 0}, "block_tokens must be a whole number from 1 to 65536, not 0"),
        ({"block_tokens": None}, "block_tokens must be a whole number from 1 to 65536, not None"),
        ({"namespace": -1}, "namespace must be a whole number from 0 to 9007199254740991, not -1"),
        ({"namespace": "m"}, "namespace must be a whole number from 0 to 9007199254740991, not 'm'"),
        ({"stop_reason": 5}, "stop_reason must be text, not 5"),
    ],
)
def test_a_wrong_field_is_named(tmp_path: Path, change: dict[str, object], text: str) -> None:
    path = write(tmp_path, GOOD, {**GOOD, "timestamp": 6}, {**GOOD, "timestamp": 7, **change})
    requests = read_trace(path)
    assert [next(requests).timestamp_ms, next(requests).timestamp_ms] == [5, 6]
    text = text.replace("from 0 to 9007199254740992,", "from 6 to 9007199254740992,")
    with pytest.raises(InvalidRequest) as caught:
        next(requests)
    assert str(caught.value) == f"{path}, line 3: {text}"


@pytest.mark.parametrize("field", list(GOOD))
def test_a_missing_field_is_named(tmp_path: Path, field: str) -> None:
    path = write(tmp_path, {key: value for key, value in GOOD.items() if key != field})
    with pytest.raises(InvalidRequest, match=rf"line 1: {field} must be .*, not missing"):
        list(read_trace(path))


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("{", "line 2: not JSON"),
        ("", "line 2: not JSON"),
        ("[1]", r"line 2: must be a JSON object, not \[1\]"),
        ("[" * 200_000, "line 2: not JSON"),
        (json.dumps({**GOOD, "timestamp": 4}), "line 2: timestamp must be a whole number from 5"),
        ('"' + "x" * LINE_NBYTES_MAX, "line 2: longer than 16,777,216 bytes"),
        (json.dumps({**GOOD, "timestamp": "y" * 10_000}), "line 2: timestamp .* not .y{56}[.]{3}$"),
    ],
    ids=["cut", "empty", "list", "deep", "back", "long", "shown-short"],
)
def test_lines_that_are_no_request(tmp_path: Path, line: str, text: str) -> None:
    with pytest.raises(InvalidRequest, match=text):
        list(read_trace(write(tmp_path, GOOD, line)))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="absent: cannot be read after line 0"):
        list(read_trace(tmp_path / "absent"))
    with pytest.raises(InvalidRequest, match="cannot be read"):
        list(read_trace(tmp_path))
    (tmp_path / "latin").write_bytes(b'{"timestamp": "\xe9\xff"}\n')
    with pytest.raises(InvalidRequest, match="line 1: not JSON"):
        list(read_trace(tmp_path / "latin"))
    whole = gzip.compress((json.dumps(GOOD) + "\n").encode() * 1000)
    for cut in (whole[:-10], whole[: len(whole) // 2], whole[:20] + b"\xff" * 20 + whole[40:]):
        (tmp_path / "cut.gz").write_bytes(cut)
        with pytest.raises(InvalidRequest, match=r"cut\.gz: cannot be read after line \d+"):
            list(read_trace(tmp_path / "cut.gz"))


@pytest.mark.parametrize(
    ("name", "num_requests", "num_accesses", "num_unique"),
    [
        ("conversation", 12_031, 288_500, 182_790),
        ("synthetic", 3_993, 121_877, 43_924),
        ("agents", 12_729, 2_960_607, 125_244),
    ],
)
def test_real_traces(name: str, num_requests: int, num_accesses: int, num_unique: int) -> None:
    path = SHARED / f"{name}.jsonl.gz"
    if not path.exists():
        pytest.skip(f"the shared trace {name} is not here")
    ids = [request.block_ids for request in read_trace(path)]
    every = np.concatenate(ids)
    assert (len(ids), every.size, np.unique(every).size) == (num_requests, num_accesses, num_unique)


@pytest.mark.parametrize(("input_tokens", "num_full"), [(48, 3), (47, 2), (33, 2), (64, 3)])
def test_full_blocks_are_counted_by_the_requests_own_block_tokens(input_tokens: int, num_full: int) -> None:
    request = Request(0, input_tokens, 0, np.array([1, 2, 3], np.uint64), block_tokens=16)
    assert request.num_full == num_full
