"""Everything that can happen to the files of a store: afterwards it serves what is left, never a wrong byte, says what
it lost, and `kvstore check` finds it, and can drop it."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corruption_helpers import (
    NUM_BLOCKS,
    PROMPT_BLOCKS,
    SEGMENT_NBYTES,
    SPECS,
    Found,
    Rows,
    block_range,
    change_rows,
    entries_of,
    fill,
    flip,
    kinds_of,
    overwrite,
    read_all,
    read_bytes,
    replace_folder,
    run_check,
    segment_file,
)

from kvstore.errors import KVStoreError, Unavailable
from kvstore.tiers.base import ENTRY
from kvstore.tiers.manifest_rows import pack_row

SEED = 20_250_301
MANY = range(100, 140)  # prompts that together are more than the disk holds


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that nothing has happened to."""
    path = tmp_path_factory.mktemp("stored") / "tier"
    fill(path)
    return path


@pytest.fixture
def path(stored: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    shutil.copytree(stored, tmp_path / "tier")
    return tmp_path / "tier"


@pytest.fixture
def survive(path: Path, capsys: Any) -> Callable[..., Found]:
    """Check, repair a copy, read the original and the copy, fill the original again."""

    def run(*kinds: str) -> Found:
        code, report = run_check(capsys, path)
        assert code == 1 and set(kinds) <= kinds_of(report).keys(), report
        repaired = path.with_name("repaired")
        shutil.copytree(path, repaired)
        assert run_check(capsys, repaired, "--repair")[0] == 0
        code, again = run_check(capsys, repaired)
        assert (code, again["problems"]) == (0, [])
        assert again["blocks_live"] == report["blocks_live"]
        found = read_all(path)
        assert found.num_blocks == report["blocks_live"] < NUM_BLOCKS
        assert read_all(repaired) == Found(found.num_blocks, 0, 0)
        fill(path)
        assert read_all(path).num_blocks == NUM_BLOCKS
        return found

    return run


def test_nothing_happened(path: Path, capsys: Any) -> None:
    assert run_check(capsys, path)[0] == 0
    assert read_all(path) == Found(NUM_BLOCKS, 0, 0)


# ---- segment files ----


def test_one_bit_flips(path: Path, survive: Callable[..., Found]) -> None:
    rng = np.random.default_rng(SEED)
    file, offset, nbytes = block_range(path, *entries_of(path)[int(rng.integers(NUM_BLOCKS))])
    flip(file, offset + int(rng.integers(nbytes)), int(rng.integers(8)))
    found = survive("blocks_corrupt")
    assert (found.corrupt_blocks, found.dropped) == (1, 0)


def test_the_last_bit_of_a_block_flips(path: Path, survive: Callable[..., Found]) -> None:
    file, offset, nbytes = block_range(path, *next(item for item in entries_of(path) if item[1]["nbytes"] % 4096))
    flip(file, offset + nbytes - 1, 7)
    assert survive("blocks_corrupt").corrupt_blocks == 1


def test_a_bit_behind_the_last_one_flips(path: Path, capsys: Any) -> None:
    file, offset, nbytes = block_range(path, *next(item for item in entries_of(path) if item[1]["nbytes"] % 4096))
    flip(file, offset + nbytes, 0)
    assert run_check(capsys, path)[0] == 0
    assert read_all(path) == Found(NUM_BLOCKS, 0, 0)


def test_a_page_turns_to_zeros(path: Path, survive: Callable[..., Found]) -> None:
    file, offset, _ = block_range(path, *entries_of(path)[PROMPT_BLOCKS + 3])
    overwrite(file, offset + 4096, bytes(4096))
    found = survive("blocks_corrupt", "blocks_lost")
    assert (found.num_blocks, found.corrupt_blocks) == (NUM_BLOCKS - 5, 1)


def test_a_segment_file_is_cut(path: Path, survive: Callable[..., Found]) -> None:
    with segment_file(path, 1).open("r+b") as file:
        file.truncate(SEGMENT_NBYTES - 1)
    found = survive("segments_missized", "blocks_without_file")
    assert found.dropped == 16 and found.corrupt_blocks == 0


def test_a_segment_file_is_empty(path: Path, survive: Callable[..., Found]) -> None:
    segment_file(path, 0).write_bytes(b"")
    assert survive("segments_missized").dropped == 16


def test_a_segment_file_grows(path: Path, survive: Callable[..., Found]) -> None:
    with segment_file(path, 1).open("ab") as file:
        file.write(bytes(4096))
    assert survive("segments_missized").dropped == 16


def test_a_segment_file_is_gone(path: Path, survive: Callable[..., Found]) -> None:
    segment_file(path, 2).unlink()
    assert survive("segments_missing", "blocks_without_file").dropped == 16


def test_all_segment_files_are_gone(path: Path, survive: Callable[..., Found]) -> None:
    for file in (path / "segments").iterdir():
        file.unlink()
    assert survive("segments_missing") == Found(0, 0, NUM_BLOCKS)


def test_two_blocks_are_swapped(path: Path, survive: Callable[..., Found]) -> None:
    items = [item for item in entries_of(path) if item[1]["nbytes"] == SPECS[0].block_nbytes]
    (one, at, nbytes), (other, there, _) = (block_range(path, *items[position]) for position in (1, 20))
    first, second = read_bytes(one, at, nbytes), read_bytes(other, there, nbytes)
    overwrite(one, at, second)
    overwrite(other, there, first)
    assert survive("blocks_corrupt").corrupt_blocks == 2


def test_two_segment_files_are_swapped(path: Path, survive: Callable[..., Found]) -> None:
    one, other, aside = segment_file(path, 0), segment_file(path, 1), path / "aside"
    one.rename(aside)
    other.rename(one)
    aside.rename(other)
    found = survive("blocks_corrupt")
    assert found.corrupt_blocks > 0 and found.num_blocks == NUM_BLOCKS - 32


def test_a_segment_file_is_a_copy_of_another_one(path: Path, survive: Callable[..., Found]) -> None:
    shutil.copyfile(segment_file(path, 3), segment_file(path, 0))
    assert survive("blocks_corrupt").num_blocks == NUM_BLOCKS - 16


# ---- manifest and segments of different times ----


def test_an_old_manifest_over_newer_segments(path: Path, tmp_path: Path, capsys: Any) -> None:
    shutil.copytree(path / "manifest", tmp_path / "old")
    fill(path, MANY)  # evicts and overwrites
    assert run_check(capsys, path)[0] == 0
    replace_folder(tmp_path / "old", path / "manifest")
    _agree_on_what_is_left(path, capsys)


def test_a_newer_manifest_over_old_segments(path: Path, tmp_path: Path, capsys: Any) -> None:
    shutil.copytree(path / "segments", tmp_path / "old")
    fill(path, MANY)
    replace_folder(tmp_path / "old", path / "segments")
    _agree_on_what_is_left(path, capsys)


def test_a_newer_manifest_over_some_old_segments(path: Path, tmp_path: Path, capsys: Any) -> None:
    shutil.copytree(path / "segments", tmp_path / "old")
    fill(path, MANY)
    rewritten = [
        (old, segment_file(path, segment))
        for segment, old in ((segment, tmp_path / "old" / f"{segment:05d}.seg") for segment, _ in entries_of(path))
        if old.exists() and old.read_bytes() != segment_file(path, segment).read_bytes()
    ]
    shutil.copyfile(*rewritten[0])
    _agree_on_what_is_left(path, capsys)


def _agree_on_what_is_left(path: Path, capsys: Any) -> None:
    code, report = run_check(capsys, path)
    assert code == 1 and kinds_of(report).keys() & {"blocks_corrupt", "segments_missing"}
    everything = range(max(MANY) + 1)
    found = read_all(path, everything)
    assert found.num_blocks == report["blocks_live"]
    assert found.corrupt_blocks + found.dropped > 0
    fill(path)
    assert read_all(path).num_blocks == NUM_BLOCKS


# ---- the manifest's file ----


@pytest.mark.parametrize("how", ["garbage", "cut", "empty", "zeroed"])
def test_the_manifest_is_damaged(path: Path, survive: Callable[..., Found], how: str, caplog: Any) -> None:
    data = path / "manifest" / "data.mdb"
    whole = data.read_bytes()
    garbage = np.random.default_rng(SEED).bytes(len(whole))
    data.write_bytes({"garbage": garbage, "cut": whole[:20_000], "empty": b"", "zeroed": bytes(len(whole))}[how])
    assert survive("manifest_damaged") == Found(0, 0, 1)
    assert "set aside as manifest.damaged-" in caplog.text


def test_the_manifest_is_gone(path: Path, capsys: Any) -> None:
    (path / "manifest" / "data.mdb").unlink()
    code, report = run_check(capsys, path)
    assert (code, report["blocks_live"]) == (0, 0)
    assert read_all(path) == Found(0, 0, 0)
    fill(path)
    assert read_all(path).num_blocks == NUM_BLOCKS


def test_the_lock_file_of_the_manifest_is_garbage(path: Path, capsys: Any) -> None:
    (path / "manifest" / "lock.mdb").write_bytes(b"\xaa" * 8192)
    assert run_check(capsys, path)[0] == 0
    assert read_all(path) == Found(NUM_BLOCKS, 0, 0)


def test_a_newer_format_is_refused_by_name(path: Path, capsys: Any) -> None:
    change_rows(path, lambda meta: meta | {b"format": struct.pack("<I", 2)}, b"meta")
    before = (path / "manifest" / "data.mdb").read_bytes()
    said = "manifest format 2; this version reads and writes format 1 only"
    with pytest.raises(Unavailable, match=said):
        read_all(path)
    for options in ([], ["--repair"]):
        code, report = run_check(capsys, path, *options)
        assert code == 1 and said in report["error"]
    assert (path / "manifest" / "data.mdb").read_bytes() == before


def test_any_bit_of_the_manifest_flips(path: Path, tmp_path: Path, capsys: Any) -> None:
    whole = (path / "manifest" / "data.mdb").read_bytes()
    rng = np.random.default_rng(SEED)
    for position in rng.choice(len(whole), 24, replace=False).tolist():
        damaged = tmp_path / str(position)
        shutil.copytree(path, damaged)
        flip(damaged / "manifest" / "data.mdb", position, int(rng.integers(8)))
        code, report = run_check(capsys, damaged)
        assert code in (0, 1)
        try:
            found = read_all(damaged)
        except KVStoreError as error:  # another format, or another model under the same name
            assert "format" in str(error) or "namespace" in str(error), position
        else:
            assert found.num_blocks <= report["blocks_live"], position
            assert found.num_blocks == NUM_BLOCKS or code == 1 or found.num_blocks == report["blocks_live"], position
        shutil.rmtree(damaged)


# ---- what the manifest says ----


def rewrite(path: Path, change: Callable[[Any], None]) -> None:
    """Change the entries of the first row, under a right CRC."""

    def changed(rows: Rows) -> Rows:
        key = min(rows)
        entries = np.frombuffer(rows[key][16:], ENTRY).copy()
        change(entries)
        return rows | {key: pack_row(key, struct.unpack_from("<Q", rows[key])[0], entries)}

    change_rows(path, changed)


def test_a_row_with_a_wrong_crc(path: Path, survive: Callable[..., Found]) -> None:
    def changed(rows: Rows) -> Rows:
        key = min(rows)
        return rows | {key: rows[key][:-1] + bytes([rows[key][-1] ^ 1])}

    change_rows(path, changed)
    assert survive("rows_malformed").dropped == 1


def test_a_row_under_a_wrong_key(path: Path, survive: Callable[..., Found]) -> None:
    def changed(rows: Rows) -> Rows:
        first, second = sorted(rows)[:2]
        return rows | {second: rows[first]}

    change_rows(path, changed)
    assert survive("rows_malformed").dropped == 1


@pytest.mark.parametrize("value", [b"", b"\xff" * 15, struct.pack("<QII", 1, 2**32 - 1, 0), b"\xff" * 4000])
def test_a_row_of_rubbish(path: Path, survive: Callable[..., Found], value: bytes) -> None:
    change_rows(path, lambda rows: rows | {min(rows): value, b"odd": b"key"})
    assert survive("rows_malformed").dropped == 1


def test_overlapping_blocks(path: Path, survive: Callable[..., Found]) -> None:
    def overlap(entries: Any) -> None:
        entries["offset"][1] = entries["offset"][2] + 1

    rewrite(path, overlap)
    assert survive("blocks_overlapping").dropped >= 2


@pytest.mark.parametrize(
    ("field", "value", "kind"),
    [
        ("offset", 2**32 - 1, "blocks_outside"),
        ("offset", SEGMENT_NBYTES // 4096 - 1, "blocks_outside"),
        ("nbytes", 0, "blocks_outside"),
        ("nbytes", 2**32 - 1, "blocks_outside"),
        ("nbytes", 65_535, "blocks_missized"),
        ("namespace", 0, "blocks_unknown"),
        ("namespace", 2**32 - 1, "blocks_unknown"),
        ("namespace", 2, "blocks_missized"),
    ],
)
def test_absurd_entries(path: Path, survive: Callable[..., Found], field: str, value: int, kind: str) -> None:
    def change(entries: Any) -> None:
        entries[field][0] = value

    rewrite(path, change)
    assert survive(kind).dropped == 1


def test_a_wrong_checksum(path: Path, survive: Callable[..., Found]) -> None:
    def change(entries: Any) -> None:
        entries["checksum"][0] ^= 1

    rewrite(path, change)
    assert survive("blocks_corrupt").corrupt_blocks == 1


def test_absurd_times_flags_and_tokens_do_no_harm(path: Path, capsys: Any) -> None:
    def change(entries: Any) -> None:
        for name in ("time_s", "flags", "num_tokens"):
            entries[name] = 2**32 - 1

    rewrite(path, change)
    assert run_check(capsys, path, "--list")[0] == 0
    assert read_all(path) == Found(NUM_BLOCKS, 0, 0)


def test_a_parent_that_is_nowhere(path: Path, capsys: Any) -> None:
    def change(entries: Any) -> None:
        entries["parent"][3] = 7

    rewrite(path, change)
    code, report = run_check(capsys, path)
    assert (code, [note["kind"] for note in report["notes"]]) == (0, ["blocks_unreachable"])
    assert read_all(path).num_blocks == report["blocks_live"] == NUM_BLOCKS - 5


def test_parents_in_a_circle(path: Path, capsys: Any) -> None:
    def change(entries: Any) -> None:
        entries["parent"][0] = entries["key"][7]

    rewrite(path, change)
    _, report = run_check(capsys, path)
    assert read_all(path).num_blocks == report["blocks_live"] == NUM_BLOCKS - 8


def test_rows_for_a_segment_that_cannot_be(path: Path, survive: Callable[..., Found]) -> None:
    def changed(rows: Rows) -> Rows:
        key = min(rows)
        entries = np.frombuffer(rows.pop(key)[16:], ENTRY)
        far = struct.pack(">II", 2**32 - 1, 2**32 - 1)
        return rows | {far: pack_row(far, 1, entries)}

    change_rows(path, changed)
    assert survive("segments_missing").dropped == 8


@pytest.mark.parametrize("text", [b"", b"{}", b"\xff\xfe rubbish", b"[" * 60_000, b'{"model":"even"}'])
def test_a_namespace_of_rubbish(path: Path, survive: Callable[..., Found], text: bytes, caplog: Any) -> None:
    change_rows(path, lambda names: names | {min(names): text}, b"namespaces")
    found = survive("namespaces_unreadable", "blocks_unknown")
    assert found == Found(NUM_BLOCKS // 2, 0, NUM_BLOCKS // 2)
    assert "namespace 1 on disk cannot be used" in caplog.text


def test_a_namespace_under_a_key_of_rubbish(path: Path, survive: Callable[..., Found]) -> None:
    def changed(names: Rows) -> Rows:
        text = names.pop(min(names))
        return names | {b"odd": text, bytes(4): text, b"\xff" * 4: text}

    change_rows(path, changed, b"namespaces")
    assert survive("namespaces_unreadable", "blocks_unknown").dropped == NUM_BLOCKS // 2


def test_usage_of_rubbish_does_no_harm(path: Path, capsys: Any) -> None:
    change_rows(path, lambda uses: uses | {b"odd": b"key", bytes(4): b"\xff" * 4001}, b"usage")
    code, report = run_check(capsys, path)
    assert (code, kinds_of(report)) == (1, {"uses_malformed": 2})
    assert read_all(path).num_blocks == NUM_BLOCKS
