"""kvstore simulate --tiers: what it prints for programs and people, and what it refuses."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from simulate_helpers import demand_of, tree_trace

from kvstore.cli import main, tiers
from kvstore.simulate import blocks_of
from kvstore.tiered import BASELINE, Costs, Plan, play_tiers
from kvstore.trace import BLOCK_TOKENS

CHAINS = tree_trace(4, 200)
SIZES = "5,0.1,60"


@pytest.fixture
def trace(tmp_path: Path) -> str:
    path = tmp_path / "made.jsonl.gz"
    with gzip.open(path, "wt") as file:
        for ids in CHAINS:
            fields = {"timestamp": 0, "input_length": len(ids) * BLOCK_TOKENS, "output_length": 1, "hash_ids": ids}
            file.write(json.dumps(fields) + "\n")
    return str(path)


def reports(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, Any]]:
    assert main(["simulate", *arguments, "--json"]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    return [json.loads(line) for line in shown.out.splitlines()]


def test_json_has_an_object_for_each_plan_the_baseline_first(trace: str, capsys: pytest.CaptureFixture[str]) -> None:
    names = (
        "--policy",
        "gittins",
        "--setup",
        "victim",
        "--promotion",
        "move,keep",
        "--disk-chance",
        "second-touch,0.2",
    )
    costs = ("--block-mib", "64", "--recompute-ms", "12.8", "--dram-gbs", "50", "--nvme-gbs", "3")
    found = reports(capsys, trace, "--tiers", SIZES, *names, *costs)
    asked = demand_of(*CHAINS)
    sizes = (5, blocks_of(0.1, asked.num_unique), 60)
    plans = [
        BASELINE,
        *(
            Plan("victim", "gittins", promotion, disk_chance=chance)
            for promotion in ("move", "keep")
            for chance in ("second-touch", 0.2)
        ),
    ]
    plain = None
    for plan, fields in zip(plans, found, strict=True):
        outcome = play_tiers(asked, plan, sizes, Costs(64 << 20, 12.8, 50e9, 3e9))
        plain = plain or outcome
        assert fields == {
            **{name: getattr(plan, name) for name in Plan.__slots__},
            "blocks": dict(zip(("hbm", "dram", "nvme"), sizes, strict=True)),
            "hit": pytest.approx(outcome.hit, abs=1e-6),
            **{
                name: pytest.approx(getattr(outcome, name), abs=1e-6)
                for name in ("hbm", "dram", "nvme", "dram_writes", "nvme_writes", "load_ms", "ttft_ms")
            },
            "hit_gain": pytest.approx(outcome.hit - plain.hit, abs=2e-6),
            "ttft_ratio": pytest.approx(outcome.ttft_ms / plain.ttft_ms, abs=1e-5),
            "nvme_writes_ratio": pytest.approx(outcome.nvme_writes / plain.nvme_writes, abs=1e-5),
        }


def test_all_policies_and_set_ups_run_unless_asked(trace: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = reports(capsys, trace, "--tiers", SIZES)
    assert [(run["policy"], run["setup"]) for run in found] == [
        (policy, setup) for policy in ("lru", "gittins") for setup in ("write-through", "victim")
    ]


def test_nothing_written_is_no_ratio(
    trace: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, *_ = reports(capsys, trace, "--tiers", "1,1.0,5")
    assert (run["nvme_writes"], run["nvme_writes_ratio"]) == (0, None)
    monkeypatch.setenv("COLUMNS", "120")
    assert main(["simulate", trace, "--tiers", "1,1.0,5"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split()[-1] == "-"


def test_the_first_requests_alone(trace: str, capsys: pytest.CaptureFixture[str]) -> None:
    run, *_ = reports(capsys, trace, "--tiers", "2,4,8", "--limit", "30")
    assert run["hit"] == pytest.approx(play_tiers(demand_of(*CHAINS[:30]), BASELINE, (2, 4, 8), Costs()).hit, abs=1e-6)


def test_a_table_for_people(trace: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    choices = ("--policy", "gittins", "--disk-gain", "2", "--disk-order", "leaf", "--disk-chance", "0.25")
    assert main(["simulate", trace, "--tiers", SIZES, "--setup", "victim", *choices]) == 0
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines[0].startswith("made.jsonl.gz: hits in % and writes")
    assert lines[1].endswith(f"5 in HBM, {blocks_of(0.1, demand_of(*CHAINS).num_unique)} in DRAM, 60 on NVMe")
    rows = {line.split("  ")[0]: line.split("  ")[1:] for line in lines[4:] if line}
    plain = play_tiers(demand_of(*CHAINS), BASELINE, (5, blocks_of(0.1, demand_of(*CHAINS).num_unique), 60), Costs())
    numbers = [float(cell.replace(",", "")) for cell in rows["write-through lru"] if cell.strip()]
    assert numbers[0] == pytest.approx(100 * plain.hit, abs=0.05)
    assert numbers[-3:] == [round(plain.ttft_ms), 1.0, 1.0]
    assert "victim gittins, leaf, chance 0.25, gain 2" in rows


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--tiers", "1,2"], "2 sizes; it takes one each of HBM, DRAM and NVMe"),
        (["--tiers", "1,2,much"], "'1,2,much' are not numbers"),
        (["--tiers", "0,2,3"], "capacity 0 is neither a share"),
        (["--tiers", SIZES, "--policy", "opt,lru"], "opt cannot keep tiers; lru, gittins, s3fifo, arc can"),
        (["--tiers", SIZES, "--setup", "both"], "'both'; there are write-through, victim"),
        (["--tiers", SIZES, "--promotion", "keep,no"], "'no'; there are keep, move, no-refill"),
        (["--tiers", SIZES, "--disk-chance", "1.1"], "1.1 is not from 0 to 1"),
        (["--tiers", SIZES, "--disk-gain", "nan"], "nan is not from 0 to 1024"),
        (["--tiers", SIZES, "--disk-gain", "some"], "'some' is not a number"),
        (["--tiers", SIZES, "--disk-gain", ",".join(map(str, range(400)))], "1600 runs; at most 1000"),
        (["--tiers", SIZES, "--capacity", "0.1", "--plot", "x.png"], "--capacity, --plot: not with --tiers"),
        (["--setup", "victim", "--nvme-gbs", "7"], "--setup, --nvme-gbs: only with --tiers"),
    ],
)
def test_wrong_options_are_refused(
    arguments: list[str], text: str, trace: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["simulate", trace, *arguments]) == 2
    shown = capsys.readouterr()
    assert text in " ".join(shown.err.split())
    assert shown.out == ""


def test_the_help_names_what_every_knob_takes() -> None:
    described = {option.name: option.help or "" for option in tiers.tier_options(lambda: None).__click_params__}
    for name, values in (("setup", tiers.SETUPS), ("promotion", tiers.PROMOTIONS), ("disk_order", tiers.DISK_ORDERS)):
        assert all(value in described[name] for value in values)
