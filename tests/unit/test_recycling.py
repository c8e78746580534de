"""Which segment is emptied, and when."""

import numpy as np

from kvstore.tiers.base import PLACE_NBYTES, Places
from kvstore.tiers.geometry import SEGMENT_NBYTES_MIN, Geometry
from kvstore.tiers.segments import SegmentTable, State

PAGES = SEGMENT_NBYTES_MIN // PLACE_NBYTES


def write(table: SegmentTable, places: Places) -> None:
    pages = np.ones(len(places), np.int64)
    table.begin_write(places, pages)
    for segment in np.unique(places // 65_536).tolist():
        chosen = places[places // 65_536 == segment]
        table.end_write(segment, chosen % 65_536, pages[: len(chosen)])
        table.set_written(segment)


def test_a_segment_is_not_emptied_before_there_is_room_for_what_lives_in_it() -> None:
    table = SegmentTable(Geometry(SEGMENT_NBYTES_MIN, 4), written=range(4), recovered=[])
    places = table.allocate(PLACE_NBYTES, 2 * PAGES)
    write(table, places)
    first, second = places[:PAGES], places[PAGES:]
    moved = table.allocate(PLACE_NBYTES, PAGES // 2 + PAGES, moving=True)  # half of the last segment is left
    write(table, moved)
    table.free(first, PLACE_NBYTES)
    table.free(second[:1], PLACE_NBYTES)
    (cleaning,) = table.take_to_clean()
    assert (table.state[cleaning], table.num_ready) == (State.CLEANING, 0)
    assert sorted(table.live_pages[table.state == State.SEALED].tolist()) == [PAGES - 1, PAGES]
    assert table.vacate(PLACE_NBYTES) is None
    table.set_clean(cleaning)
    window = table.vacate(PLACE_NBYTES)
    assert window is not None and window[0] == int(second[0]) // 65_536 * 65_536


def test_a_segment_that_is_only_being_written_to_is_left_to_become_free_by_itself() -> None:
    """All of its blocks were freed while their write was under way: there is nothing in it to be moved."""
    table = SegmentTable(Geometry(SEGMENT_NBYTES_MIN, 4), written=range(4), recovered=[])
    places = table.allocate(PLACE_NBYTES, 2 * PAGES)
    first, second = places[:PAGES], places[PAGES:]
    table.begin_write(first, np.ones(PAGES, np.int64))
    write(table, second)
    table.allocate(PLACE_NBYTES, 1, moving=True)
    table.free(first, PLACE_NBYTES)
    table.free(second[:1], PLACE_NBYTES)
    emptied = int(first[0]) // 65_536
    assert (table.state[emptied], table.live_pages[emptied], table.num_ready) == (State.SEALED, 0, 1)
    assert table.vacate(PLACE_NBYTES) is None  # it is coming, and one is free
    table.end_write(emptied, first % 65_536, np.ones(PAGES, np.int64))
    assert table.num_ready == 2
