"""A trace file that is written: whole up to its limit, and whatever the file system does."""

import gzip
import os
import stat
from pathlib import Path

import pytest

from kvstore.errors import LimitExceeded, Unavailable
from kvstore.trace_file import TraceFile

LINES = [b"line %03d\n" % number for number in range(100)]


def text_of(path: Path) -> bytes:
    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()


@pytest.mark.parametrize("name", ["t.jsonl", "t.jsonl.gz"])
def test_batches_follow_each_other(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    file = TraceFile(str(path), 1 << 20)
    assert (file.append(LINES[:60]), file.append(LINES[60:])) == (60, 40)
    assert text_of(path) == b"".join(LINES) and file.nbytes == path.stat().st_size
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    file.close()


@pytest.mark.parametrize(("name", "most"), [("t.jsonl", 555), ("t.jsonl.gz", 180)])
def test_it_takes_whole_lines_up_to_the_limit(tmp_path: Path, name: str, most: int) -> None:
    path = tmp_path / name
    file = TraceFile(str(path), most)
    num_written = file.append(LINES)
    assert 0 < num_written < 100 and text_of(path) == b"".join(LINES[:num_written])
    assert path.stat().st_size <= most
    if name == "t.jsonl":
        assert num_written == 61
        with pytest.raises(LimitExceeded, match=r"trace\.nbytes_max=555"):
            file.append(LINES[:1])
    file.close()


def test_a_file_that_is_there_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "t"
    path.write_bytes(b"earlier")
    with pytest.raises(Unavailable, match="such a file already"):
        TraceFile(str(path), 1000)
    assert path.read_bytes() == b"earlier"


def test_a_path_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"absent/t: No such file"):
        TraceFile(str(tmp_path / "absent" / "t"), 1000)


def test_what_a_full_disk_cut_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t"
    file = TraceFile(str(path), 1 << 20)
    file.append(LINES[:1])
    write, calls = os.write, []

    def short(fd: int, data: memoryview) -> int:
        calls.append(len(data))
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        return write(fd, data[:13])

    monkeypatch.setattr(os, "write", short)
    with pytest.raises(Unavailable, match="cannot be written: No space left"):
        file.append(LINES[1:5])
    monkeypatch.undo()
    assert calls == [36, 23] and path.read_bytes() == LINES[0]
    file.close()
