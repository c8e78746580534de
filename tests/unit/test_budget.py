"""The budget of a day, on a clock of its own, and what the mover does when it is used up."""

import logging

import pytest
from store_helpers import BLOCK, SECOND_US, FakeClock, ObedientTier, chain, make_spec, make_store, put_chain, settle

from kvstore import policy
from kvstore.budget import WriteBudget
from kvstore.carry import Carry
from kvstore.policy import DAY_US, ENDURANCE_BURST_US, WriteBack
from kvstore.tiers.disk import DiskTier

PER_DAY = 96 * BLOCK  # 24 at once, then one every 15 minutes
QUARTER_HOUR_US = 900 * SECOND_US


@pytest.mark.parametrize(
    ("missing_us", "left"),
    [
        (-5 * DAY_US, 24),  # full for long: never more than the burst
        (0, 24),
        (QUARTER_HOUR_US, 23),
        (ENDURANCE_BURST_US, 0),
        (2 * ENDURANCE_BURST_US, 0),  # the last batch was larger than what was left
    ],
)
def test_what_is_left_of_a_day(missing_us, left):
    now_us = 7 * DAY_US
    assert policy.endurance_left_nbytes(now_us + missing_us, now_us, PER_DAY) == left * BLOCK


@pytest.mark.parametrize(
    ("full_us", "nbytes", "after_us"),
    [
        (0, BLOCK, DAY_US + QUARTER_HOUR_US),  # it was full: counts from now on
        (DAY_US + 5, BLOCK, DAY_US + 5 + QUARTER_HOUR_US),
        (DAY_US, PER_DAY, 2 * DAY_US),
    ],
)
def test_when_the_bucket_is_full_again(full_us, nbytes, after_us):
    assert policy.endurance_full_us(full_us, DAY_US, nbytes, PER_DAY) == after_us
    assert policy.endurance_full_us(full_us, DAY_US, nbytes, 0) == 0


def test_over_a_day_at_most_a_burst_more_than_the_limit_is_written():
    budget, written, now_us = WriteBudget(0, PER_DAY), 0, 0
    while now_us < DAY_US:
        if budget.ready_us(now_us) <= now_us:
            budget.spend(BLOCK, now_us)
            written += 1
        now_us += QUARTER_HOUR_US // 7
    assert 96 + 24 - 1 <= written <= 96 + 24 + 1


def test_a_used_up_budget_is_logged_once_until_it_is_full_again(caplog):
    caplog.set_level(logging.WARNING, "kvstore")
    budget = WriteBudget(0, PER_DAY)
    for round_us in (0, 10 * DAY_US):
        budget.wear(24 * BLOCK, round_us)
        budget.wear(BLOCK, round_us + QUARTER_HOUR_US)
        budget.wear(BLOCK, round_us + 2 * QUARTER_HOUR_US)
        assert budget.is_used_up(round_us + 2 * QUARTER_HOUR_US)
        assert not budget.is_used_up(round_us + 4 * QUARTER_HOUR_US)
    assert [record.message.count("write_nbytes_per_day") for record in caplog.records] == [1, 1]


@pytest.fixture
def paused():
    """A store whose budget of a day was used up by the first of its two prompts."""
    clock, far = FakeClock(), ObedientTier(256 * BLOCK)
    store = make_store(64, far, clock=clock, write_nbytes_per_day=PER_DAY, batches=WriteBack(batch_blocks=4))
    ns = store.namespace(make_spec())
    put_chain(ns, 24)
    settle(store)
    put_chain(ns, 6, prompt=1)
    settle(store)
    yield store, ns, clock
    store.close()


def test_write_back_pauses_when_the_day_is_used_up_and_goes_on_as_it_refills(paused):
    store, _, clock = paused
    moved = store.stats()["mover"]
    assert (moved["written_blocks"], moved["queued_blocks"]) == (24, 6)
    assert (moved["endurance_left_nbytes"], moved["endurance_used_up"]) == (0, True)
    clock.us += QUARTER_HOUR_US
    settle(store)
    moved = store.stats()["mover"]
    assert (moved["written_blocks"], moved["endurance_used_up"]) == (28, True)  # one batch, then it owes three blocks
    clock.us += 4 * QUARTER_HOUR_US
    settle(store)
    assert store.stats()["mover"]["written_blocks"] == 30


def test_nobody_waits_for_a_budget_that_is_used_up(paused):
    store, ns, clock = paused
    before_us = clock.us
    assert not store.flush()
    put_chain(ns, 60, prompt=2)
    assert ns.put(ns.keys([5] * 8), [b"x" * BLOCK] * 2, deadline_ms=60_000).stored == 2
    assert clock.us == before_us


def test_what_is_carried_counts(tmp_path):
    clock = FakeClock()
    tier = DiskTier(tmp_path, capacity_nbytes=16 << 20, clock_us=clock.now_us)
    store = make_store(32, tier, clock=clock, write_nbytes_per_day=1 << 40)
    ns = store.namespace(make_spec())
    put_chain(ns, 10)
    with store.lock:
        store.mover.step()
    store.mover._writes[0].future.result(60)
    settle(store)
    left = store.stats()["mover"]["endurance_left_nbytes"]
    carry = Carry(store.mover, tier, (0, 2**32 - 1))
    with store.lock:
        assert not carry.step()
        carry._reading.result(60)
        assert not carry.step()
    carried_nbytes = left - store.stats()["mover"]["endurance_left_nbytes"]
    assert abs(carried_nbytes - 10 * BLOCK) <= 16  # the bucket counts whole microseconds of refill
    carry._writing.result(60)
    with store.lock:
        carry._settle()
    assert ns.match(chain(ns, 10)).num_blocks == 10
    store.check()
    tier.flush().result(60)
    store.close(0)


def test_without_a_limit_nothing_is_used_up():
    budget = WriteBudget(0, 0)
    budget.spend(1 << 60, 0)
    assert not budget.is_used_up(0) and budget.ready_us(0) <= 0 and budget.left_nbytes(0) == 0
