"""The source tree as the tidy tests read it: files, module names, syntax trees and imports."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "kvstore"
C_FILES = sorted((ROOT / "csrc/c").glob("*.[ch]"))
CYTHON_FILES = sorted((ROOT / "csrc/kvstore/_core").glob("*.p[yx][xd]"))


class Module(NamedTuple):
    """A module of the package under its name without the leading `kvstore.`."""

    name: str
    path: Path
    tree: ast.Module


class Arrow(NamedTuple):
    """One import: the whole dotted name, where, and whether only annotations need it."""

    target: str
    line: int
    types_only: bool


def python_files(*folders: str) -> list[Path]:
    """Every .py file under these folders of the repository; generated ones left out."""
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    return sorted(path for path in files if "_pb2" not in path.name)


def module_name(path: Path) -> str:
    """`kvstore/tiers/disk.py` → `tiers.disk`; the package itself is `kvstore`."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    parts = parts[:-1] if parts[-1] == "__init__" else parts
    return ".".join(parts) or "kvstore"


def modules() -> list[Module]:
    """Every Python module of the package."""
    return [Module(module_name(path), path, ast.parse(path.read_text())) for path in python_files("kvstore")]


def _is_types_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def _targets(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        source = "." * node.level + (node.module or "")
        return [_submodule(source, alias.name) for alias in node.names]
    return []


def _submodule(source: str, name: str) -> str:
    """`from kvstore.tiers import disk` names a module; `from kvstore.block import Match` names what is in one."""
    path = ROOT / source.replace(".", "/") / name
    is_module = any(path.with_suffix(suffix).exists() for suffix in (".py", ".pyi")) or (path / "__init__.py").exists()
    return f"{source}.{name}" if source.partition(".")[0] == "kvstore" and is_module else source


def imports(tree: ast.AST, types_only: bool = False) -> Iterator[Arrow]:
    """Every import in a syntax tree, also those inside functions."""
    for node in ast.iter_child_nodes(tree):
        for target in _targets(node):
            yield Arrow(target, getattr(node, "lineno", 0), types_only)
        yield from imports(node, types_only or _is_types_only(node))
