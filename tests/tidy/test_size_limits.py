"""Files and functions stay small, parameters few, and public names explain themselves."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from tidy_source import C_FILES, CYTHON_FILES, ROOT, python_files

FILE_LINES_MAX = {"kvstore": 400, "bench": 400, "tests": 600}
NATIVE_FILE_LINES_MAX = 520
FUNCTION_LINES_MAX = 70
PARAMETERS_MAX = 5

# Functions with more parameters than that, each with its reason.
MANY_PARAMETERS = {
    "kvstore/mover.py:Mover.__init__": "what it works with is handed in, so that a test can hand in something else",
    "kvstore/store.py:BlockStore.__init__": "as Mover: composed in one place, kvstore.embedded",
}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def lines_of(path: Path) -> int:
    return len(path.read_text().splitlines())


def functions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, Function]]:
    """Every function with its dotted name; nested ones too."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, Function):
            yield f"{prefix}{node.name}", node
            yield from functions(node, f"{prefix}{node.name}.<locals>.")
        elif isinstance(node, ast.ClassDef):
            yield from functions(node, f"{prefix}{node.name}.")
        else:
            yield from functions(node, prefix)


def is_public(name: str) -> bool:
    parts = [part for part in name.split(".") if part != "__init__"]
    return not any(part.startswith(("_", "<")) for part in parts)


def is_command(function: Function) -> bool:
    """A parameter for each option is the rule of the command-line library."""
    return any("click." in ast.unparse(decorator) for decorator in function.decorator_list)


def num_parameters(function: Function) -> int:
    """Parameters a caller has to think of: not self, and not options that are given by name and have a default."""
    arguments = function.args
    positional = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args)]
    named = sum(default is None for default in arguments.kw_defaults)
    return len(positional) - (positional[:1] in (["self"], ["cls"])) + named


@pytest.mark.parametrize("folder", FILE_LINES_MAX)
def test_python_files_are_small(folder: str) -> None:
    sizes = {str(path.relative_to(ROOT)): lines_of(path) for path in python_files(folder)}
    assert {path: size for path, size in sizes.items() if size > FILE_LINES_MAX[folder]} == {}


def test_native_files_are_small() -> None:
    sizes = {str(path.relative_to(ROOT)): lines_of(path) for path in (*C_FILES, *CYTHON_FILES)}
    assert {path: size for path, size in sizes.items() if size > NATIVE_FILE_LINES_MAX} == {}


def test_python_functions_are_short() -> None:
    long = []
    for path in python_files("kvstore", "bench", "tests"):
        for name, function in functions(ast.parse(path.read_text())):
            num_lines = (function.end_lineno or 0) - function.lineno + 1
            if num_lines > FUNCTION_LINES_MAX:
                long.append(f"{path.relative_to(ROOT)}:{function.lineno} {name} has {num_lines} lines")
    assert not long, "\n".join(long)


def c_functions(path: Path) -> Iterator[tuple[int, int]]:
    """(first line, number of lines) of each function: it opens at the left margin and closes with a lone brace."""
    first = 0
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if re.match(r"\w.*\) \{$|\s+.*\) \{$", line) and not first:
            first = number
        elif line == "}" and first:
            yield first, number - first + 1
            first = 0


def test_c_functions_are_short() -> None:
    found = [(path, *size) for path in C_FILES for size in c_functions(path)]
    assert len(found) > 100, "the pattern no longer recognises functions"
    assert [(path.name, first) for path, first, num_lines in found if num_lines > FUNCTION_LINES_MAX] == []


def cython_functions(path: Path) -> Iterator[tuple[int, int]]:
    """(first line, number of lines) of each def or cdef function: up to the next line that is no deeper."""
    lines = path.read_text().splitlines()
    for first, line in enumerate(lines):
        opening = re.match(r"( *)(def|cdef(?! class)|cpdef) .*\(", line)
        if not opening or line.rstrip().endswith(")"):
            continue
        depth = len(opening[1])
        body = [i for i in range(first + 1, len(lines)) if lines[i].strip()]
        end = next((i for i in body if not lines[i].startswith((" " * (depth + 1), " " * depth + ")"))), len(lines))
        yield first + 1, end - first


def test_cython_functions_are_short() -> None:
    found = [(path, *size) for path in CYTHON_FILES if path.suffix == ".pyx" for size in cython_functions(path)]
    assert len(found) > 60, "the pattern no longer recognises functions"
    assert [(path.name, first) for path, first, num_lines in found if num_lines > FUNCTION_LINES_MAX] == []


def test_public_functions_take_few_parameters() -> None:
    many = set()
    for path in python_files("kvstore"):
        for name, function in functions(ast.parse(path.read_text())):
            if is_public(name) and not is_command(function) and num_parameters(function) > PARAMETERS_MAX:
                many.add(f"{path.relative_to(ROOT)}:{name}")
    assert many == MANY_PARAMETERS.keys()


def test_public_names_have_docstrings() -> None:
    silent = []
    for path in python_files("kvstore"):
        tree = ast.parse(path.read_text())
        classes = [(node.name, node) for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
        for name, node in (("module", tree), *classes, *functions(tree)):
            if is_public(name) and not name.endswith("__init__") and not ast.get_docstring(node):
                silent.append(f"{path.relative_to(ROOT)}:{name}")
    assert not silent, "\n".join(silent)
