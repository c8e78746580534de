"""What `import kvstore` offers, and what it does not load."""

import ast
import subprocess
import sys
from types import ModuleType

from tidy_source import PACKAGE

import kvstore

LAZY = ("click", "cupy", "grpc", "lmdb", "matplotlib", "rich", "torch", "vllm")


def test_the_names_are_few_sorted_and_complete() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    imported = {
        alias.asname or alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert kvstore.__all__ == sorted(kvstore.__all__)
    assert set(kvstore.__all__) == imported
    assert len(kvstore.__all__) <= 12


def test_the_package_file_holds_no_logic() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    kinds = {type(node) for node in tree.body}
    assert kinds == {ast.Expr, ast.ImportFrom, ast.Assign}


def test_every_name_is_there_and_none_is_a_module() -> None:
    values = [getattr(kvstore, name) for name in kvstore.__all__]
    assert not [value for value in values if isinstance(value, ModuleType)]


def test_importing_loads_nothing_that_is_not_needed() -> None:
    code = f"import sys, kvstore; print(*sorted(set({LAZY!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
