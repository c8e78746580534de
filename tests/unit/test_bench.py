"""Every benchmark there is runs, and each line it prints has the promised keys. No timing is judged."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from kvstore._core.simulation import policies

ROOT = Path(__file__).parents[2]
NAMES = sorted(path.stem for path in (ROOT / "bench").glob("*.py") if "\ndef cases(" in path.read_text())
REQUIRED = {"bench": str, "case": str, "value": float, "unit": str}
OPTIONAL = {"ceiling": float, "ceiling_name": str, "ratio": float, "p50": float, "p99": float, "runs": int}


def run(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == code, done.stderr
    return done


def check(line: dict[str, object], bench: str) -> None:
    """One figure has the required keys, no others than the optional ones, and each of its type."""
    kinds = REQUIRED | OPTIONAL
    assert set(REQUIRED) <= set(line) <= set(kinds)
    for key, value in line.items():
        kind = (int, float) if kinds[key] is float else kinds[key]
        assert isinstance(value, kind), (key, value)  # type: ignore[arg-type]
        assert not isinstance(value, float) or math.isfinite(value), (key, value)
    assert line["bench"] == bench
    assert line["case"] and line["unit"]
    assert ("ceiling" in line) == ("ceiling_name" in line)
    if line.get("ceiling"):
        assert math.isclose(line["ratio"], line["value"] / line["ceiling"], rel_tol=1e-4)  # type: ignore


def test_the_benchmarks_of_the_menu_are_there() -> None:
    assert {"copy", "copy_kernels", "hash", "lookup", "evict", "store"} <= set(NAMES)


@pytest.mark.parametrize("bench", NAMES)
def test_quick_run_prints_one_well_formed_object_per_line(bench: str) -> None:
    lines = [json.loads(line) for line in run(bench, "--quick", "--json").stdout.splitlines()]
    assert lines
    for line in lines:
        check(line, bench)
    cases = [line["case"] for line in lines]
    assert len(set(cases)) == len(cases)


def test_copy_yields_the_cases_that_goals_are_set_for() -> None:
    lines = [json.loads(line) for line in run("copy", "--quick", "--json").stdout.splitlines()]
    shapes = ["gather_64x32k", "scatter_64x32k", "gather_64x4k", "scatter_64x4k", "contiguous_2m"]
    assert {line["case"] for line in lines} == {*shapes, *(f"memcpy_{shape}" for shape in shapes)}
    assert all(line["unit"] == "GB/s" and line["value"] > 0 for line in lines)


@pytest.mark.parametrize(
    ("bench", "units"),
    [
        ("hash", dict.fromkeys(["sha256", "xxh3_128", "python_sha256", "python_xxh3_128"], "ms")),
        ("lookup", {f"{way}_{kind}": "us" for way in ("c", "raw", "py") for kind in ("hot", "cold")}),
        ("evict", {"batch_256": "us", "touch": "ns", "touch_cold": "ns", "touch_hot": "ns", "metadata": "bytes"}),
        (
            "policy",
            {
                f"{policy}{kind}": unit
                for policy in policies()
                for kind, unit in (("", "ns"), ("_request", "us"), ("_worst", "us"), ("_ghost", "bytes"))
                if policy != "lru" or kind != "_ghost"
            },
        ),
        (
            "store",
            {"put_2m": "GB/s", "get_2m": "GB/s", "views": "views/s", "zero_reuse": "%", "zero_reuse_128k": "%"},
        ),
    ],
)
def test_goals_find_their_cases_and_units(bench: str, units: dict[str, str]) -> None:
    lines = [json.loads(line) for line in run(bench, "--quick", "--json").stdout.splitlines()]
    assert {line["case"]: line["unit"] for line in lines} == units
    assert all(line["value"] > 0 for line in lines)


def test_hot_calls_run_under_pytest() -> None:
    command = [sys.executable, "-m", "pytest", "bench", "-q", "--benchmark-disable", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout and "skipped" not in done.stdout


def test_table_names_machine_ceiling_and_ratio() -> None:
    shown = run("copy", "--quick").stdout
    for word in ("cpu ", "cores ", "kernel ", "python ", "load ", "pages ", "ceiling", "gather_64x32k"):
        assert word in shown


def test_save_writes_results_with_commit_hardware_and_command(tmp_path: Path) -> None:
    file = tmp_path / "copy.json"
    printed = run("copy", "--quick", "--json", "--save", str(file)).stdout
    saved = json.loads(file.read_text())
    assert saved["results"] == [json.loads(line) for line in printed.splitlines()]
    assert saved["commit"]
    assert set(saved["hardware"]) == {"cpu", "cores", "kernel", "python", "load", "pages"}
    assert saved["command"] == f"python -m bench copy --quick --json --save {file}"


def test_unknown_name_exits_with_2_and_lists_the_names() -> None:
    for wrong in ("nonsense", "copy,nonsense", "report", "copy,"):
        stderr = run(wrong, "--quick", code=2).stderr
        assert all(name in stderr for name in NAMES)


def test_help_shows_the_menu_and_an_example() -> None:
    shown = run("--help").stdout
    for word in ("hash", "lookup", "copy", "evict", "store", "Example: python -m bench"):
        assert word in shown
