"""C programs over the index, compiled on the spot with the system's compiler."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CORE = HERE.parents[1] / "csrc" / "c"
SOURCES = ("index", "ghost", "events", "lease", "lru", "evict", "tap", "moves", "removal", "audit")
FLAGS = ("-std=c11", "-D_GNU_SOURCE", "-O2", "-g", "-Wall", "-Wextra", "-Werror", "-pthread")


def compiler() -> str:
    found = shutil.which(os.environ.get("CC", "cc"))
    if found is None:
        pytest.skip("no C compiler here")
    return found


def build(folder: Path, program: str, *flags: str, without: tuple[str, ...] = (), core: Path = CORE) -> Path:
    """Compile `program`.c of this folder with the index's sources in `core`, but for those it includes itself."""
    target = folder / program
    sources = [str(core / f"{name}.c") for name in SOURCES if name not in without]
    command = [compiler(), *FLAGS, *flags, f"-I{core}", str(HERE / f"{program}.c"), *sources, "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return target


def mutated_core(folder: Path, name: str, old: str, new: str) -> Path:
    """A copy of the index's sources in which one place of `name` is changed."""
    copy = folder / "core"
    shutil.copytree(CORE, copy)
    text = (copy / name).read_text()
    assert text.count(old) == 1, f"{name} has {text.count(old)} places like {old!r}"
    (copy / name).write_text(text.replace(old, new))
    return copy
