"""kvstore replay: hit ratios that are known, no block lost between the tiers, and a command that says what is wrong.

The real traces lie in shared/traces beside the repository; the environment variable KVSTORE_TRACES names another
folder.
"""

import gzip
import json
import os
import sys
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from simulate_helpers import SANITIZED

from kvstore import caller, replay
from kvstore._core.simulation import policies
from kvstore.cli import main
from kvstore.cli import replay as command
from kvstore.namespace import NamespaceSpec
from kvstore.replay import Replay, Result
from kvstore.simulate import blocks_of, demand, simulate
from kvstore.timed import open_timed
from kvstore.trace import BLOCK_TOKENS, Request, read_trace

ROOT = Path(__file__).resolve().parents[2]
TRACES = Path(os.environ.get("KVSTORE_TRACES", ROOT.parent / "shared" / "traces"))
SHARES = (0.003, 0.01, 0.03, 0.1, 0.3)
KNOWN = {  # prefix block hits in % at SHARES of the trace's unique blocks
    "conversation": (182_790, (4.22, 5.25, 12.57, 27.89, 35.77)),
    "synthetic": (43_924, (0.93, 3.81, 10.67, 26.23, 48.78)),
}
SMALL = ["replay", "--host-blocks", "60"]
CASES = [
    pytest.param(name, round(unique * share), percent, id=f"{name}-{share}")
    for name, (unique, percents) in KNOWN.items()
    for share, percent in zip(SHARES, percents, strict=True)
]
read: dict[str, list[Request]] = {}


def known_trace(name: str) -> list[Request]:
    if SANITIZED:
        pytest.skip("whole traces are not played under the sanitizers")
    path = TRACES / f"{name}.jsonl.gz"
    if not path.exists():
        pytest.skip(f"{path} is not here; KVSTORE_TRACES names the folder of the traces")
    if name not in read:
        read[name] = list(read_trace(path))
    return read[name]


def play(
    requests: list[Request], host_blocks: int, disk_blocks: int = 0, policy: str = "lru", **options: Any
) -> tuple[Result, Any]:
    """The result and the store's statistics at its end, the store checked."""
    with open_timed(command._config(64, host_blocks, disk_blocks, "", policy)) as store:
        namespace = store.namespace(NamespaceSpec(model="m", block_nbytes=64, block_tokens=BLOCK_TOKENS))
        result = Replay(store, namespace, **{"verify": True, **options}).run(requests, len(requests))
        store.check()
        return result, store.stats()


def made_trace(seed: int, num_requests: int = 1500, num_prompts: int = 60) -> list[Request]:
    """Prompts that share prefixes of a few documents and go on differently, and come back later."""
    rng = np.random.default_rng(seed)
    prompts = []
    for number in range(num_prompts):
        document, length = int(rng.integers(8)), int(rng.integers(5, 60))
        shared = int(rng.integers(1, length))
        own = [1_000_000 + 100 * number + position for position in range(shared, length)]
        prompts.append([1000 * document + position for position in range(shared)] + own)
    requests = []
    for number in range(num_requests):
        ids = prompts[int(rng.integers(num_prompts))]
        ids = ids[: int(rng.integers(1, len(ids) + 1))]
        requests.append(Request(10 * number, len(ids) * BLOCK_TOKENS, 1, np.array(ids, np.uint64), ""))
    return requests


def lru_hits(requests: list[Request], num_blocks: int) -> int:
    """Leading hits of an LRU that touches a prompt's blocks from its end to its start."""
    kept: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for request in requests:
        ids = request.block_ids.tolist()
        hits += next((position for position, block in enumerate(ids) if block not in kept), len(ids))
        for block in reversed(ids):
            kept[block] = None
            kept.move_to_end(block)
        while len(kept) > num_blocks:
            kept.popitem(last=False)
    return hits


def write_trace(path: Path, requests: list[Request]) -> Path:
    with gzip.open(path, "wt") as file:
        for request in requests:
            fields = {
                "timestamp": request.timestamp_ms,
                "input_length": request.input_tokens,
                "output_length": request.output_tokens,
                "hash_ids": request.block_ids.tolist(),
            }
            file.write(json.dumps(fields) + "\n")
    return path


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return write_trace(tmp_path / "made.jsonl.gz", made_trace(1, num_requests=200))


@pytest.mark.parametrize(("name", "host_blocks", "percent"), CASES)
def test_known_hit_ratios_of_real_traces(name: str, host_blocks: int, percent: float) -> None:
    result, stats = play(known_trace(name), host_blocks, verify=False)
    assert 100 * result.prefix_hit == pytest.approx(percent, abs=0.05)
    longest = max(len(request.block_ids) for request in known_trace(name))
    assert (result.blocks_rejected == 0) == (host_blocks >= longest)  # a longer prompt does not fit
    assert stats["tiers"]["host"]["blocks"] <= host_blocks + host_blocks // 1024


@pytest.mark.parametrize(
    ("name", "share", "eviction"),
    [
        *(pytest.param("conversation", share, "gittins", id=f"conversation-{share}") for share in (0.01, 0.03, 0.1)),
        *(pytest.param("synthetic", 0.03, eviction, id=f"synthetic-{eviction}") for eviction in policies()),
    ],
)
def test_a_store_with_bytes_hits_what_a_simulation_says(name: str, share: float, eviction: str) -> None:
    asked = demand(known_trace(name))
    num_blocks = blocks_of(share, asked.num_unique)
    result, _ = play(known_trace(name), num_blocks, policy=eviction, verify=False)
    # Not the same: the store counts a lookup and the put that follows, and evicts in batches.
    assert result.prefix_hit == pytest.approx(simulate(asked, eviction, num_blocks).prefix_hit, abs=0.002)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("host_blocks", [60, 200, 500])
def test_memory_alone_hits_exactly_as_an_lru(seed: int, host_blocks: int) -> None:
    requests = made_trace(seed)
    result, _ = play(requests, host_blocks)
    assert result.blocks_hit == lru_hits(requests, host_blocks), f"seed {seed}"
    assert (result.blocks_promoted, result.blocks_rejected) == (0, 0)
    assert result.blocks_verified == result.blocks_hit
    assert result.blocks_asked == result.blocks_hit + result.blocks_stored


def test_a_disk_tier_that_holds_all_loses_nothing() -> None:
    requests = made_trace(5)
    result, stats = play(requests, 60, 4000)
    assert result.blocks_hit == lru_hits(requests, 10**9)
    assert 0 < result.blocks_promoted < result.blocks_hit == result.blocks_verified
    assert result.paths["disk_to_memory"].nbytes == 64 * result.blocks_promoted
    assert result.paths["memory_to_disk"].nbytes == 64 * result.blocks_stored == 64 * stats["tiers"]["disk"]["blocks"]


def test_a_full_disk_tier_gives_up_no_block_but_by_eviction() -> None:
    """Far more blocks than fit on disk, with little memory: writes, promotions and recycling at once."""
    requests = made_trace(6, num_requests=2500, num_prompts=600)
    unique = len({block for request in requests for block in request.block_ids.tolist()})
    result, stats = play(requests, 120, 3600)
    assert unique > 1.5 * 3600
    assert (result.blocks_rejected, stats["index"]["dropped_unwritten"], stats["mover"]["skipped_writes"]) == (0, 0, 0)
    assert result.blocks_verified == result.blocks_hit
    gone = result.blocks_stored - stats["index"]["entries"]
    assert gone == stats["tiers"]["disk"]["evicted"] > 0
    assert result.blocks_hit >= 0.97 * lru_hits(requests, 3600)


def test_the_pace_follows_the_trace_from_its_first_request(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    requests = [Request(ms, BLOCK_TOKENS, 1, np.array([ms], np.uint64), "") for ms in (5000, 5000, 7000)]
    monkeypatch.setattr(replay, "time", SimpleNamespace(monotonic_ns=lambda: 0, sleep=slept.append))
    play(requests, 10, speed=4.0)
    assert slept == [0.0, 0.0, 0.5]


def test_samples_follow_the_trace(tmp_path: Path) -> None:
    result, _ = play(made_trace(7, num_requests=900), 60)
    assert [sample.request for sample in result.samples[:3]] == [2, 4, 6]
    assert result.samples[-1].trace_s == pytest.approx(8.99)
    assert max(sample.near_blocks for sample in result.samples) == 60


def test_the_report_of_the_command(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["replay", str(trace), "--block-nbytes", "5000", "--host-blocks", "60", "--verify", "--json"]
    arguments += ["--policy", "lru"]
    assert main([*arguments, "--requests", "150"]) == 0
    shown = capsys.readouterr()
    report = json.loads(shown.out)
    requests = list(read_trace(trace))[:150]
    assert report["requests"] == 150
    assert report["hits"] == {"host": lru_hits(requests, 60), "disk": 0}
    assert report["hits"]["host"] + report["misses"] == report["blocks_asked"]
    assert report["paths"]["memory_to_caller"]["nbytes"] == 5000 * report["blocks_verified"]
    assert set(report["lease"]) == {"p50_us", "p90_us", "p99_us", "p99_9_us", "max_us"}
    assert report["peak_memory_nbytes"] > 0
    assert shown.err == ""


def test_tables_for_people_fit_80_columns(
    trace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["replay", str(trace), "--host-blocks", "60", "--disk-blocks", "4000", "--verify"]) == 0
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == "Replay of made.jsonl.gz"
    assert max(map(len, lines)) <= 80
    assert any(line.startswith("disk → memory") for line in lines)
    assert lines[-1].startswith("Every byte of ")


def test_a_second_run_hits_what_the_first_left_on_disk(
    trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["replay", str(trace), "--block-nbytes", "5000", "--host-blocks", "60", "--disk-blocks", "4000"]
    arguments += ["--disk-path", str(tmp_path / "tier"), "--verify", "--json"]
    assert main(arguments) == 0
    first = json.loads(capsys.readouterr().out)
    assert main(arguments) == 0
    second = json.loads(capsys.readouterr().out)
    assert (second["misses"], second["blocks_stored"]) == (0, 0) != (first["misses"], first["blocks_stored"])
    assert second["blocks_verified"] == second["blocks_asked"]
    assert second["hits"]["disk"] > 0
    arguments[arguments.index("5000")] = "6000"
    assert main(arguments) == 1
    assert "block_nbytes=5000, not 6000" in capsys.readouterr().err


@pytest.mark.parametrize("how", ["truncated", "malformed", "empty line"])
def test_a_broken_trace_is_one_line(how: str, trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = trace.read_bytes()
    if how == "truncated":
        trace.write_bytes(good[: len(good) // 2])
    else:
        trace.write_bytes(gzip.decompress(good) + (b"{nonsense\n" if how == "malformed" else b"\n"))
    assert main([*SMALL, str(trace)]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"kvstore: {trace}") and error.count("\n") == 1
    assert ("after line" if how == "truncated" else "line 201: not JSON") in error
    assert main([*SMALL, str(trace), "--requests", "3"]) == 0  # reads no further than it plays


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--host-blocks", "0"], "'--host-blocks'"),
        (["--disk-blocks", "-1"], "'--disk-blocks'"),
        (["--block-nbytes", "0"], "'--block-nbytes'"),
        (["--block-nbytes", "2000000000"], "'--block-nbytes'"),
        (["--requests", "-5"], "'--requests'"),
        (["--speed", "-1"], "'--speed'"),
        (["--speed", "nan"], "'--speed'"),
        (["--disk-path", "somewhere"], "--disk-path needs --disk-blocks"),
    ],
)
def test_wrong_options_are_refused(
    arguments: list[str], text: str, trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["replay", str(trace), *arguments]) == 2
    assert text in capsys.readouterr().err


def test_a_trace_without_requests_or_without_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    assert main(["replay", str(empty)]) == 2
    assert "has no requests" in capsys.readouterr().err
    assert main(["replay", str(tmp_path / "absent")]) == 2
    assert "does not exist" in capsys.readouterr().err


def test_a_wrong_byte_is_one_line_and_exit_code_1(
    trace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fill = caller.fill_payloads

    def fill_badly(keys: Any, blocks: Any) -> None:
        fill(keys, blocks)
        blocks[-1, -1] ^= 1

    monkeypatch.setattr(caller, "fill_payloads", fill_badly)
    assert main([*SMALL, str(trace), "--verify", "--json"]) == 1
    shown = capsys.readouterr()
    assert (shown.out, shown.err.count("\n")) == ("", 1)
    assert "came back with other bytes than were stored" in shown.err
    assert main([*SMALL, str(trace), "--json"]) == 0  # nobody looked


def test_a_plot_is_drawn(trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    picture = tmp_path / "replay.png"
    assert main(["replay", str(trace), "--host-blocks", "60", "--plot", str(picture), "--json"]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG\r\n")
    assert json.loads(capsys.readouterr().out)["requests"] == 200


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("absent/replay.png", "not a file that can be written"),
        ("replay.xyz", "its name must end with one of"),
        ("", "its name must end with one of"),
    ],
)
def test_a_plot_that_cannot_be_written_is_said_before_the_run(
    name: str, text: str, trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    assert main(["replay", str(trace), "--plot", str(tmp_path / name)]) == 1
    shown = capsys.readouterr()
    assert text in shown.err and shown.err.count("\n") == 1
    assert shown.out == ""


def test_without_matplotlib_a_plot_names_the_extra(
    trace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["replay", str(trace), "--plot", "replay.png"]) == 1
    assert capsys.readouterr().err == "kvstore: plots need matplotlib: pip install 'kvstore[plot]'\n"
