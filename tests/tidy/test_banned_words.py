"""The product speaks of itself alone: no notes to self, no names of registries, no paths of one machine."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from tidy_source import ROOT

FOLDERS = (".ci", "bench", "csrc", "deploy", "docs", "kvstore", "protos", "tests")
SUFFIXES = {".c", ".h", ".ini", ".json", ".md", ".proto", ".pxd", ".py", ".pyi", ".pyx", ".toml", ".txt", ".yaml", ""}

# Written with brackets or escapes, so that this file does not match itself.
BANNED = {
    "a note to self": r"\b(T[O]DO|F[I]XME|X[X]X)\b",
    "a package registry": r"\b(py[p]i\.org|python[h]osted|npm[j]s\.|crates\.io|proxy\.golang)",
    "a tracker's number": r"\b(issue|ticket|task|pull request|pr) #\d",
    "a path of one machine": r"(?<![\w.~-])/(home|Users|root|work|tmp/[a-z]{1,2})/\w",
}


def texts() -> Iterator[Path]:
    """Every file that a person writes."""
    for path in [*ROOT.iterdir(), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*"))]:
        generated = "_pb2" in path.name or (path.suffix == ".c" and path.parent.name == "_core")
        if path.is_file() and path.suffix in SUFFIXES and not generated and path.name not in {"LICENSE", ".git"}:
            yield path


@pytest.mark.parametrize("what", BANNED)
def test_no_file_contains(what: str) -> None:
    pattern = re.compile(BANNED[what], re.I if what != "a note to self" else 0)
    found = []
    for path in texts():
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if pattern.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    assert not found, "\n".join(found)


def test_the_files_of_every_folder_are_looked_at() -> None:
    seen = {path.relative_to(ROOT).parts[0] for path in texts()}
    assert {folder for folder in FOLDERS if (ROOT / folder).exists()} - seen == set()
