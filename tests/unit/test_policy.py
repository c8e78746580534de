"""Every decision as a table."""

import pytest

from kvstore import policy
from kvstore.policy import WriteBack

GIB = 1 << 30


@pytest.mark.parametrize(
    ("capacity", "slot", "spare"),
    [
        (0, 4096, 0),
        (1 << 20, 4096, 0),  # a small store stays exact: not one slot in 1/1024 of it
        (4 << 20, 4096, 4096),
        (4 << 20, 8192, 0),
        (GIB, 4096, 256 * 4096),  # 1 MiB is 256 slots: both limits at once
        (GIB, 65536, 16 * 65536),
        (GIB, 3 * 4096, 85 * 3 * 4096),  # whole slots
        (1024 * GIB, 65536, policy.BATCH_BLOCKS * 65536),  # never more than one batch
    ],
)
def test_spare(capacity, slot, spare):
    assert policy.spare_nbytes(capacity, slot) == spare


@pytest.mark.parametrize(
    ("healthy", "num_batches", "now", "ready", "may"),
    [
        (True, 0, 0, 0, True),
        (True, 3, 0, 0, True),
        (True, 4, 0, 0, False),
        (True, 5, 0, 0, False),
        (False, 0, 0, 0, False),
        (True, 0, 9, 10, False),
        (True, 0, 10, 10, True),
    ],
)
def test_may_write(healthy, num_batches, now, ready, may):
    assert policy.may_write(healthy, num_batches, now, ready, WriteBack(batches_max=4)) is may


@pytest.mark.parametrize(
    ("ready", "now", "nbytes", "rate", "next_ready"),
    [
        (0, 50, 1000, 0, 0),  # no budget
        (0, 50, 1000, 1_000_000, 1050),
        (200, 50, 1000, 1_000_000, 1200),  # behind what was booked before
        (200, 300, 1000, 1_000_000, 1300),  # what was not used is not saved up
        (0, 0, 1, 1_000_000_000, 0),
        (0, 0, 10_000_000, 1, 10_000_000_000_000),
    ],
)
def test_next_ready(ready, now, nbytes, rate, next_ready):
    assert policy.next_ready_us(ready, now, nbytes, rate) == next_ready


def test_the_budget_is_kept_over_many_batches():
    ready, now = 0, 0
    for _ in range(100):
        now = max(now, ready)
        ready = policy.next_ready_us(ready, now, 5_000, 1_000_000)
    assert ready == 100 * 5_000
