"""The compiled core: every module has a stub, and no exception is lost without the GIL."""

import re

from tidy_source import CYTHON_FILES, PACKAGE

EXTERN = re.compile(r"^cdef extern from (.*):$", re.M)


def test_every_compiled_module_has_a_stub() -> None:
    modules = {path.stem for path in CYTHON_FILES if path.suffix == ".pyx"}
    assert {path.stem for path in (PACKAGE / "_core").glob("*.pyi")} == modules


def test_what_comes_from_c_may_run_without_the_gil() -> None:
    headers = [header for path in CYTHON_FILES for header in EXTERN.findall(path.read_text())]
    assert len(headers) >= 8
    ours = [header for header in headers if not header.startswith(("<", '"Python.h"'))]
    assert [header for header in ours if not header.endswith(" nogil")] == []


def test_functions_without_the_gil_say_how_they_fail() -> None:
    """Cython takes the GIL after each call of one that says nothing, to see whether it raised."""
    wrong = []
    for path in CYTHON_FILES:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if re.match(r"\s*(cdef|cpdef) .*\).* nogil", line) and not re.search(r"\b(noexcept|except)\b", line):
                wrong.append(f"{path.name}:{number}")
    assert not wrong, "\n".join(wrong)


def test_callbacks_from_c_raise_nothing() -> None:
    wrong = []
    for path in CYTHON_FILES:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if "(*" in line and line.rstrip().endswith(")") and "noexcept" not in line and line.startswith(" "):
                wrong.append(f"{path.name}:{number}: {line.strip()}")
    assert not wrong, "\n".join(wrong)
