"""Numbers for people, tables and JSON."""

import io
import json
import sys

import numpy as np
import pytest
from rich.console import Console

from kvstore.cli import render


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1023, "1.00 KiB"),
        (1024, "1.00 KiB"),
        (1536, "1.50 KiB"),
        (10 << 20, "10.0 MiB"),
        (100 << 30, "100 GiB"),
        (1000 << 30, "0.98 TiB"),
        (5 << 60, "5,120 PiB"),
    ],
)
def test_nbytes(nbytes: int, text: str) -> None:
    assert render.format_nbytes(nbytes) == text


@pytest.mark.parametrize(
    ("rate", "text"), [(0, "0.00 B/s"), (2e9, "2.00 GB/s"), (12.34e6, "12.3 MB/s"), (999.9e6, "1.00 GB/s")]
)
def test_rate(rate: float, text: str) -> None:
    assert render.format_rate(rate) == text


@pytest.mark.parametrize(
    ("duration_us", "text"),
    [
        (0, "0.00 µs"),
        (0.25, "0.25 µs"),
        (1500, "1.50 ms"),
        (999.9, "1.00 ms"),
        (59e6, "59.0 s"),
        (90e6, "1.50 min"),
        (7200e6, "2.00 h"),
    ],
)
def test_duration(duration_us: float, text: str) -> None:
    assert render.format_duration(duration_us) == text


def test_counts_and_ratios() -> None:
    assert render.format_count(1234567) == "1,234,567"
    assert render.format_ratio(1, 3) == "33.3 %"
    assert render.format_ratio(0, 0) == "-"


def test_a_table_shows_its_cells_as_they_are() -> None:
    out = io.StringIO()
    shown = render.table("Tiers", ["tier", "hits"], [["host [bold]", 12], ["disk", 3]])
    Console(file=out, width=60).print(shown)
    lines = [line.strip() for line in out.getvalue().splitlines()]
    assert lines[0] == "Tiers"
    assert "host [bold]     12" in lines
    assert "disk             3" in lines


def test_progress_is_silent_where_standard_error_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    with render.progress("Replaying", 10) as shown:
        shown.advance(shown.task_ids[0], 4)
        assert shown.tasks[0].completed == 4
    assert capsys.readouterr() == ("", "")


def test_json_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    value = {"a": np.uint32(5), "b": np.arange(2), "c": b"\x01", "d": {3, 1}, "e": None}
    render.print_json(value)
    text = capsys.readouterr().out
    assert text.count("\n") == 1
    assert json.loads(text) == {"a": 5, "b": [0, 1], "c": "01", "d": [1, 3], "e": None}
    with pytest.raises(TypeError, match="object has no JSON form"):
        render.print_json(object())
    with pytest.raises(ValueError, match="not JSON compliant"):
        render.print_json(float("nan"))
