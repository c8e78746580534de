"""What kvstore.tiers.base promises, held against every tier."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from disk_helpers import wait_until
from tier_makers import DURABLE, IO_THREADS, KIB, MIB, NAMES, content, contents, entries_for, load, maker, state, store

from kvstore.errors import InvalidRequest
from kvstore.hashing import xxh3_64
from kvstore.tiers.base import PLACE_NBYTES, DurableTier, Outcome

NBYTES = 60 * KIB + 17  # 16 places with a tail
SLOT = 16 * PLACE_NBYTES
SIZES = (1, PLACE_NBYTES, PLACE_NBYTES + 1, NBYTES, 300 * KIB, MIB)
PAST_US = 1
CLOSED, TIMEOUT, CORRUPT, OK = Outcome.CLOSED, Outcome.TIMEOUT, Outcome.CORRUPT, Outcome.OK


@pytest.fixture(params=NAMES)
def make(request, tmp_path, monkeypatch):
    made = []

    def one() -> Any:
        made.append(factory())
        return made[-1]

    factory = maker(request.param, tmp_path, monkeypatch)
    yield one
    for tier in made:
        tier.close()


@pytest.fixture
def tier(make):
    made = make()
    if isinstance(made, DurableTier):
        made.adopt(np.empty(0, np.uint32), np.empty(0, np.uint32))
    return made


def fill_up(tier: Any, nbytes: int) -> np.ndarray:
    """Every place of this size that is to be had."""
    pieces = []
    while len(pieces) == 0 or len(pieces[-1]):
        pieces.append(tier.allocate(nbytes, 1000))
    return np.concatenate(pieces)


def spans(places: np.ndarray, nbytes: int) -> set[int]:
    pages = -(-nbytes // PLACE_NBYTES)
    return {int(place) + page for place in places for page in range(pages)}


# ---- allocate and free


def test_a_new_tier_is_empty_and_healthy(tier):
    usage = tier.usage()
    assert (usage.num_blocks, usage.used_nbytes, usage.healthy, usage.reason) == (0, 0, True, "")
    assert usage.capacity_nbytes >= 4 * MIB


@pytest.mark.parametrize("nbytes", SIZES)
def test_places_count_rounded_up_until_they_are_freed(tier, nbytes):
    places = tier.allocate(nbytes, 3)
    assert places.dtype == np.uint32 and len(places) == 3
    assert state(tier) == (3, 3 * -(-nbytes // PLACE_NBYTES) * PLACE_NBYTES)
    tier.free(places[1:], nbytes)
    assert state(tier) == (1, -(-nbytes // PLACE_NBYTES) * PLACE_NBYTES)
    tier.free(places[:1], nbytes)
    assert state(tier) == (0, 0)


@pytest.mark.parametrize("nbytes", SIZES)
def test_the_capacity_is_a_limit_that_can_be_reached(tier, nbytes):
    places = fill_up(tier, nbytes)
    usage = tier.usage()
    assert usage.num_blocks == len(places) > 0 and usage.used_nbytes <= usage.capacity_nbytes
    assert usage.used_nbytes > usage.capacity_nbytes * 3 // 4
    assert len(tier.allocate(nbytes, 1)) == 0
    tier.free(places, nbytes)
    assert state(tier) == (0, 0)


def test_nothing_is_allocated_for_no_blocks(tier):
    assert len(tier.allocate(NBYTES, 0)) == 0 and state(tier) == (0, 0)


@pytest.mark.parametrize(("nbytes", "num_blocks"), [(0, 1), (-1, 1), (NBYTES, -1)])
def test_sizes_that_make_no_sense_are_refused(tier, nbytes, num_blocks):
    with pytest.raises(InvalidRequest):
        tier.allocate(nbytes, num_blocks)
    assert state(tier) == (0, 0)


def test_no_place_is_given_out_twice_while_it_is_in_use(tier):
    rng = np.random.default_rng(11)
    held: list[tuple[np.ndarray, int]] = []
    for _ in range(300):
        if held and rng.random() < 0.45:
            places, nbytes = held.pop(int(rng.integers(len(held))))
            tier.free(places, nbytes)
            continue
        nbytes = int(rng.choice(SIZES[:5]))
        places = tier.allocate(nbytes, int(rng.integers(1, 9)))
        # The places of a memory tier are numbers without a location: only the numbers have to differ.
        size_of = dict.fromkeys if tier.name == "memory" else spans
        taken = set().union(*(size_of(other.tolist(), size) for other, size in held))
        assert not taken & set(size_of(places.tolist(), nbytes)) and len(set(places.tolist())) == len(places)
        if len(places):
            held.append((places, nbytes))
        usage = tier.usage()
        expected = sum(len(other) * -(-size // PLACE_NBYTES) * PLACE_NBYTES for other, size in held)
        assert (usage.num_blocks, usage.used_nbytes) == (sum(len(other) for other, _ in held), expected)


@pytest.mark.parametrize("wrong", ["twice in one call", "twice in two calls", "other size", "never given out"])
def test_a_wrong_free_is_refused_and_frees_nothing(tier, wrong):
    places = tier.allocate(NBYTES, 4)
    gone = tier.allocate(NBYTES, 1)
    tier.free(gone, NBYTES)
    bad, nbytes = {
        "twice in one call": (np.concatenate([places, places[:1]]), NBYTES),
        "twice in two calls": (np.concatenate([places, gone]), NBYTES),
        "other size": (places, 2 * NBYTES),
        "never given out": (np.append(places, np.uint32(places.max() + 100)), NBYTES),
    }[wrong]
    with pytest.raises(InvalidRequest):
        tier.free(bad, nbytes)
    assert state(tier) == (4, 4 * SLOT)
    tier.free(places, NBYTES)


# ---- write and read


@pytest.mark.parametrize("nbytes", SIZES)
def test_what_was_written_is_read_and_verified(tier, nbytes):
    places, entries = store(tier, range(3), nbytes)
    assert (entries["nbytes"] == nbytes).all()
    assert entries["checksum"].tolist() == [xxh3_64(content(seed, nbytes)) for seed in range(3)]
    outcomes, blocks = load(tier, places, entries["checksum"], nbytes)
    assert outcomes.tolist() == [OK] * 3 and blocks == [content(seed, nbytes) for seed in range(3)]


def test_blocks_of_different_sizes_lie_beside_each_other(tier):
    stored = [(nbytes, range(10 * at, 10 * at + 2)) for at, nbytes in enumerate(SIZES[:5])]
    written = [(nbytes, seeds, *store(tier, seeds, nbytes)) for nbytes, seeds in stored]
    for nbytes, seeds, places, entries in written:
        outcomes, blocks = load(tier, places, entries["checksum"], nbytes)
        assert outcomes.tolist() == [OK] * 2 and blocks == [content(seed, nbytes) for seed in seeds]


def test_what_the_tier_is_told_of_a_block_it_leaves_alone(tier):
    before = entries_for(range(2))
    _, entries = store(tier, range(2), NBYTES)
    for name in ("key", "parent", "num_tokens", "namespace", "flags"):
        assert (entries[name] == before[name]).all()


def test_only_the_block_with_a_wrong_checksum_is_corrupt(tier):
    places, entries = store(tier, range(5), NBYTES)
    checksums = entries["checksum"].astype(np.uint64)
    checksums[2] ^= np.uint64(1)
    outcomes, blocks = load(tier, places, checksums, NBYTES)
    assert outcomes.tolist() == [OK, OK, CORRUPT, OK, OK]
    assert [blocks[at] for at in (0, 1, 3, 4)] == [content(seed, NBYTES) for seed in (0, 1, 3, 4)]


@pytest.mark.parametrize("nbytes", [NBYTES - 1, NBYTES + 1, 100])
def test_a_block_read_with_another_length_is_corrupt(tier, nbytes):
    places, entries = store(tier, range(2), NBYTES)
    assert load(tier, places, entries["checksum"], nbytes)[0].tolist() == [CORRUPT] * 2


def test_a_place_can_be_written_again(tier):
    places, _ = store(tier, range(2), NBYTES)
    entries = entries_for(range(50, 52))
    assert tier.write(places, entries, contents(range(50, 52), NBYTES)).result(60).tolist() == [OK] * 2
    outcomes, blocks = load(tier, places, entries["checksum"], NBYTES)
    assert outcomes.tolist() == [OK] * 2 and blocks == [content(seed, NBYTES) for seed in (50, 51)]


def test_a_batch_may_be_larger_than_there_are_threads(tier):
    num = 16 * IO_THREADS + 1
    places, entries = store(tier, range(num), NBYTES)
    outcomes, blocks = load(tier, places, entries["checksum"], NBYTES)
    assert outcomes.tolist() == [OK] * num and blocks == [content(seed, NBYTES) for seed in range(num)]


def test_an_empty_batch_is_done(tier):
    none = np.empty(0, np.uint32)
    assert len(tier.write(none, entries_for(range(0)), []).result(60)) == 0
    assert len(tier.read(none, np.empty(0, np.uint64), []).result(60)) == 0


# ---- what is refused


def bad_buffers(kind: str, good: bytearray) -> list[Any]:
    return {
        "one too few": [memoryview(good)],
        "one too many": [memoryview(good)] * 3,
        "empty": [memoryview(good), memoryview(b"")],
        "no buffer": [memoryview(good), "text"],
        "with gaps": [memoryview(good), memoryview(good)[::2]],
    }[kind]


@pytest.mark.parametrize("kind", ["one too few", "one too many", "empty", "no buffer", "with gaps"])
def test_wrong_buffers_are_refused_and_nothing_changes(tier, kind):
    places, entries = store(tier, range(2), NBYTES)
    before, fresh = entries.copy(), bytearray(b"\xaa" * NBYTES)
    with pytest.raises(InvalidRequest):
        tier.write(places, entries, bad_buffers(kind, fresh))
    with pytest.raises(InvalidRequest):
        tier.read(places, entries["checksum"].astype(np.uint64), bad_buffers(kind, fresh))
    assert (entries == before).all() and fresh == b"\xaa" * NBYTES
    assert load(tier, places, entries["checksum"], NBYTES)[1] == [content(seed, NBYTES) for seed in range(2)]


def test_a_block_that_its_place_was_not_allocated_for_is_refused_and_its_neighbour_is_safe(tier):
    places, entries = store(tier, range(3), NBYTES)
    changed = entries_for(range(3))
    for nbytes in (SLOT + 1, 3 * SLOT, SLOT - PLACE_NBYTES):
        with pytest.raises(InvalidRequest):
            tier.write(places[:2], changed[:2], [memoryview(bytes(NBYTES)), memoryview(bytes(nbytes))])
    assert (changed == entries_for(range(3))).all()
    assert load(tier, places, entries["checksum"], NBYTES)[1] == [content(seed, NBYTES) for seed in range(3)]


def test_a_write_to_a_freed_place_is_refused(tier):
    places, _ = store(tier, range(2), NBYTES)
    tier.free(places[:1], NBYTES)
    with pytest.raises(InvalidRequest):
        tier.write(places, entries_for(range(2)), contents(range(2), NBYTES))
    assert state(tier) == (1, SLOT)


def test_read_only_buffers_cannot_be_read_into(tier):
    places, entries = store(tier, range(1), NBYTES)
    with pytest.raises(InvalidRequest):
        tier.read(places, entries["checksum"].astype(np.uint64), [memoryview(bytes(NBYTES))])


@pytest.mark.parametrize("places", [[0, 1], np.zeros(2, np.int64), np.zeros((2, 1), np.uint32), np.zeros(3, np.uint32)])
def test_places_that_are_no_vector_of_one_per_buffer_are_refused(tier, places):
    buffers = [memoryview(bytearray(NBYTES)) for _ in range(2)]
    with pytest.raises(InvalidRequest):
        tier.write(places, entries_for(range(2)), buffers)
    with pytest.raises(InvalidRequest):
        tier.read(places, np.zeros(2, np.uint64), buffers)


def test_entries_and_checksums_of_another_kind_are_refused(tier):
    places = tier.allocate(NBYTES, 2)
    frozen = entries_for(range(2))
    frozen.flags.writeable = False
    for entries in (frozen, entries_for(range(1)), np.zeros(2, np.uint64)):
        with pytest.raises(InvalidRequest):
            tier.write(places, entries, contents(range(2), NBYTES))
    buffers = [memoryview(bytearray(NBYTES)) for _ in range(2)]
    for checksums in (np.zeros(1, np.uint64), np.zeros(2, np.int64), [1, 2]):
        with pytest.raises(InvalidRequest):
            tier.read(places, checksums, buffers)


# ---- deadlines, threads


def test_past_the_deadline_every_block_times_out(tier):
    places, entries = store(tier, range(7), NBYTES)
    outcomes, _ = load(tier, places, entries["checksum"], NBYTES, deadline_us=PAST_US)
    assert outcomes.tolist() == [TIMEOUT] * 7
    late = tier.write(places, entries_for(range(20, 27)), contents(range(20, 27), NBYTES), deadline_us=PAST_US)
    assert late.result(60).tolist() == [TIMEOUT] * 7
    outcomes, blocks = load(tier, places, entries["checksum"], NBYTES, deadline_us=1 << 60)
    assert outcomes.tolist() == [OK] * 7 and blocks == [content(seed, NBYTES) for seed in range(7)]


def test_several_threads_write_and_read_at_once(tier):
    num_threads, per_thread = 4, 6
    places = [tier.allocate(NBYTES, per_thread) for _ in range(num_threads)]
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(5):
                seeds = range(100 * number + turn, 100 * number + turn + per_thread)
                entries = entries_for(seeds)
                written = tier.write(places[number], entries, contents(seeds, NBYTES)).result(60)
                assert written.tolist() == [OK] * per_thread
                outcomes, blocks = load(tier, places[number], entries["checksum"], NBYTES)
                assert outcomes.tolist() == [OK] * per_thread
                assert blocks == [content(seed, NBYTES) for seed in seeds]
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(num_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert state(tier) == (num_threads * per_thread, num_threads * per_thread * SLOT)


# ---- making room


def test_an_emptied_range_makes_room_for_another_size(tier):
    """Every other small block is freed; then ranges are emptied as the tier says until a large block fits."""
    small, large = fill_up(tier, NBYTES), MIB
    tier.free(small[::2], NBYTES)
    live = {int(place) for place in small[1::2]}
    for _ in range(64):
        places = tier.allocate(large, 1)
        if len(places):
            break
        window = tier.vacate(large)
        if window is None:
            tier.flush().result(60)  # a durable tier may first have to make an emptied range durable
            continue
        inside = np.array(sorted(place for place in live if window[0] <= place < window[1]), dtype=np.uint32)
        tier.free(inside, NBYTES)
        live -= set(inside.tolist())
    assert len(places) == 1
    assert len(live) > len(small) // 8  # not by emptying everything


def test_blocks_on_the_move_find_a_place_in_a_full_tier(tier):
    """Carried out of the range that the tier names, they can be read at their new place."""
    places = fill_up(tier, NBYTES)
    entries = entries_for(range(len(places)))
    assert not tier.write(places, entries, contents(range(len(places)), NBYTES)).result(60).any()
    tier.free(places[::2], NBYTES)
    seeds = {int(places[at]): at for at in range(1, len(places), 2)}
    window = tier.vacate(NBYTES)
    inside = [place for place in seeds if window is not None and window[0] <= place < window[1]]
    for old in inside:
        new = tier.allocate(NBYTES, 1, moving=True)
        assert len(new) == 1
        moved = entries_for(range(seeds[old], seeds[old] + 1))
        assert not tier.write(new, moved, contents(range(seeds[old], seeds[old] + 1), NBYTES)).result(60).any()
        tier.free(np.array([old], np.uint32), NBYTES)
        assert load(tier, new, moved["checksum"], NBYTES)[1] == [content(seeds[old], NBYTES)]
    assert tier.usage().num_blocks == len(seeds)


def test_no_range_has_to_be_emptied_while_there_is_room(tier):
    tier.allocate(NBYTES, 4)
    assert tier.vacate(NBYTES) is None
    with pytest.raises(InvalidRequest):
        tier.vacate(0)


# ---- the end


def test_flush_ends_and_can_be_repeated(tier):
    store(tier, range(3), NBYTES)
    assert tier.flush().result(60) is None and tier.flush().result(60) is None


def test_a_closed_tier_answers_closed_and_nothing_hangs(tier):
    places, entries = store(tier, range(5), NBYTES)
    tier.close()
    tier.close()
    usage = tier.usage()
    assert not usage.healthy and usage.reason == "closed"
    assert load(tier, places, entries["checksum"], NBYTES)[0].tolist() == [CLOSED] * 5
    assert load(tier, places, entries["checksum"], NBYTES, deadline_us=PAST_US)[0].tolist() == [CLOSED] * 5
    written = tier.write(places, entries_for(range(5)), contents(range(5), NBYTES)).result(60)
    assert written.tolist() == [CLOSED] * 5
    assert len(tier.allocate(NBYTES, 3)) == 0
    tier.free(places, NBYTES)
    assert tier.vacate(NBYTES) is None
    tier.flush().result(60)


def test_batches_under_way_at_the_end_are_answered(tier):
    places = tier.allocate(NBYTES, 48)
    futures = [
        tier.write(places[first : first + 8], entries_for(range(8)), contents(range(8), NBYTES))
        for first in range(0, 48, 8)
    ]
    tier.close()
    for future in futures:
        assert set(future.result(60).tolist()) <= {OK, CLOSED}


# ---- tiers whose blocks outlive the process


@pytest.fixture(params=DURABLE)
def open_durable(request, tmp_path, monkeypatch):
    made = []
    factory = maker(request.param, tmp_path, monkeypatch)

    def one() -> Any:
        made.append(factory())
        assert isinstance(made[-1], DurableTier)
        return made[-1]

    yield one
    for tier in made:
        tier.close()


def recovered(tier: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    parts = list(tier.recover())
    if not parts:
        return np.empty(0, np.uint32), entries_for(range(0)), np.empty(0, np.uint32)
    return tuple(np.concatenate(column) for column in zip(*parts, strict=True))  # type: ignore[return-value]


def fresh(open_durable: Any) -> Any:
    tier = open_durable()
    assert tier.namespaces() == {} and len(recovered(tier)[0]) == 0
    tier.adopt(np.empty(0, np.uint32), np.empty(0, np.uint32))
    return tier


def test_blocks_and_namespaces_come_back_as_they_were(open_durable):
    tier = fresh(open_durable)
    tier.remember_namespace(7, '{"model":"ä"}')
    places, entries = store(tier, range(5), NBYTES)
    large, large_entries = store(tier, range(5, 7), 300 * KIB)
    tier.close()
    tier = open_durable()
    found, rows, last_used_s = recovered(tier)
    assert tier.namespaces() == {7: '{"model":"ä"}'}
    assert found.tolist() == [*places.tolist(), *large.tolist()]  # in the order in which they were written
    assert rows.tobytes() == np.concatenate([entries, large_entries]).tobytes()
    assert (last_used_s >= rows["time_s"]).all() and (rows["time_s"] > 0).all()
    tier.adopt(found, np.ascontiguousarray(rows["nbytes"]))
    assert state(tier) == (7, 5 * SLOT + 2 * 75 * PLACE_NBYTES)
    assert load(tier, places, rows["checksum"][:5], NBYTES)[1] == [content(seed, NBYTES) for seed in range(5)]
    assert not spans(tier.allocate(NBYTES, 20), NBYTES) & (spans(places, NBYTES) | spans(large, 300 * KIB))


def test_what_was_not_adopted_is_free_space_and_gone(open_durable):
    tier = fresh(open_durable)
    places, _ = store(tier, range(6), NBYTES)
    tier.close()
    tier = open_durable()
    found, rows, _ = recovered(tier)
    tier.adopt(found[:2], np.ascontiguousarray(rows["nbytes"][:2]))
    assert state(tier) == (2, 2 * SLOT)
    with pytest.raises(InvalidRequest):
        tier.free(places[2:3], NBYTES)
    tier.free(places[:2], NBYTES)
    wait_until(lambda: len(tier.allocate(MIB, 100)) >= 0 and tier.usage().used_nbytes == tier.usage().capacity_nbytes)


def test_a_forgotten_block_does_not_come_back(open_durable):
    tier = fresh(open_durable)
    places, _ = store(tier, range(4), NBYTES)
    tier.flush().result(60)
    tier.free(places[1:3], NBYTES, forget=True)
    tier.flush().result(60)
    tier.close()
    assert recovered(open_durable())[0].tolist() == [int(places[0]), int(places[3])]


def test_adopting_what_was_not_recovered_changes_nothing(open_durable):
    tier = fresh(open_durable)
    store(tier, range(2), NBYTES)
    tier.close()
    tier = open_durable()
    found, rows, _ = recovered(tier)
    nbytes = np.ascontiguousarray(rows["nbytes"])
    with pytest.raises(InvalidRequest):
        tier.adopt(np.append(found, np.uint32(1 << 30)), np.append(nbytes, nbytes[:1]))
    with pytest.raises(InvalidRequest):
        tier.adopt(np.concatenate([found, found]), np.concatenate([nbytes, nbytes]))
    assert state(tier) == (0, 0)
    tier.adopt(found, nbytes)
    assert state(tier) == (2, 2 * SLOT)


def test_the_largest_block_fits_and_no_larger_one(open_durable):
    tier = fresh(open_durable)
    places, entries = store(tier, range(1), tier.block_nbytes_max)
    assert load(tier, places, entries["checksum"], tier.block_nbytes_max)[0].tolist() == [OK]
