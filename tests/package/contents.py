"""What is in a built sdist and wheel: `python contents.py FOLDER`, with the log of their build beside them."""

import re
import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]


def expected(*folders_and_patterns: tuple[str, str]) -> set[str]:
    """Files of the source tree under each folder that match its pattern, generated ones left out."""
    found = {path for folder, pattern in folders_and_patterns for path in (ROOT / folder).rglob(pattern)}
    return {str(path.relative_to(ROOT)) for path in found if "_pb2" not in path.name and "__pycache__" not in str(path)}


def check_wheel(names: set[str]) -> None:
    """The package with its stubs and compiled modules, and nothing to compile."""
    wanted = expected(("kvstore", "*.py"), ("kvstore", "*.pyi"), ("kvstore", "py.typed"))
    assert wanted - names == set(), sorted(wanted - names)
    compiled = {name.partition(".")[0] for name in names if name.endswith(".so")}
    assert compiled == {str(Path(stub).with_suffix("")) for stub in expected(("kvstore/_core", "*.pyi"))}
    assert {"kvstore/v1/kvstore_pb2.py", "kvstore/v1/kvstore_pb2.pyi"} <= names
    others = {name.partition("/")[0] for name in names if not name.startswith("kvstore/")}
    assert all(name.endswith(".dist-info") for name in others), others
    sources = {name for name in names if name.endswith((".c", ".h", ".pyx", ".pxd", ".proto"))}
    assert not sources, sources


def check_sdist(names: set[str]) -> None:
    """Everything that a build needs."""
    inside = {name.partition("/")[2] for name in names}
    wanted = expected(("csrc", "*.[h]"), ("csrc/c", "*.c"), ("csrc", "*.p[yx][xd]"), ("protos", "*.proto"))
    wanted |= expected(("kvstore", "*.py"), ("kvstore", "*.pyi")) | {"setup.py", "pyproject.toml", "LICENSE"}
    assert wanted - inside == set(), sorted(wanted - inside)
    generated = {
        name for name in inside if "_pb2" in name or (name.startswith("csrc/kvstore/") and name.endswith(".c"))
    }
    assert not generated, generated


def check_log(text: str) -> None:
    """Neither setuptools nor the compiler had anything to complain about."""
    complaints = [line for line in text.splitlines() if re.search(r"\w+Warning\b|: warning: ", line)]
    assert not complaints, "\n".join(complaints)


def main() -> None:
    """Check the one sdist and the one wheel of a folder."""
    folder = Path(sys.argv[1])
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    with tarfile.open(sdist) as archive:
        check_sdist(set(archive.getnames()))
    with zipfile.ZipFile(wheel) as archive:
        check_wheel(set(archive.namelist()))
    check_log((folder / "build.log").read_text())


main()
