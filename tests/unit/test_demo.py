"""kvstore demo: numbers that add up, every hit verified, nothing left behind."""

import json
import tempfile
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kvstore import caller, demo
from kvstore.cli import main
from kvstore.errors import Unavailable

SMALL = ["demo", "--requests", "40", "--block-nbytes", "4096"]
Disk = namedtuple("Disk", "total used free")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the disk tier goes, and nothing may stay."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def report(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert main([*SMALL, *arguments, "--json"]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    return json.loads(shown.out)


def test_the_numbers_add_up(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    shown = report(capsys, "--seed", "3", "--prefill-tokens-per-s", "1000")
    assert list(folder.iterdir()) == []
    first, second = shown["rounds"]
    for done in (first, second):
        hits = done["hits"]["host"] + done["hits"]["disk"]
        assert done["requests"] == 40
        assert hits + done["misses"] == done["blocks_asked"]
        assert done["blocks_verified"] == hits > 0
        assert done["tokens_reused"] == 16 * hits <= done["prompt_tokens"]
        assert done["prefill_saved_s"] == pytest.approx(done["tokens_reused"] / 1000)
        assert done["blocks_rejected"] == 0
        assert done["paths"]["caller_to_memory"]["nbytes"] == 4096 * done["blocks_stored"]
        assert done["paths"]["memory_to_caller"]["nbytes"] == 4096 * hits
        assert done["paths"]["disk_to_memory"]["nbytes"] == 4096 * done["hits"]["disk"]
    assert second["tokens_reused"] > first["tokens_reused"]
    assert (second["misses"], second["blocks_stored"]) == (0, 0)
    assert first["blocks_stored"] == shown["working_blocks"] > shown["host_blocks"]
    assert second["hits"]["disk"] > 0
    assert shown["paths"]["memory_to_disk"]["nbytes"] == 4096 * shown["working_blocks"]
    assert f"{second['hits']['disk']:,} of {second['blocks_verified']:,} blocks from disk" in shown["said"]


def test_the_workload_follows_from_the_seed(capsys: pytest.CaptureFixture[str]) -> None:
    one, same, other = (report(capsys, "--seed", seed) for seed in ("1", "1", "2"))
    assert one["rounds"][0]["prompt_tokens"] == same["rounds"][0]["prompt_tokens"]
    # From which tier they come depends on when the disk was done with what else was asked of it.
    assert sum(one["rounds"][0]["hits"].values()) == sum(same["rounds"][0]["hits"].values())
    assert one["rounds"][0]["prompt_tokens"] != other["rounds"][0]["prompt_tokens"]


def test_memory_is_an_eighth_and_disk_holds_all() -> None:
    plan = demo.setup(seed=0, num_requests=90, block_nbytes=4096)
    assert plan.host_blocks == -(-plan.working_blocks // 8)
    assert plan.disk_nbytes > plan.working_blocks * 4096
    tiny = demo.setup(seed=0, num_requests=1, block_nbytes=4096)
    assert tiny.host_blocks > (len(tiny.requests[0].prompt) + len(tiny.requests[0].answer)) // 16


def test_tables_for_people_fit_80_columns(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(SMALL) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert max(len(line.rstrip()) for line in shown.out.splitlines()) <= 80
    for text in ("prefill saved at 10,000 tokens/s", "blocks from disk", "disk → memory", "You just saw"):
        assert text in shown.out


def test_a_wrong_byte_is_one_line_and_exit_code_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    fill = caller.fill_payloads

    def fill_badly(keys: Any, blocks: Any) -> None:
        fill(keys, blocks)
        blocks[-1, -1] ^= 1

    monkeypatch.setattr(caller, "fill_payloads", fill_badly)
    assert main([*SMALL, "--json"]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("kvstore: block ") and shown.err.count("\n") == 1
    assert "came back with other bytes than were stored" in shown.err
    assert list(folder.iterdir()) == []


def test_too_little_room_on_disk_is_said_with_the_numbers(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    monkeypatch.setattr(demo.shutil, "disk_usage", lambda path: Disk(1 << 30, 1 << 30, 7 << 20))
    assert main(["demo"]) == 1
    error = capsys.readouterr().err
    assert f"the file system of {folder} has 7 MiB left" in error
    assert f"needs {demo.setup(0, 90, 2 << 20).disk_nbytes >> 20:,} MiB of disk" in error
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(("kind", "disk_nbytes", "other_nbytes"), [("ext4", 0, 1 << 43), ("tmpfs", 1 << 43, 0)])
def test_too_little_memory_is_said_with_the_numbers(
    monkeypatch: pytest.MonkeyPatch, kind: str, disk_nbytes: int, other_nbytes: int
) -> None:
    """A temporary folder in memory counts as memory."""
    monkeypatch.setattr(demo, "file_system", lambda folder: kind)
    monkeypatch.setattr(demo, "OTHER_NBYTES", other_nbytes)
    plan = replace(demo.setup(seed=0, num_requests=1, block_nbytes=4096), disk_nbytes=disk_nbytes)
    with pytest.raises(Unavailable, match=r"\d+ bytes of memory cannot be had .*\d+ bytes are available"):
        demo.require_room(plan)


def test_file_system_of_a_folder() -> None:
    assert demo.file_system("/proc") == "proc"
