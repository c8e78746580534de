"""kvstore top without a daemon: samples of a scripted one by a clock that stands still, and frames of any size."""

import io
import json
import re
from itertools import islice

import pytest
from rich.console import Console
from store_helpers import SECOND_US, FakeClock

from kvstore.cli.frame import Frame, Sample, bar, shares
from kvstore.cli.top import report, samples
from kvstore.errors import AccessDenied, LimitExceeded, Unavailable
from kvstore.rates import rates

GIB = 1 << 30
TARGET = "unix:/run/kvstore/kvstore.sock"
LONG = "meta-llama/Llama-3.3-70B-Instruct revision=main lora=" + 40 * "support-" + " tenant=acme"


def stats(at_s: int, num_names: int = 3, reason: str = "") -> dict:
    """What a daemon that has run for `at_s` seconds at even rates would say."""
    return {
        "lookups": {"blocks_asked": 1000 * at_s, "blocks_found": 830 * at_s, "blocks_near": 500 * at_s},
        "traffic": {"put_nbytes": 2_100_000_000 * at_s, "got_nbytes": 0},
        "tiers": {
            "host": {"blocks": 1234, "used_nbytes": 48 * GIB, "capacity_nbytes": 64 * GIB, "healthy": True},
            "disk": {
                "blocks": 9, "used_nbytes": 0, "capacity_nbytes": 4 << 40, "healthy": not reason, "reason": reason,
            },
        },
        "index": {"evicted_near": 20 * at_s, "evicted_far": 0, "dropped_unwritten": 7 * at_s},
        "mover": {"write_nbytes": 0, "read_nbytes": 0, "written_blocks": 0, "promoted_blocks": 0},
        "namespaces": {
            LONG if number == 0 else f"space {number}": {
                "tenant": "", "blocks": 10**6, "block_nbytes": 1, "used_nbytes": GIB * (900 - number),
                "quota_nbytes": GIB,
            }
            for number in range(num_names)
        },
        "service": {
            "uptime_us": at_s * SECOND_US, "calls": 5 * at_s, "refused": 0, "long_calls": 2, "held_nbytes": GIB,
            "sent_nbytes": 0, "received_nbytes": 0,
            "clients": {
                f"acme ipv6:%5B2001:db8:85a3::8a2e:{number}%5D:50123": {
                    "tenant": "acme", "calls": number * at_s, "long_calls": number % 2, "held_nbytes": number * GIB,
                    "leased_blocks": 512, "reserved_blocks": 64,
                }
                for number in range(num_names)
            },
        },
    }  # fmt: skip


def live(**more) -> Sample:
    return Sample(1_700_000_000, stats(12, **more), rates(stats(10, **more), stats(12, **more), 2.0))


def drawn(sample: Sample, width: int, height: int | None = None) -> list[str]:
    out = io.StringIO()
    console = Console(file=out, width=width, height=height, force_terminal=height is not None, color_system=None)
    console.print(Frame(TARGET, sample))
    return [line.rstrip() for line in re.sub(r"\x1b\[[\d;]*m", "", out.getvalue()).splitlines()]


# ---- samples ----


class Daemon:
    """Answers what it is told to, one thing a second."""

    def __init__(self, *answers) -> None:
        self.clock, self._answers = FakeClock(), iter(answers)

    def stats(self):
        answer = next(self._answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def pause(self) -> None:
        self.clock.us += SECOND_US

    def samples(self):
        return samples(self.stats, self.clock, self.pause)


def test_a_daemon_goes_and_comes_back_as_another_life():
    gone = Unavailable("it does not answer")
    daemon = Daemon(stats(10), stats(11), gone, LimitExceeded("too busy"), gone, stats(1), stats(2))
    first, second, *dark, back, again = islice(daemon.samples(), 7)
    assert first.rates is None and first.gone_since_s is None
    assert second.rates.seconds == 1.0 and second.rates.hit_ratio == 0.83
    assert [sample.gone_since_s for sample in dark] == [dark[0].time_s] * 3
    assert [sample.time_s - dark[0].time_s for sample in dark] == [0, 1, 2]
    assert [sample.reason for sample in dark] == ["it does not answer", "too busy", "it does not answer"]
    assert all(sample.stats == stats(11) and sample.rates is None for sample in dark)
    assert back.rates.restarted and back.rates.seconds == 1.0 and back.gone_since_s is None
    assert back.rates.nbytes_per_s["put"] == 2_100_000_000
    assert not again.rates.restarted


def test_a_caller_that_may_not_see_it_is_told():
    with pytest.raises(AccessDenied):
        next(Daemon(AccessDenied("may not stats")).samples())


def test_a_report_is_json_in_every_state():
    gone = Sample(7, stats(5), None, 3, "it does not answer")
    there, away = (json.loads(json.dumps(report(TARGET, sample))) for sample in (live(), gone))
    assert there.keys() == away.keys()
    assert there["reachable"] and there["gone_since_s"] is None and there["stats"]["tiers"]["host"]["blocks"] == 1234
    assert there["rates"]["evictions_per_s"]["unwritten"] == 7.0
    assert (away["reachable"], away["gone_since_s"], away["rates"], away["stats"]) == (False, 3, None, None)


# ---- frames ----


@pytest.mark.parametrize("width", [40, 60, 79, 80, 100, 120, 200])
@pytest.mark.parametrize("num_names", [0, 1, 50])
def test_no_line_is_wider_than_the_terminal_and_no_number_is_cut(width: int, num_names: int):
    lines = drawn(live(num_names=num_names), width)
    assert max(map(len, lines)) <= width
    if width >= 60:
        cut = [line for line in lines if "…" in line]
        assert all(re.search(r"…  +[\d-]|under? ?w?a?y?…|under way.*…|·.*…", line) for line in cut), cut
        assert any("2.10 GB/s" in line for line in lines) and any("75.0 %" in line for line in lines)


@pytest.mark.parametrize("num_names", [0, 2, 50])
@pytest.mark.parametrize("height", [24, 30, 39, 40, 60, 120])
@pytest.mark.parametrize("width", [80, 120])
def test_a_frame_fits_into_the_terminal(width: int, height: int, num_names: int):
    lines = drawn(live(num_names=num_names), width, height)
    assert len(lines) <= height
    assert sum(line.startswith("space ") for line in lines) >= min(num_names, 2) - 1
    if num_names == 50 and height >= 40:
        assert len(lines) >= min(height, 100) - 2, "room that nobody uses"


def test_what_a_frame_says():
    text = "\n".join(drawn(live(), 120))
    for part in (
        *(TARGET, "serving for 12.0 s · 5.0 calls/s", "hit rate 83.0 % in 2.00 s · 83.0 % since the start"),
        *("put: callers → memory    2.10 GB/s   23.5 GiB", "of these, lost", "48.0 GiB   64.0 GiB", "Namespaces: 3"),
        "acme ipv6:[2001:db8:85a3::8a2e:2]:50123       2.0           0    2.00 GiB      512         64",
    ):
        assert part in text, part
    rows = [line.split()[0] for line in text.splitlines() if "2001:db8" in line]
    assert len(rows) == 3 and text.index("8a2e:2]") < text.index("8a2e:1]") < text.index("8a2e:0]")
    assert "…" not in next(line for line in text.splitlines() if line.startswith("space 1"))
    first = Sample(1_700_000_000, stats(12))
    assert "hit rate - · 83.0 % since the start" in "\n".join(drawn(first, 80))


def test_a_daemon_that_is_gone_leaves_its_last_numbers():
    sample = Sample(1_700_000_012, stats(5), None, 1_700_000_000, "it does not\nanswer [bold]")
    text = "\n".join(drawn(sample, 80))
    assert re.search(r"not reachable since \d\d:\d\d:\d\d, for 12\.0 s\nit does not answer \[bold\]", text)
    assert "48.0 GiB" in text and "GB/s" not in text and "good" not in text
    assert len(drawn(Sample(5, None, None, 5, "nobody there"), 80)) == 3


def test_a_tier_at_rest_and_a_new_life_are_said():
    text = "\n".join(drawn(live(reason="No space left on device"), 80))
    assert "disk tier at rest: No space left on device" in text
    sample = Sample(1, stats(2), rates(stats(10), stats(2), 5.0))
    assert "serving for 2.00 s, restarted" in "\n".join(drawn(sample, 80))


def test_other_sizes_have_a_line_for_each_tier():
    sizes = {"0.5x": {"hit_ratio": 0.125}, "1x": {"hit_ratio": 0.25}}
    found = stats(5) | {"whatif": {"host": sizes, "disk": sizes}, "shadow": {"requests": 9}}
    lines = drawn(Sample(1, found), 80)
    assert "host would hit 0.5x: 12.5 % · 1x: 25.0 %" in lines and any(line.startswith("disk would") for line in lines)
    nothing_yet = found | {"shadow": {"requests": 0}}
    assert not any("would hit" in line for line in drawn(Sample(1, nothing_yet), 80))


def test_statistics_of_another_version_are_shown_as_far_as_they_go():
    assert "serving" in "\n".join(drawn(Sample(1, {}, rates({}, {}, 1.0)), 80))


def test_names_do_not_reach_the_terminal_as_commands():
    named = stats(5, 1)
    named["namespaces"] = {"a\nb\x1b[2J\x07": next(iter(named["namespaces"].values()))}
    named["service"]["clients"] = {"ipv4:%1b%0a": {"calls": 1}}
    lines = drawn(Sample(1, named), 120)
    assert any(line.startswith("a b?[2J?") for line in lines) and any(line.startswith("ipv4:?") for line in lines)


@pytest.mark.parametrize(
    ("part", "whole", "filled"),
    [(0, 10, 0), (0.001, 10, 1), (5, 10, 5), (9.99, 10, 9), (10, 10, 10), (11, 10, 10), (3, 0, 1)],
)
def test_a_bar_is_full_only_when_it_is(part: float, whole: float, filled: int):
    assert bar(part, whole, 10).plain == "█" * filled + "░" * (10 - filled)


def test_rows_go_to_whoever_needs_them():
    assert shares(20, 3, 50) == (10, 17)
    assert shares(20, 50, 3) == (17, 10)
    assert shares(20, 50, 50) == (10, 10)
    assert shares(-5, 50, 50) == (2, 2)
    assert shares(None, 50, 50) == (40, 40)
