"""Rates between two answers of Stats."""

import copy

import pytest

from kvstore.rates import COUNTERS, Rates, hit_ratio, is_another_life, rates


def stats(uptime_s: float = 100, clients: dict[str, int] | None = None, **counters: int) -> dict:
    """An answer whose counters are all 0 but those named SECTION__NAME."""
    found: dict = {"service": {"uptime_us": int(uptime_s * 1e6)}}
    for name in COUNTERS:
        section, _, key = name.partition(".")
        found.setdefault(section, {})[key] = counters.pop(f"{section}__{key}", 0)
    assert not counters
    found["service"]["clients"] = {name: {"calls": calls} for name, calls in (clients or {}).items()}
    return found


def test_rates_are_differences_over_time():
    before = stats(100, mover__write_nbytes=1000, lookups__blocks_asked=10, lookups__blocks_found=9, service__calls=5)
    after = stats(
        102, mover__write_nbytes=5000, lookups__blocks_asked=30, lookups__blocks_found=14, service__calls=11,
        index__evicted_far=8, traffic__put_nbytes=64,
    )  # fmt: skip
    untouched = copy.deepcopy((before, after))
    found = rates(before, after, 2.0)
    assert (before, after) == untouched
    assert (found.seconds, found.restarted, found.hit_ratio) == (2.0, False, 0.25)
    assert found.nbytes_per_s == {"put": 32.0, "got": 0.0, "write": 2000.0, "read": 0.0, "received": 0.0, "sent": 0.0}
    assert found.evictions_per_s == {"near": 0.0, "far": 4.0, "unwritten": 0.0}
    assert found.calls_per_s == {"calls": 3.0, "refused": 0.0}
    assert found.blocks_per_s["asked"] == 10.0 and found.blocks_per_s["found"] == 2.5
    assert hit_ratio(after) == 14 / 30


def test_nothing_asked_is_no_ratio():
    assert rates(stats(1), stats(2), 1.0).hit_ratio is None
    assert hit_ratio(stats()) is None


def test_after_a_restart_the_new_life_counts_alone_and_for_its_own_time():
    before = stats(1000, mover__write_nbytes=10_000, lookups__blocks_asked=100, lookups__blocks_found=100)
    after = stats(4, mover__write_nbytes=8_000, lookups__blocks_asked=10, lookups__blocks_found=3)
    found = rates(before, after, 60.0)
    assert found.restarted and found.seconds == 4.0
    assert found.nbytes_per_s["write"] == 2_000.0 and found.hit_ratio == 0.3


def test_a_restart_shows_even_when_every_counter_has_passed_the_old_one():
    before, after = stats(1000, service__calls=5), stats(3, service__calls=50)
    assert is_another_life(before, after) and not is_another_life(before, before)
    assert rates(before, after, 10.0).calls_per_s["calls"] == pytest.approx(50 / 3)


@pytest.mark.parametrize("name", COUNTERS)
def test_a_counter_that_falls_is_a_restart_also_without_an_uptime(name: str):
    before, after = stats(**{name.replace(".", "__"): 9}), stats(**{name.replace(".", "__"): 4})
    for one in (before, after):
        del one["service"]["uptime_us"]
    found = rates(before, after, 2.0)
    assert found.restarted and found.seconds == 2.0
    assert max(*found.nbytes_per_s.values(), *found.blocks_per_s.values(), *found.evictions_per_s.values(),
               *found.calls_per_s.values()) == 2.0  # fmt: skip


def test_no_rate_is_ever_negative_or_without_time():
    before = stats(50, clients={"a": 7}, mover__read_nbytes=5)
    for seconds in (0.0, 1.0):
        found = rates(before, stats(60, clients={"a": 3}, mover__read_nbytes=5), seconds)
        assert min(*found.nbytes_per_s.values(), *found.clients.values()) >= 0
    assert rates(before, stats(50, mover__read_nbytes=50), 0.0).nbytes_per_s["read"] == 0.0


def test_clients_come_go_and_come_again():
    before = stats(10, clients={"stays": 4, "goes": 9, "again": 50})
    found = rates(before, stats(12, clients={"stays": 10, "new": 2, "again": 1}), 2.0)
    assert found.clients == {"stays": 3.0, "new": 1.0, "again": 0.5} and not found.restarted


def test_what_a_daemon_of_another_version_does_not_say_is_zero():
    assert rates({}, {}, 1.0) == Rates(1.0, nbytes_per_s=dict.fromkeys(
        ("put", "got", "write", "read", "received", "sent"), 0.0),
        blocks_per_s=dict.fromkeys(("asked", "found", "near", "written", "promoted"), 0.0),
        evictions_per_s=dict.fromkeys(("near", "far", "unwritten"), 0.0),
        calls_per_s={"calls": 0.0, "refused": 0.0})  # fmt: skip
