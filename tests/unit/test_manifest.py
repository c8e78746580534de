"""The manifest file: rows, damage, versions. Formats as in docs/formats.md."""

from __future__ import annotations

import logging
import struct
import zlib
from pathlib import Path

import lmdb
import numpy as np
import pytest
from disk_helpers import MIB, make_entries, open_tier, read, recover, recovered_seeds, wait_until, write

from kvstore.errors import Unavailable
from kvstore.tiers.base import ENTRY, Entries, Outcome
from kvstore.tiers.changes import Clean, Forget, Name, Put, Use
from kvstore.tiers.manifest import Manifest, find_damage
from kvstore.tiers.manifest_rows import USE, Row, pack_row
from kvstore.tiers.recovery import last_uses, surviving_entries

NBYTES = 8192


def manifest_at(path: Path) -> Manifest:
    path.mkdir(exist_ok=True)
    manifest = Manifest(path, 16 * MIB, 0)
    if manifest.segment_nbytes is None:
        manifest.initialise(MIB, 0)
    return manifest


def placed(seeds: list[int], pages: int = 1) -> Entries:
    entries = make_entries(seeds)
    entries["offset"] = np.array(seeds) * pages
    entries["nbytes"] = pages * 4096
    return entries


def offsets(manifest: Manifest, segment: int) -> list[int]:
    return [int(offset) for row in manifest.rows(segment)[0] for offset in row.entries["offset"]]


def raw_rows(path: Path, change: dict[bytes, bytes | None]) -> dict[bytes, bytes]:
    """The rows as another program would see them, after putting (or, None, deleting) those of `change`."""
    with lmdb.open(str(path), max_dbs=4, lib_version=0) as env:
        rows = env.open_db(b"rows")
        with env.begin(db=rows, write=True) as txn:
            for key, value in change.items():
                txn.put(key, value) if value is not None else txn.delete(key)
            return {bytes(key): bytes(value) for key, value in txn.cursor()}


def test_a_row_is_what_the_document_says(tmp_path: Path) -> None:
    manifest = manifest_at(tmp_path)
    manifest.apply([Put(3, 9, placed([5, 6])), Put(3, 9, placed([7]))])
    manifest.close()
    [(key, value)] = raw_rows(tmp_path, {}).items()
    assert key == struct.pack(">II", 3, 0)
    seq, num_entries, crc = struct.unpack_from("<QII", value)
    assert (seq, num_entries, len(value)) == (9, 3, 16 + 3 * 96)
    assert crc == zlib.crc32(key + value[:12] + bytes(4) + value[16:])
    assert np.frombuffer(value[16:], ENTRY)["offset"].tolist() == [5, 6, 7]


def test_changes_of_one_group_leave_a_manifest_that_is_sound(tmp_path: Path) -> None:
    """What is put and shrinks in one transaction would keep pages it does not need, and be taken for damage."""
    manifest = manifest_at(tmp_path)
    gone = np.arange(40, dtype=np.uint32)
    uses = [Use(1, np.array([(seed, time_s) for seed in range(1000)], USE)) for time_s in (1, 2)]
    manifest.apply([Put(1, 1, placed(list(range(60)))), *uses, Forget(1, gone), Name(1, "x" * 9000), Name(1, "short")])
    manifest.apply([Put(2, 2, placed(list(range(60)))), Forget(2, np.arange(60, dtype=np.uint32))])
    assert offsets(manifest, 1) == list(range(40, 60)) and offsets(manifest, 2) == []
    assert manifest.namespaces() == {1: "short"} and set(manifest.uses(1)["last_used_s"].tolist()) == {2}
    manifest.close()
    assert find_damage(tmp_path) == ""


def test_changes_apply_in_order(tmp_path: Path) -> None:
    manifest = manifest_at(tmp_path)
    manifest.apply([Put(1, 1, placed([1, 2])), Forget(1, np.array([1], np.uint32)), Put(1, 1, placed([3]))])
    assert offsets(manifest, 1) == [2, 3]
    manifest.apply([Forget(1, np.array([2, 99], np.uint32)), Put(2, 2, placed([4]))])
    assert offsets(manifest, 1) == [3]
    manifest.apply([Put(1, 1, placed([8])), Use(1, np.array([(8, 5)], USE)), Clean(1), Put(2, 2, placed([6]))])
    assert offsets(manifest, 1) == [] and len(manifest.uses(1)) == 0
    assert offsets(manifest, 2) == [4, 6]
    assert manifest.segments() == [2] and manifest.seq == 2
    manifest.close()


def test_segments_come_in_the_order_they_were_opened(tmp_path: Path) -> None:
    manifest = manifest_at(tmp_path)
    manifest.apply([Put(7, 1, placed([1])), Put(2, 3, placed([1])), Put(300, 2, placed([1]))])
    assert manifest.segments() == [7, 300, 2]
    manifest.close()


def test_rows_that_cannot_be_right_are_dropped(tmp_path: Path) -> None:
    tier = open_tier(tmp_path)
    write(tier, range(3), NBYTES)
    tier.close()
    path = tmp_path / "manifest"
    [good] = raw_rows(path, {}).values()

    def row(batch: int, seq: int, entries: Entries) -> tuple[bytes, bytes]:
        made = struct.pack(">II", 0, batch)
        return made, pack_row(made, seq, entries)

    flipped = good[:40] + bytes([good[40] ^ 1]) + good[41:]
    outside = placed([0, 1], pages=200)  # the second ends behind the segment
    bad = {
        struct.pack(">II", 0, 1): good,  # under a key that is not its own
        struct.pack(">II", 0, 2): good[:-1],
        struct.pack(">II", 0, 3): flipped,
        struct.pack(">II", 0, 4): b"",
        b"odd": b"key",
        **dict([row(5, 0, placed([50]))]),  # of an earlier opening
        **dict([row(6, 1, outside[1:])]),
        **dict([row(7, 1, placed([60, 60]))]),  # two blocks in one place
    }
    raw_rows(path, bad)
    tier = open_tier(tmp_path)
    places, entries = recover(tier)
    assert places.tolist() == [0, 2, 4]
    assert tier.num_dropped == 5 + 1 + 2
    assert read(tier, places, entries)[0].tolist() == [Outcome.OK] * 3
    tier.close()


def test_a_segment_out_of_range_is_dropped(tmp_path: Path) -> None:
    tier = open_tier(tmp_path)
    write(tier, range(3), NBYTES)
    tier.close()
    key = struct.pack(">II", 0xFFFF_FFFF, 0)
    raw_rows(tmp_path / "manifest", {key: pack_row(key, 1, placed([1]))})
    tier = open_tier(tmp_path)
    assert recovered_seeds(tier) == [0, 1, 2] and tier.num_dropped == 1
    tier.close()
    assert len(raw_rows(tmp_path / "manifest", {})) == 1


def test_overlapping_entries_are_all_dropped() -> None:
    entries = placed([0, 10, 20, 30], pages=1)
    entries["nbytes"][1] = 4096 * 11  # reaches into the third
    entries["nbytes"][3] = 0
    kept, num_dropped = surviving_entries([Row(0, 1, entries)], 256)
    assert kept["offset"].tolist() == [0] and num_dropped == 3
    assert surviving_entries([], 256)[1] == 0


def test_last_use_is_never_before_the_write() -> None:
    entries = placed([1, 2, 3])
    entries["time_s"] = 100
    uses = np.array([(3, 50), (2, 200)], dtype=[("offset", "<u4"), ("last_used_s", "<u4")])
    assert last_uses(entries, uses).tolist() == [100, 200, 100]


@pytest.mark.parametrize("how", ["truncated", "zeroed", "garbage", "empty"])
def test_a_damaged_manifest_is_set_aside(tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture) -> None:
    tier = open_tier(tmp_path, time_s=lambda: 77.0)
    for seed in range(30):
        write(tier, [seed], NBYTES)
        tier.flush().result(60)
    tier.close()
    data = tmp_path / "manifest" / "data.mdb"
    before = data.read_bytes()
    damaged = {
        "truncated": before[: len(before) // 2],
        "zeroed": before[:8192] + bytes(len(before) - 8192),
        "garbage": b"\xaa" * len(before),
        "empty": b"",
    }[how]
    data.write_bytes(damaged)
    with caplog.at_level(logging.WARNING):
        tier = open_tier(tmp_path, time_s=lambda: 77.0)
    assert "is damaged" in caplog.text and "manifest.damaged-77" in caplog.text
    assert recovered_seeds(tier) == []
    write(tier, range(100), NBYTES)
    tier.close()
    assert (tmp_path / "manifest.damaged-77" / "data.mdb").read_bytes() == damaged
    tier = open_tier(tmp_path)
    assert recovered_seeds(tier) == list(range(100))
    tier.close()


def test_any_flipped_bit_is_found_or_harmless(tmp_path: Path) -> None:
    tier = open_tier(tmp_path)
    _, entries = write(tier, range(40), NBYTES)
    tier.close()
    good = {entry.tobytes() for entry in entries}
    data = tmp_path / "manifest" / "data.mdb"
    whole = data.read_bytes()
    random = np.random.default_rng(1)
    for position in random.choice(len(whole), 60, replace=False).tolist():
        flipped = bytearray(whole)
        flipped[position] ^= 1 << int(random.integers(8))
        data.write_bytes(flipped)
        (tmp_path / "manifest" / "lock.mdb").unlink(missing_ok=True)
        try:
            tier = open_tier(tmp_path)
        except Unavailable as error:
            assert "format" in str(error), position
            continue
        assert {entry.tobytes() for entry in recover(tier)[1]} <= good, position
        tier.close()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (b"segment_nbytes", struct.pack("<Q", MIB + 1)),
        (b"segment_nbytes", struct.pack("<Q", 1 << 40)),
        (b"segment_nbytes", None),
        (b"seq", b"\xff" * 8),
        (b"seq", b"\xff"),
        (b"format", b""),
    ],
)
def test_meta_records_that_cannot_be_are_damage(
    tmp_path: Path, name: bytes, value: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    tier = open_tier(tmp_path)
    write(tier, range(3), NBYTES)
    tier.close()
    with lmdb.open(str(tmp_path / "manifest"), max_dbs=4, lib_version=0) as env, env.begin(write=True) as txn:
        meta = env.open_db(b"meta", txn=txn)
        txn.put(name, value, db=meta) if value is not None else txn.delete(name, db=meta)
    tier = open_tier(tmp_path)
    assert "its meta records are" in caplog.text and tier.num_dropped == 1
    assert recovered_seeds(tier) == []
    write(tier, range(40), 10 * NBYTES)
    tier.close()
    tier = open_tier(tmp_path)
    assert recovered_seeds(tier) == list(range(40)) and tier.num_dropped == 0
    tier.close()


def test_a_newer_format_is_refused_by_name_and_left_alone(tmp_path: Path) -> None:
    tier = open_tier(tmp_path)
    write(tier, range(3), NBYTES)
    tier.close()
    path = tmp_path / "manifest"
    with lmdb.open(str(path), max_dbs=4, lib_version=0) as env, env.begin(write=True) as txn:
        txn.put(b"format", struct.pack("<I", 2), db=env.open_db(b"meta", txn=txn))
    before = (path / "data.mdb").read_bytes()
    with pytest.raises(Unavailable, match="manifest format 2; this version reads and writes format 1 only"):
        open_tier(tmp_path)
    assert (path / "data.mdb").read_bytes() == before
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["lock", "manifest", "segments"]


def test_the_engine_and_its_file_format_are_pinned(tmp_path: Path) -> None:
    manifest = manifest_at(tmp_path)
    assert manifest._env.lib_version()[:2] == (0, 9)
    assert struct.unpack_from("<I", (tmp_path / "data.mdb").read_bytes(), 20) == (1,)
    manifest.close()


def test_an_idle_tier_does_not_grow(tmp_path: Path) -> None:
    tier = open_tier(tmp_path)
    for _ in range(50):
        places, _ = write(tier, range(64), 16 * NBYTES)
        tier.free(places, 16 * NBYTES)
    wait_until(lambda: tier._table.num_ready >= 2)
    tier.flush().result(60)
    tier.close()
    assert (tmp_path / "manifest" / "data.mdb").stat().st_size < MIB
