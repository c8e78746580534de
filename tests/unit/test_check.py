"""kvstore check: what it finds, what it says, what it drops; and how blocks are traced to the start of their prompt."""

from __future__ import annotations

import errno
import json
import os
import shutil
import struct
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest
from disk_helpers import wait_until
from store_helpers import BLOCK, MIB, chain, make_spec, payload, put_chain

import kvstore
from kvstore.cli import main
from kvstore.errors import Unavailable
from kvstore.tiers import verifying
from kvstore.tiers.base import ENTRY, Outcome
from kvstore.tiers.findings import EXAMPLES_MAX, Findings, Kind
from kvstore.tiers.inspection import Inspection
from kvstore.tiers.lineage import trace
from kvstore.tiers.manifest_rows import pack_row
from kvstore.tiers.segment_files import SegmentFiles

NUM_PROMPTS, NUM_BLOCKS = 6, 48  # of 8 blocks each; 16 fill a segment
Rows = dict[bytes, bytes]


def open_store(path: Path) -> Any:
    return kvstore.open(
        kvstore.Config(host={"nbytes": "4 MiB", "prefault": "off"}, disk={"nbytes": "16 MiB", "path": path})
    )


def fill(path: Path, num_prompts: int) -> None:
    with open_store(path) as store:
        wait_until(lambda: store.far._table.num_ready >= 2)  # so that they are used in the order of their numbers
        namespace = store.namespace(make_spec())
        for prompt in range(num_prompts):
            put_chain(namespace, 8, prompt)
            assert store.flush()


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stored") / "tier"
    fill(path, NUM_PROMPTS)
    return path


@pytest.fixture
def path(stored: Path, tmp_path: Path) -> Path:
    shutil.copytree(stored, tmp_path / "tier")
    return tmp_path / "tier"


def check(capsys: Any, path: Path, *options: str) -> tuple[int, dict[str, Any]]:
    capsys.readouterr()
    code = main(["check", str(path), "--json", *options])
    return code, json.loads(capsys.readouterr().out)


def kinds(report: dict[str, Any]) -> dict[str, int]:
    return {finding["kind"]: finding["count"] for finding in report["problems"]}


def records(path: Path, database: bytes, change: Rows | None = None, gone: bytes | None = None) -> Rows:
    """The records of a database, after putting those of `change` and deleting `gone`."""
    with lmdb.open(str(path / "manifest"), max_dbs=4, lib_version=0) as env:
        handle = env.open_db(database)
        with env.begin(db=handle, write=True) as txn:
            for key, value in (change or {}).items():
                txn.put(key, value)
            if gone is not None:
                txn.delete(gone)
            return {bytes(key): bytes(value) for key, value in txn.cursor()}


def rot(path: Path, segment: int, block: int) -> None:
    with (path / "segments" / f"{segment:05d}.seg").open("r+b") as file:
        file.seek(block * BLOCK + 77)
        byte = file.read(1)[0]
        file.seek(block * BLOCK + 77)
        file.write(bytes([byte ^ 1]))


def files_of(path: Path) -> dict[str, bytes]:
    files = [file for file in path.rglob("*") if file.is_file() and file.name not in ("lock", "lock.mdb")]
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


# ---- what it finds ----


def test_a_clean_folder(path: Path, capsys: Any) -> None:
    before = files_of(path)
    code, report = check(capsys, path, "--list")
    assert (code, report["clean"], report["problems"], report["notes"]) == (0, True, [], [])
    assert report["blocks_verified"] == report["blocks_live"] == NUM_BLOCKS
    filled = [segment for segment in report["segments"] if segment["state"] == "filled"]
    assert [segment["num_blocks"] for segment in filled] == [16, 16, 16]
    assert [segment["opening"] for segment in filled] == [1, 2, 3]
    assert all(0 < segment["oldest_s"] <= segment["newest_s"] for segment in filled)
    assert report["segments_by_state"]["filled"] == 3 and report["segment_nbytes"] == MIB
    assert files_of(path) == before, "a check changes nothing"


@pytest.mark.parametrize("num_prompts", [NUM_PROMPTS, 60])
def test_it_counts_what_a_start_takes_over(tmp_path: Path, capsys: Any, num_prompts: int) -> None:
    fill(tmp_path, num_prompts)  # 60: twice what fits, so that segments were recycled
    code, report = check(capsys, tmp_path, "--list")
    assert code == 0
    assert sum(segment["live_nbytes"] for segment in report["segments"]) == report["live_nbytes"]
    with open_store(tmp_path) as store:
        disk = store.stats()["tiers"]["disk"]
        table = store.far._table
        live = {segment["number"]: segment["live_nbytes"] for segment in report["segments"]}
        assert {number: int(table.live_pages[number]) * 4096 for number in live} == live
    assert (disk["blocks"], disk["used_nbytes"]) == (report["blocks_live"], report["live_nbytes"])


def test_a_rotten_block_and_what_extends_it(path: Path, capsys: Any) -> None:
    rot(path, 1, 10)  # third block of the prompt that is the second half of segment 1
    before = files_of(path)
    code, report = check(capsys, path)
    assert (code, kinds(report)) == (1, {"blocks_corrupt": 1, "blocks_lost": 5})
    assert report["blocks_live"] == NUM_BLOCKS - 6
    [example] = report["problems"][0]["examples"]
    assert example.startswith(f"segment 1 offset {10 * BLOCK:,}: key ")
    assert len(report["problems"][1]["examples"]) == EXAMPLES_MAX
    assert files_of(path) == before


def test_repair_drops_what_is_bad_and_nothing_else(path: Path, capsys: Any) -> None:
    rot(path, 1, 10)
    rows, before = records(path, b"rows"), files_of(path)
    code, report = check(capsys, path, "--repair")
    assert (code, report["repaired"], kinds(report)) == (0, True, {"blocks_corrupt": 1, "blocks_lost": 5})
    code, again = check(capsys, path)
    assert (code, again["problems"], again["blocks_verified"]) == (0, [], NUM_BLOCKS - 6)
    left = records(path, b"rows")
    changed = [key for key in rows if left.get(key) != rows[key]]
    assert len(changed) == 1 and changed[0][:4] == struct.pack(">I", 1)
    after = files_of(path)
    assert {name for name in before if after[name] != before[name]} == {"manifest/data.mdb"}
    with open_store(path) as store:
        namespace = store.namespace(make_spec())
        found = [namespace.match(chain(namespace, 8, prompt)).num_blocks for prompt in range(NUM_PROMPTS)]
        assert found == [8, 8, 8, 2, 8, 8]
        assert store.stats()["tiers"]["disk"]["dropped"] == 0


def test_repair_of_a_clean_folder_changes_nothing(path: Path, capsys: Any) -> None:
    before = files_of(path)
    code, report = check(capsys, path, "--repair")
    assert (code, report["repaired"]) == (0, False)
    assert files_of(path) == before


def break_crc(path: Path) -> None:
    rows = records(path, b"rows")
    records(path, b"rows", {max(rows): rows[max(rows)][:-1]})


def outdate(path: Path) -> None:
    """A row of opening 0 beside the segment's own."""
    key = struct.pack(">II", 1, 77)
    entries = np.frombuffer(min(records(path, b"rows").values())[16:], ENTRY)
    records(path, b"rows", {key: pack_row(key, 0, entries)})


def spoil_usage(path: Path) -> None:
    records(path, b"usage", {b"odd": b"key", struct.pack(">I", 1): b"abc"})


def spoil_a_namespace(path: Path) -> None:
    records(path, b"namespaces", {struct.pack(">I", 9): b"rubbish"})


def spoil_the_only_namespace(path: Path) -> None:
    records(path, b"namespaces", gone=struct.pack(">I", 1))


def remove_a_file(path: Path) -> None:
    (path / "segments" / "00002.seg").unlink()


def cut_a_file(path: Path) -> None:
    os.truncate(path / "segments" / "00002.seg", MIB // 2)


def cut_the_manifest(path: Path) -> None:
    os.truncate(path / "manifest" / "data.mdb", 8192)


@pytest.mark.parametrize(
    ("spoil", "found"),
    [
        (break_crc, {"rows_malformed": 1}),
        (outdate, {"rows_outdated": 1}),
        (spoil_usage, {"uses_malformed": 2}),
        (spoil_a_namespace, {"namespaces_unreadable": 1}),
        (spoil_the_only_namespace, {"blocks_unknown": NUM_BLOCKS}),
        (remove_a_file, {"segments_missing": 1, "blocks_without_file": 16}),
        (cut_a_file, {"segments_missized": 1, "blocks_without_file": 16}),
        (cut_the_manifest, {"manifest_damaged": 1}),
    ],
)
def test_every_fault_is_told_and_can_be_dropped(path: Path, capsys: Any, spoil: Any, found: dict[str, int]) -> None:
    spoil(path)
    code, report = check(capsys, path)
    assert (code, kinds(report)) == (1, found)
    assert check(capsys, path, "--repair")[0] == 0
    code, again = check(capsys, path)
    assert (code, again["problems"], again["blocks_live"]) == (0, [], report["blocks_live"])
    with open_store(path) as store:
        assert store.stats()["tiers"]["disk"]["blocks"] == report["blocks_live"]
        assert store.stats()["tiers"]["disk"]["dropped"] == 0


def test_a_damaged_manifest_is_set_aside_by_repair(path: Path, capsys: Any) -> None:
    cut_the_manifest(path)
    check(capsys, path, "--repair")
    [aside] = path.glob("manifest.damaged-*")
    assert (aside / "data.mdb").stat().st_size == 8192


def test_other_files_are_notes(path: Path, capsys: Any) -> None:
    for name in ("00009.seg-new", "00010.seg", "spare.seg", "0.seg"):
        (path / "segments" / name).write_bytes(b"x")
    code, report = check(capsys, path)
    assert code == 0
    [note] = report["notes"]
    assert (note["kind"], note["count"], len(note["examples"])) == ("left_over", 4, EXAMPLES_MAX)


def test_a_file_of_almost_the_right_name_is_no_segment(path: Path, capsys: Any) -> None:
    (path / "segments" / "00000.seg").rename(path / "segments" / "0.seg")
    code, report = check(capsys, path)
    assert (code, kinds(report)) == (1, {"segments_missing": 1, "blocks_without_file": 16})
    with open_store(path) as store:
        assert store.stats()["tiers"]["disk"]["dropped"] == 16
    assert not (path / "segments" / "0.seg").exists()


def test_a_good_copy_stands_in_for_a_rotten_one(path: Path, capsys: Any) -> None:
    first = min(records(path, b"rows"))
    entries = np.frombuffer(records(path, b"rows")[first][16:], ENTRY)[:1].copy()
    with (path / "segments" / "00000.seg").open("rb") as file:
        content = file.read(BLOCK)
    with (path / "segments" / "00002.seg").open("r+b") as file:
        file.seek(15 * BLOCK)
        file.write(content)
    entries["offset"] = 15 * BLOCK // 4096
    rows = {key: value for key, value in records(path, b"rows").items() if key[:4] == struct.pack(">I", 2)}
    for key, value in rows.items():  # its last block makes room for the copy
        kept = np.frombuffer(value[16:], ENTRY)
        kept = kept[kept["offset"] != entries["offset"][0]]
        records(path, b"rows", {key: pack_row(key, 3, kept)})
    key = struct.pack(">II", 2, 77)
    records(path, b"rows", {key: pack_row(key, 3, entries)})
    code, report = check(capsys, path)
    assert (code, [note["kind"] for note in report["notes"]]) == (0, ["blocks_repeated"])
    rot(path, 0, 0)
    code, report = check(capsys, path)
    assert kinds(report) == {"blocks_corrupt": 1}, "what extends it still has a parent"
    assert report["blocks_live"] == NUM_BLOCKS - 1


# ---- what it refuses ----


def test_a_folder_in_use_is_refused(path: Path, capsys: Any) -> None:
    with open_store(path):
        assert main(["check", str(path)]) == 1
    assert f"is in use by process {os.getpid()}" in capsys.readouterr().err
    with Inspection(path), pytest.raises(Unavailable, match="in use"):
        open_store(path)
    assert main(["check", str(path)]) == 0


def test_what_is_no_tier_is_refused(tmp_path: Path, capsys: Any) -> None:
    assert main(["check", str(tmp_path)]) == 1
    assert "holds no disk tier" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    for arguments in ([], [str(tmp_path / "nowhere")], [str(tmp_path), "--nonsense"]):
        assert main(["check", *arguments]) == 2


def test_another_format_is_refused_also_to_repair(path: Path, capsys: Any) -> None:
    records(path, b"meta", {b"format": struct.pack("<I", 9)})
    before = files_of(path)
    assert main(["check", str(path), "--repair"]) == 1
    assert "manifest format 9; this version reads and writes format 1 only" in capsys.readouterr().err
    assert files_of(path) == before


@pytest.mark.parametrize("code", [errno.EACCES, errno.EMFILE])
def test_what_is_not_the_devices_fault_drops_nothing(path: Path, capsys: Any, monkeypatch: Any, code: int) -> None:
    before = files_of(path)
    refuse_to_open(monkeypatch, code)
    assert main(["check", str(path), "--repair"]) == 1
    assert f"cannot be read: {os.strerror(code)}" in capsys.readouterr().err
    assert files_of(path) == before


def test_blocks_that_the_device_refuses(path: Path, capsys: Any, monkeypatch: Any) -> None:
    refuse_to_open(monkeypatch, errno.EIO, segment=1)
    code, report = check(capsys, path)
    assert (code, kinds(report)) == (1, {"blocks_unreadable": 16})
    assert report["problems"][0]["examples"][0].endswith(os.strerror(errno.EIO))


def refuse_to_open(monkeypatch: Any, code: int, segment: int | None = None) -> None:
    real = SegmentFiles._open

    def refuse(files: SegmentFiles, number: int, create: bool) -> int:
        if segment is None or number == segment:
            raise OSError(code, os.strerror(code))
        return real(files, number, create)

    monkeypatch.setattr(SegmentFiles, "_open", refuse)


# ---- what it says ----


def test_people_get_a_table_and_a_verdict(path: Path, capsys: Any) -> None:
    assert main(["check", str(path), "--list"]) == 0
    text = capsys.readouterr().out
    assert "3 filled, " in text and "Clean: every block is what its manifest says." in text
    assert "100.0 %" in text and "opening" in text
    rot(path, 0, 0)
    assert main(["check", str(path)]) == 1
    text = capsys.readouterr().out
    assert "blocks whose bytes do not match their checksum" in text and "Not clean." in text
    assert main(["check", str(path), "--repair"]) == 0
    assert "Repaired:" in capsys.readouterr().out


# ---- verifying ----


def test_blocks_are_read_once_in_windows(path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(verifying, "BATCH_NBYTES", 3 * BLOCK + 4096)
    rot(path, 2, 7)
    steps: list[int] = []
    with Inspection(path) as inspection:
        contents = inspection.contents
        places = (contents.segment_of * 65_536 + contents.entries["offset"]).astype(np.uint32)
        order = np.random.default_rng(3).permutation(NUM_BLOCKS)
        files = SegmentFiles(contents.files_folder, MIB)
        outcomes, _ = verifying.verify_blocks(files, places[order], contents.entries[order], steps.append)
        files.close()
    assert steps == [3] * (NUM_BLOCKS // 3)
    bad = np.flatnonzero(outcomes)
    assert places[order][bad].tolist() == [2 * 65_536 + 7 * BLOCK // 4096]
    assert outcomes[bad].tolist() == [Outcome.CORRUPT]


# ---- lineage and findings ----


def family(pairs: list[tuple[int, int]]) -> Any:
    """Entries of (key, parent); 0 for none."""
    entries = np.zeros(len(pairs), dtype=ENTRY)
    for entry, (key, parent) in zip(entries, pairs, strict=True):
        entry["key"][:4] = list(key.to_bytes(4, "big"))
        entry["parent"][:4] = list(parent.to_bytes(4, "big"))
    return entries


@pytest.mark.parametrize(
    ("pairs", "bad", "lost", "unreachable", "repeated"),
    [
        ([], [], [], [], []),
        ([(1, 0), (2, 1), (3, 2)], [], [], [], []),
        ([(3, 2), (2, 1), (1, 0)], [1], [0], [], []),
        ([(3, 2), (2, 1)], [], [], [0, 1], []),
        ([(3, 2), (2, 1), (9, 0)], [1], [0], [], []),
        ([(1, 2), (2, 1), (3, 2), (4, 0)], [], [], [0, 1, 2], []),
        ([(1, 1), (2, 1)], [], [], [0, 1], []),
        ([(1, 0), (2, 1), (1, 0)], [], [], [], [2]),
        ([(1, 0), (2, 1), (1, 0)], [0], [], [], []),
        ([(1, 0), (2, 1), (1, 0)], [0, 2], [1], [], []),
        ([(1, 0), (256, 1), (65536, 256)], [0], [1, 2], [], []),
    ],
)
def test_lineage(
    pairs: list[tuple[int, int]], bad: list[int], lost: list[int], unreachable: list[int], repeated: list[int]
) -> None:
    good = np.ones(len(pairs), dtype=np.bool_)
    good[bad] = False
    found = trace(family(pairs), good)
    told = [np.flatnonzero(mask).tolist() for mask in (found.lost, found.unreachable, found.repeated)]
    assert told == [lost, unreachable, repeated]


@pytest.mark.parametrize("length", [1, 2, 3, 64, 1000, 4097])
def test_a_long_chain_is_followed_to_its_start(length: int) -> None:
    pairs = [(number + 1, number) for number in range(length)]
    order = np.random.default_rng(length).permutation(length)
    entries = family(pairs)[order]
    everything = np.ones(length, dtype=np.bool_)
    assert not trace(entries, everything).unreachable.any()
    found = trace(entries, entries["key"][:, :4].view(">u4").ravel() != 1)
    assert found.lost.sum() == length - 1
    assert trace(entries[order != 0], everything[1:]).unreachable.all()


def test_findings_keep_the_first_examples_in_a_fixed_order() -> None:
    findings = Findings()
    findings.add(Kind.LEFT_OVER, 1, ["a"])
    findings.add(Kind.BLOCKS_CORRUPT, 5, (str(number) for number in range(5)))
    findings.add(Kind.BLOCKS_CORRUPT, 1, ["6"])
    findings.add(Kind.ROWS_MALFORMED, 1, ["r"])
    findings.add(Kind.BLOCKS_OUTSIDE, 0, ["never"])
    assert [(finding.kind, finding.count) for finding in findings.faults] == [
        (Kind.ROWS_MALFORMED, 1),
        (Kind.BLOCKS_CORRUPT, 6),
    ]
    assert findings.faults[1].examples == ["0", "1", "2"]
    assert [finding.kind for finding in findings.notes] == [Kind.LEFT_OVER]


def test_the_bytes_that_come_back_after_a_repair_are_right(path: Path, capsys: Any) -> None:
    for segment, block in ((0, 3), (1, 0), (2, 15)):
        rot(path, segment, block)
    check(capsys, path, "--repair")
    with open_store(path) as store:
        namespace = store.namespace(make_spec())
        for prompt in range(NUM_PROMPTS):
            keys = chain(namespace, 8, prompt)
            num, blocks = namespace.get(keys)
            assert np.array_equal(blocks, payload(keys[:num]))
        assert store.stats()["mover"]["corrupt_blocks"] == 0
