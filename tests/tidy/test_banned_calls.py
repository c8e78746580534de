"""Calls that belong in few places or in none: time, randomness, output and processes come in from outside."""

import ast
from collections.abc import Iterator

from tidy_source import ROOT, Module, modules

# Call → (modules that may make it, what others do).
BANNED: dict[str, tuple[tuple[str, ...], str]] = {
    "time.time": (("clock", "tiers.disk"), "take a Clock"),
    "time.monotonic": (("cli.demo", "tiers.journal"), "take a Clock"),
    "time.monotonic_ns": (("clock", "replay", "tiers.base", "tiers.disk_io"), "take a Clock"),
    "time.perf_counter": ((), "take a Clock"),
    "time.perf_counter_ns": (("caller",), "take a Clock"),
    "time.sleep": (("replay", "stepper"), "wait for a future or an event"),
    "datetime": ((), "take a Clock"),
    "random": ((), "take a seed"),
    "secrets": ((), "os.urandom"),
    "np.random": (("workload",), "take a seed"),
    "os.environ": (("config", "cli.render"), "a field of Config"),
    "os.getenv": ((), "a field of Config"),
    "os._exit": ((), "raise"),
    "sys.exit": (("__main__",), "raise, or return the exit code"),
    "print": ((), "click.echo or a logger"),
    "input": ((), "an argument"),
    "eval": ((), "parse it"),
    "exec": ((), "write it down"),
    "pickle": ((), "a format of docs/"),
    "subprocess": ((), "call the library"),
    "os.system": ((), "call the library"),
    "logging.basicConfig": ((), "leave that to the program"),
    "warnings.warn": ((), "log it, or raise"),
}


def dotted(node: ast.AST) -> str:
    """`a.b.c` of an expression of names and attributes, else ''."""
    if isinstance(node, ast.Attribute):
        base = dotted(node.value)
        return f"{base}.{node.attr}" if base else ""
    return node.id if isinstance(node, ast.Name) else ""


def uses(module: Module) -> Iterator[tuple[str, int]]:
    """Every banned name a module touches, called or not, and `from time import ...`, which would hide one."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ImportFrom) and node.module in {"time", "random", "datetime", "os", "subprocess"}:
            yield node.module, node.lineno
        for name in (
            dotted(node),
            *(alias.name for alias in getattr(node, "names", ()) if isinstance(node, ast.Import)),
        ):
            if name in BANNED:
                yield name, node.lineno  # type: ignore[attr-defined]


def test_banned_calls_are_made_nowhere_else() -> None:
    wrong = []
    for module in modules():
        for name, line in uses(module):
            places, instead = BANNED.get(name, ((), f"import {name}, so that its calls can be seen"))
            if module.name not in places:
                wrong.append(f"{module.path.relative_to(ROOT)}:{line} {name}: {instead}")
    assert not wrong, "\n".join(wrong)


def test_no_exception_is_swallowed_without_a_word() -> None:
    """`except Exception: pass` hides defects; contextlib.suppress of named errors says what may be missing."""
    wrong = []
    for module in modules():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ExceptHandler) and all(isinstance(inner, ast.Pass) for inner in node.body):
                wrong.append(f"{module.path.relative_to(ROOT)}:{node.lineno}")
    assert not wrong, "\n".join(wrong)
