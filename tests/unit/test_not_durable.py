"""A disk tier whose device or manifest refuses to make blocks durable: it says so, and forgets none of it too early."""

from __future__ import annotations

from pathlib import Path

import pytest
from disk_helpers import (
    MIB,
    content,
    make_entries,
    open_tier,
    recovered_seeds,
    wait_until,
    write,
)

from kvstore.errors import Unavailable
from kvstore.tiers.base import Outcome
from kvstore.tiers.geometry import PLACES_PER_SEGMENT

NBYTES = 60 << 10


def test_flush_says_so_when_nothing_can_be_made_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(segment: int) -> None:
        raise OSError(5, "Input/output error")

    tier = open_tier(tmp_path)
    wait_until(lambda: tier._table.num_ready >= 2)
    lost, _ = write(tier, range(1), NBYTES)
    with monkeypatch.context() as patch:
        patch.setattr(tier._journal, "_sync", refuse)
        with pytest.raises(Unavailable, match=r"not durable: sync of segment 0: Input/output error"):
            tier.flush().result(60)
    kept, _ = write(tier, range(1, 2), NBYTES)
    with pytest.raises(Unavailable, match="sync of segment 0"):  # as long as the first lives there
        tier.flush().result(60)
    assert tier.usage().doubtful and tier.vacate(NBYTES) == (0, PLACES_PER_SEGMENT * MIB // (256 * MIB))
    assert kept[0] // PLACES_PER_SEGMENT != 0
    tier.free(lost, NBYTES, forget=True)
    assert not tier.usage().doubtful
    tier.flush().result(60)
    tier.close()
    tier = open_tier(tmp_path)
    assert recovered_seeds(tier) == [1]  # nobody knows what became of the first, so it has no row
    tier.close()


def test_what_was_under_way_when_a_sync_failed_is_not_trusted_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its write ended before the sync that failed, its row was to come after."""
    tier = open_tier(tmp_path)
    wait_until(lambda: tier._table.num_ready >= 2)
    places = tier.allocate(NBYTES, 2)
    entries = make_entries([0, 1])
    second = places[1:], entries[1:], [memoryview(content(1, NBYTES))]
    real = tier._files.sync

    def write_another_and_fail(segment: int) -> None:
        monkeypatch.setattr(tier._journal, "_sync", real)
        assert tier.write(*second).result(60).tolist() == [Outcome.OK]
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(tier._journal, "_sync", write_another_and_fail)
    assert tier.write(places[:1], entries[:1], [memoryview(content(0, NBYTES))]).result(60).tolist() == [Outcome.OK]
    for _ in range(2):
        with pytest.raises(Unavailable, match="sync of segment 0"):
            tier.flush().result(60)
    tier.close()
    tier = open_tier(tmp_path)
    assert recovered_seeds(tier) == []
    tier.close()


def test_a_failed_commit_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tier = open_tier(tmp_path)
    real, num_calls = tier._manifest._put_row, 0

    def fail_once(*args: object) -> None:
        nonlocal num_calls
        num_calls += 1
        if num_calls == 1:
            import lmdb

            raise lmdb.MapFullError("full")
        real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(tier._manifest, "_put_row", fail_once)
    write(tier, range(3), NBYTES)
    with pytest.raises(Unavailable, match="full"):
        tier.flush().result(60)
    tier.flush().result(60)
    tier.close()
    tier = open_tier(tmp_path)
    assert recovered_seeds(tier) == [0, 1, 2]
    tier.close()
