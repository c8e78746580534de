"""The circuit breaker, step by step on a clock of its own."""

import pytest

from kvstore.tiers.breaker import BACKOFF_FIRST_US, BACKOFF_MAX_US, FAILURES_MAX, Breaker


def opened(now_us=0):
    breaker = Breaker()
    for number in range(FAILURES_MAX):
        breaker.fail(f"failure {number}", now_us)
    return breaker


def test_it_is_closed_at_first_and_after_few_failures():
    breaker = Breaker()
    assert breaker.reason(0) == ""
    for _ in range(FAILURES_MAX - 1):
        breaker.fail("no", 0)
        assert breaker.reason(0) == ""


def test_it_opens_after_failures_in_a_row_and_says_what_failed_last():
    breaker = opened()
    assert breaker.reason(0) == f"{FAILURES_MAX} failures in a row, the last: failure {FAILURES_MAX - 1}"
    assert breaker.reason(BACKOFF_FIRST_US - 1) != ""
    assert breaker.reason(BACKOFF_FIRST_US) == ""


def test_a_success_in_between_starts_the_count_anew():
    breaker = Breaker()
    for _ in range(3):
        for _ in range(FAILURES_MAX - 1):
            breaker.fail("no", 0)
        breaker.succeed()
    assert breaker.reason(0) == ""


def test_the_pause_doubles_up_to_its_limit():
    breaker, now_us, pauses = opened(), 0, []
    for _ in range(10):
        pause_us = 0
        while breaker.reason(now_us + pause_us):
            pause_us += BACKOFF_FIRST_US
        pauses.append(pause_us)
        now_us += pause_us
        breaker.fail("again", now_us)
    assert pauses == [min(BACKOFF_FIRST_US << number, BACKOFF_MAX_US) for number in range(10)]


def test_failures_while_it_is_open_do_not_prolong_it():
    breaker = opened()
    for _ in range(5):
        breaker.fail("one that had begun before", BACKOFF_FIRST_US // 2)
    assert breaker.reason(BACKOFF_FIRST_US) == ""


@pytest.mark.parametrize("num_openings", [1, 3])
def test_one_success_closes_it_and_forgets_the_pauses(num_openings):
    breaker, now_us = opened(), 0
    for _ in range(num_openings):
        now_us += BACKOFF_MAX_US
        breaker.fail("again", now_us)
    breaker.succeed()
    assert breaker.reason(now_us) == ""
    for _ in range(FAILURES_MAX):
        breaker.fail("anew", now_us)
    assert breaker.reason(now_us + BACKOFF_FIRST_US - 1) != "" and breaker.reason(now_us + BACKOFF_FIRST_US) == ""
