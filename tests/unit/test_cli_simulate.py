"""kvstore simulate: what it prints for programs and people, its figure, and what it refuses."""

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from simulate_helpers import demand_of, tree_trace

from kvstore.cli import main
from kvstore.cli import simulate as command
from kvstore.errors import Unavailable
from kvstore.simulate import Outcome, blocks_of, known_policies, simulate
from kvstore.trace import BLOCK_TOKENS

CHAINS = tree_trace(4, 200)
FIELDS = ["policy", "capacity", "blocks", "prefix_hit", "block_hit", "fills", "ns_per_block"]


def write(path: Path, chains: list[list[int]]) -> str:
    with gzip.open(path, "wt") as file:
        for ids in chains:
            fields = {"timestamp": 0, "input_length": len(ids) * BLOCK_TOKENS, "output_length": 1, "hash_ids": ids}
            file.write(json.dumps(fields) + "\n")
    return str(path)


@pytest.fixture
def trace(tmp_path: Path) -> str:
    return write(tmp_path / "made.jsonl.gz", CHAINS)


def reports(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, Any]]:
    assert main(["simulate", *arguments, "--json"]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    return [json.loads(line) for line in shown.out.splitlines()]


def test_json_has_an_object_for_each_run_and_a_summary(trace: str, capsys: pytest.CaptureFixture[str]) -> None:
    *runs, last = reports(capsys, trace, "--policy", "opt,lru", "--capacity", "0.01,25,1")
    assert [list(run) for run in runs] == [FIELDS] * 6
    assert [(run["policy"], run["capacity"]) for run in runs] == [
        (policy, capacity) for policy in ("opt", "lru") for capacity in (0.01, 25, 1)
    ]
    asked = demand_of(*CHAINS)
    assert [run["blocks"] for run in runs[:3]] == [blocks_of(0.01, asked.num_unique), 25, asked.num_unique]
    for run in runs:
        outcome = simulate(asked, run["policy"], run["blocks"])
        hits = (outcome.prefix_hit, outcome.block_hit)
        assert (run["prefix_hit"], run["block_hit"]) == pytest.approx(hits, abs=1e-6)
        assert run["fills"] == outcome.fills
        assert run["ns_per_block"] > 0
    best, lru = (sum(run["prefix_hit"] for run in of_policy) / 3 for of_policy in (runs[:3], runs[3:]))
    assert last.keys() == {"summary"}
    assert last["summary"]["opt"] == {"mean": pytest.approx(best, abs=1e-5), "of_opt": 1.0}
    assert last["summary"]["lru"] == pytest.approx({"mean": lru, "of_opt": lru / best}, abs=1e-5)


def test_without_the_optimum_nothing_is_a_share_of_it(trace: str, capsys: pytest.CaptureFixture[str]) -> None:
    run, last = reports(capsys, trace, "--policy", "infinite", "--capacity", "0.1")
    assert (run["blocks"], run["fills"], run["ns_per_block"]) == (demand_of(*CHAINS).num_unique,) * 2 + (None,)
    assert last["summary"]["infinite"] == {"mean": run["prefix_hit"], "of_opt": None}


def test_everything_but_infinite_runs_unless_asked(trace: str, capsys: pytest.CaptureFixture[str]) -> None:
    *runs, _ = reports(capsys, trace)
    wanted = [name for name in known_policies() if name != "infinite"]
    assert list(dict.fromkeys(run["policy"] for run in runs)) == wanted
    assert [run["capacity"] for run in runs] == [0.003, 0.01, 0.03, 0.1, 0.3] * len(wanted)


def test_what_is_named_twice_runs_once(trace: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(reports(capsys, trace, "--policy", "lru,lru", "--capacity", "0.1,0.10")) == 2


def test_the_first_requests_alone(trace: str, capsys: pytest.CaptureFixture[str]) -> None:
    run, _ = reports(capsys, trace, "--policy", "lru", "--capacity", "0.1", "--limit", "30")
    asked = demand_of(*CHAINS[:30])
    assert run["blocks"] == blocks_of(0.1, asked.num_unique)
    assert run["prefix_hit"] == pytest.approx(simulate(asked, "lru", run["blocks"]).prefix_hit, abs=1e-6)


def test_a_table_for_people(trace: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["simulate", trace]) == 0
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == "Prefix hits of made.jsonl.gz, % of blocks asked for"
    assert max(map(len, lines)) <= 80
    (header,) = [line for line in lines if line.startswith("policy")]
    assert header.split("  ")[0] == "policy"
    assert [part.strip() for part in header.split("  ") if part.strip()][1:] == [
        *("0.3 %", "1 %", "3 %", "10 %", "30 %", "mean", "of opt")
    ]
    (best,) = [line.split() for line in lines if line.startswith("opt")]
    asked = demand_of(*CHAINS)
    shares = (0.003, 0.01, 0.03, 0.1, 0.3)
    hits = [100 * simulate(asked, "opt", blocks_of(share, asked.num_unique)).prefix_hit for share in shares]
    assert [float(cell) for cell in best[1:6]] == pytest.approx(hits, abs=0.005)
    assert best[7:] == ["100.0", "%"]
    assert main(["simulate", trace, "--policy", "lru", "--capacity", "2000"]) == 0
    shown = capsys.readouterr().out
    assert "2,000" in shown and "-" in shown.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--policy", "nope,lru,best"], "'nope', 'best'; there are lru, gittins, s3fifo, arc, opt, infinite"),
        (["--policy", ""], "there are lru"),
        (["--capacity", "0"], "capacity 0 is neither a share"),
        (["--capacity", "0.1,1.5"], "capacity 1.5 is neither a share"),
        (["--capacity", "nan"], "capacity nan is neither a share"),
        (["--capacity", "much"], "'much' is not a number"),
        (["--capacity", ""], "'' is not a number"),
        (["--limit", "-1"], "'--limit'"),
        (["--capacity", ",".join(map(str, range(2, 1003)))], "2 policies at 1001 capacities; at most 1000 runs"),
    ],
)
def test_wrong_options_are_refused(
    arguments: list[str], text: str, trace: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["simulate", trace, "--policy", "lru,opt", *arguments]) == 2
    shown = capsys.readouterr()
    assert text in " ".join(shown.err.split())
    assert shown.out == ""


def test_traces_that_cannot_be_simulated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for chains in ([], [[], []]):
        assert main(["simulate", write(tmp_path / "empty.gz", chains)]) == 2
        assert "has no requests for blocks" in capsys.readouterr().err
    assert main(["simulate", str(tmp_path / "absent")]) == 2
    assert "does not exist" in capsys.readouterr().err
    assert main(["simulate", write(tmp_path / "loose.gz", [[1, 2], [3, 2]])]) == 1
    assert capsys.readouterr().err.endswith("ids must be chained\n")


def test_a_run_that_fails_ends_the_command(
    trace: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = []

    def fail(_asked: object, policy: str, num_blocks: int, _advance: object) -> Outcome:
        begun.append((policy, num_blocks))
        raise Unavailable("no memory to simulate 1 blocks")

    monkeypatch.setattr(command, "simulate", fail)
    assert main(["simulate", trace, "--capacity", ",".join(map(str, range(2, 202))), "--json"]) == 1
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "kvstore: no memory to simulate 1 blocks\n")
    assert begun


@pytest.mark.parametrize("capacities", ["0.1", "0.01,0.1,30", ",".join(f"{share / 100}" for share in range(1, 21))])
def test_a_plot_is_drawn(capacities: str, trace: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    picture = tmp_path / "hits.png"
    assert (
        main(["simulate", trace, "--policy", "lru,infinite,opt", "--capacity", capacities, "--plot", str(picture)]) == 0
    )
    assert picture.read_bytes().startswith(b"\x89PNG\r\n")


def test_a_plot_of_infinite_alone_is_its_line(trace: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    picture = tmp_path / "hits.png"
    assert main(["simulate", trace, "--policy", "infinite", "--plot", str(picture)]) == 0
    assert picture.exists()


def test_a_plot_that_cannot_be_written_is_said_before_the_run(
    trace: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    assert main(["simulate", trace, "--plot", str(tmp_path / "absent" / "hits.png")]) == 1
    shown = capsys.readouterr()
    assert "not a file that can be written" in shown.err and shown.out == ""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["simulate", trace, "--plot", "hits.png"]) == 1
    assert capsys.readouterr().err == "kvstore: plots need matplotlib: pip install 'kvstore[plot]'\n"
