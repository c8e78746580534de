"""Measured throughput of a path."""

from kvstore.policy import Bandwidth


def test_overlapping_transfers_share_their_time() -> None:
    path = Bandwidth()
    path.record(1000, began_us=0, ended_us=100)
    path.record(1000, began_us=50, ended_us=200)
    path.record(1000, began_us=900, ended_us=1000)
    assert (path.total_nbytes, path.total_us) == (3000, 300)


def test_estimates_follow_the_measured_throughput() -> None:
    path = Bandwidth()
    assert (path.nbytes_per_s, path.estimate_us(1000)) == (0.0, 0)
    path.record(1000, began_us=0, ended_us=100)
    path.record(1000, began_us=0, ended_us=200)  # both under way together: 2,000 bytes in 200 µs
    assert round(path.nbytes_per_s) == 10_000_000
    assert path.estimate_us(5000) == 500


def test_the_recent_past_weighs_most() -> None:
    path = Bandwidth()
    for number in range(100):
        path.record(1_000_000, began_us=1_000 * number, ended_us=1_000 * (number + 1))
    for number in range(50):
        path.record(1_000_000, began_us=100_000 + 10_000 * number, ended_us=110_000 + 10_000 * number)
    assert round(path.nbytes_per_s, -6) == 100_000_000
    assert (path.total_nbytes, path.total_us) == (150_000_000, 600_000)


def test_a_measurement_of_no_time_counts_as_the_shortest() -> None:
    path = Bandwidth()
    path.record(1000, began_us=5, ended_us=5)
    assert round(path.nbytes_per_s) == 1_000_000_000
