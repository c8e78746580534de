"""Arenas: slots of several sizes in one region, and windows that keep what they show."""

import gc

import numpy as np
import pytest

from kvstore._core.arena import ARENA_NBYTES_MAX, BLOCK_NBYTES_MAX, PAGE_KINDS, Arena
from kvstore.errors import InvalidRequest, LeaseExpired, Unavailable

CHUNK = 2 << 20
PAGE = 4096


@pytest.fixture
def arena():
    made = Arena(4 * CHUNK, base_pages=True)
    yield made
    assert made.check() == 0


@pytest.mark.parametrize("nbytes", [1, PAGE, PAGE + 1, 64 << 10, (64 << 10) + 1, CHUNK // 3, CHUNK, CHUNK + 1])
def test_slots_fill_the_arena_and_do_not_overlap(arena, nbytes):
    slot_pages = -(-nbytes // PAGE)
    places = arena.allocate(nbytes, 1 << 20)
    assert len(places) == arena.num_blocks >= 1
    assert arena.used_nbytes == len(places) * slot_pages * PAGE <= arena.nbytes
    covered = (places[:, None] + np.arange(slot_pages, dtype=np.uint32)).ravel()
    assert len(np.unique(covered)) == len(covered) and covered.max() * PAGE < arena.nbytes
    assert len(arena.allocate(nbytes, 1)) == 0 and arena.num_free(nbytes) == 0
    arena.free(places, nbytes)
    assert (arena.used_nbytes, arena.num_blocks) == (0, 0)
    assert arena.num_free(nbytes) == len(places)


@pytest.mark.parametrize(("nbytes", "num_blocks"), [(PAGE, 2048), (64 << 10, 128), (CHUNK, 4), (4 * CHUNK, 1)])
def test_slots_of_these_sizes_waste_nothing(arena, nbytes, num_blocks):
    assert arena.num_free(nbytes) == num_blocks == len(arena.allocate(nbytes, num_blocks + 1))


def test_what_a_slot_rounds_up_to_is_one_class(arena):
    before = arena.num_free(PAGE)
    places = arena.allocate(PAGE - 1, 3)
    assert arena.num_free(PAGE) == before - 3
    arena.free(places, PAGE)
    assert arena.num_free(PAGE) == arena.num_free(PAGE - 1) == before


def test_memory_moves_between_sizes(arena):
    small = arena.allocate(PAGE, 4 * 512)
    assert len(small) == 2048 and len(arena.allocate(CHUNK, 1)) == 0
    arena.free(small[:512], PAGE)
    large = arena.allocate(CHUNK, 4)
    assert len(large) == 1
    arena.free(large, CHUNK)
    assert len(arena.allocate(PAGE, 4096)) == 512


def test_the_cheapest_range_to_empty_is_named(arena):
    places = arena.allocate(PAGE, 2048)
    by_chunk = places // 512
    assert arena.vacate(PAGE) is None  # full of its own size: to empty a chunk would not help
    arena.free(places[by_chunk == 2][:300], PAGE)
    arena.free(places[by_chunk == 1][:100], PAGE)
    assert arena.vacate(CHUNK) == (2 * 512, 3 * 512)
    assert arena.vacate(PAGE) is None  # there is room already
    first, last = arena.vacate(CHUNK)
    rest = places[by_chunk == 2][300:]
    assert ((rest >= first) & (rest < last)).all()
    arena.free(rest, PAGE)
    assert arena.vacate(CHUNK) is None and len(arena.allocate(CHUNK, 1)) == 1


@pytest.mark.parametrize("wrong", ["twice", "freed before", "never", "inside a slot", "of another size", "outside"])
def test_a_wrong_free_changes_nothing(arena, wrong):
    places, others = arena.allocate(2 * PAGE, 4), arena.allocate(CHUNK, 1)
    if wrong == "freed before":
        arena.free(places[3:], 2 * PAGE)
    bad = {
        "twice": places[[0, 1, 1]],
        "freed before": places[[0, 3]],
        "never": np.append(places[:1], places[3] + np.uint32(2)),
        "inside a slot": places[:2] + np.uint32(1),
        "of another size": np.append(places[:1], others),
        "outside": np.array([2**32 - 1], np.uint32),
    }[wrong]
    before = (arena.used_nbytes, arena.num_blocks, arena.num_free(2 * PAGE), arena.num_free(CHUNK))
    with pytest.raises(InvalidRequest, match=f"a place among {len(bad)}"):
        arena.free(bad, 2 * PAGE)
    assert (arena.used_nbytes, arena.num_blocks, arena.num_free(2 * PAGE), arena.num_free(CHUNK)) == before
    assert arena.check() == 0
    arena.free(places[:3], 2 * PAGE)


@pytest.mark.parametrize("nbytes", [0, -1, BLOCK_NBYTES_MAX + 1, 2**70, 1.5, "4096", True, None])
def test_sizes_of_blocks_are_checked(arena, nbytes):
    for call in (
        lambda: arena.allocate(nbytes, 1),
        lambda: arena.free(np.empty(0, np.uint32), nbytes),
        lambda: arena.vacate(nbytes),
        lambda: arena.num_free(nbytes),
    ):
        with pytest.raises(InvalidRequest, match=rf"nbytes=.* between 1 and {BLOCK_NBYTES_MAX}"):
            call()
    with pytest.raises(InvalidRequest, match="num_blocks=-1"):
        arena.allocate(PAGE, -1)


def test_sizes_of_an_arena_are_checked():
    for nbytes in (0, -1, ARENA_NBYTES_MAX + 1, 1.5, "1", True, None):
        with pytest.raises(InvalidRequest, match=rf"arena nbytes=.* between 1 and {ARENA_NBYTES_MAX}"):
            Arena(nbytes)
    assert Arena(1).nbytes == CHUNK and Arena(CHUNK + 1).nbytes == 2 * CHUNK


def test_memory_that_cannot_be_had_names_how_much_there_is():
    with pytest.raises(Unavailable, match=r"8796093022208 bytes of memory cannot be had .*; \d+ bytes are available"):
        Arena(8 << 40)


def test_there_is_a_limit_of_sizes(arena):
    for pages in range(1, 257):
        arena.num_free(pages * PAGE)
    with pytest.raises(InvalidRequest, match="at most 256 different sizes"):
        arena.num_free(257 * PAGE)
    arena.num_free(5 * PAGE)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("base_pages", [False, True])
def test_the_arena_says_what_pages_it_got(shared, base_pages):
    arena = Arena(2 * CHUNK, shared=shared, base_pages=base_pages)
    assert arena.page_kind in PAGE_KINDS
    assert bool(arena.fallback_reason) == (arena.page_kind == "base")
    if base_pages:
        assert (arena.page_kind, arena.fallback_reason) == ("base", "4 KiB pages were asked for")
    if shared:
        assert arena.fileno >= 0 and arena.page_kind != "thp-private"
    arena.prefault()
    assert arena.prefaulted_nbytes == arena.nbytes
    arena.close()
    arena.close()


# ---- windows ----


def test_windows_show_and_count(arena):
    places = arena.allocate(PAGE, 3)
    writing = arena.window(places, 100, readonly=False, offset=8)
    for number, view in enumerate(writing.views):
        view[:] = bytes([number]) * 100
    assert arena.exports == 3
    assert writing.close() == 0 and arena.exports == 0
    reading = arena.window(places, PAGE, readonly=True)
    assert [bytes(view[8:108]) for view in reading.views] == [bytes([number]) * 100 for number in range(3)]
    assert all(view.readonly for view in reading.views)
    reading.close()
    with pytest.raises(LeaseExpired):
        _ = reading.views


def test_a_window_ends_when_the_last_array_of_it_does(arena):
    ended = []
    window = arena.window(arena.allocate(PAGE, 2), PAGE, readonly=True, on_release=lambda: ended.append(1))
    array = np.asarray(window.views[0])[10:20]
    assert window.close() == 1 and window.close() == 1
    assert (ended, arena.exports) == ([], 1)
    with pytest.raises(Unavailable, match="1 views"):
        arena.close()
    del array
    gc.collect()
    assert (ended, arena.exports) == ([1], 0)


def test_a_window_that_is_dropped_ends(arena):
    ended = []
    places = arena.allocate(PAGE, 1)
    window = arena.window(places, PAGE, readonly=True, on_release=lambda: ended.append(1))
    assert len(window.views) == 1
    del window
    gc.collect()
    arena.window(places, PAGE, readonly=True, on_release=lambda: ended.append(2))
    gc.collect()
    assert ended == [1, 2] and arena.exports == 0


def test_windows_lie_inside_the_arena(arena):
    last = np.array([arena.nbytes // PAGE - 1], np.uint32)
    arena.window(last, PAGE, readonly=True).close()
    for places, nbytes, offset in ((last, PAGE + 1, 0), (last, PAGE, 1), (last + 1, 1, 0), (last, 0, 0), (last, 1, -1)):
        with pytest.raises(InvalidRequest):
            arena.window(places.astype(np.uint32), nbytes, readonly=True, offset=offset)


def test_a_copy_by_address_keeps_the_memory():
    arena = Arena(CHUNK)
    places = arena.allocate(PAGE, 1)
    arena.begin_use()
    with pytest.raises(Unavailable):
        arena.close()
    assert len(arena.addresses(places)) == 1
    arena.end_use()
    arena.close()
    for call in (arena.begin_use, lambda: arena.addresses(places), lambda: arena.allocate(PAGE, 1)):
        with pytest.raises(Unavailable, match="closed"):
            call()
    with pytest.raises(Unavailable, match="closed"):
        arena.window(places, PAGE, readonly=True)
    arena.prefault()
