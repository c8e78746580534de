"""The public interface as a type checker sees it, and the stubs against what was compiled."""

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
STUBS = sorted(path.stem for path in (ROOT / "kvstore/_core").glob("*.pyi"))


def run(*arguments: str, cache: Path) -> None:
    command = [sys.executable, "-m", *arguments]
    environment = {**os.environ, "MYPY_CACHE_DIR": str(cache), "MYPYPATH": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr


def test_user_code_has_the_promised_types(tmp_path: Path) -> None:
    run("mypy", "--strict", "--follow-imports=silent", str(HERE / "user_code.py"), cache=tmp_path)


def test_stubs_say_what_was_compiled(tmp_path: Path) -> None:
    modules = [f"kvstore._core.{name}" for name in STUBS]
    allowed = HERE / "stubtest_allowlist.txt"
    run(
        "mypy.stubtest", "--concise", "--ignore-unused-allowlist", "--allowlist", str(allowed), *modules, cache=tmp_path
    )
