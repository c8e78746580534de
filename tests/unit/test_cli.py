"""The command line's frame: lazy subcommands, help, exit codes, one line per error."""

import os
import signal
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import click
import pytest

from kvstore.cli import COMMANDS, main, program

EXAMPLE = '''
import click
from kvstore.cli import Command
from kvstore.errors import LimitExceeded

@click.command(cls=Command, example="kvstore {name} --fail")
@click.option("--fail", type=click.Choice(["known", "usage", "abort", "three"]))
def command(fail):
    """Do it."""
    if fail == "known":
        raise LimitExceeded("num_blocks is 9, at most 8")
    if fail == "usage":
        raise click.UsageError("these two do not go together")
    if fail == "abort":
        raise KeyboardInterrupt
    click.echo("did it")
    return 3 if fail == "three" else None
'''


@pytest.fixture
def group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> click.Command:
    package = tmp_path / "commands_of_test"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "good.py").write_text(EXAMPLE.replace("{name}", "good"))
    (package / "broken.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.startswith("commands_of_test")]:
        monkeypatch.delitem(sys.modules, name)
    return program("commands_of_test", {"good": "Do it well.", "broken": "Never imported.", "absent": "No file."})


def test_help_lists_what_exists_and_imports_nothing(group: click.Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"], group) == 0
    text = capsys.readouterr().out
    assert "good    Do it well." in text
    assert "broken  Never imported." in text
    assert "absent" not in text
    assert "commands_of_test.good" not in sys.modules


def test_a_subcommand_runs_and_shows_its_example(group: click.Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["good"], group) == 0
    assert capsys.readouterr().out == "did it\n"
    assert main(["good", "--help"], group) == 0
    assert "Example:\n  kvstore good --fail" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["good", "--fail", "known"], 1, "kvstore: num_blocks is 9, at most 8\n"),
        (["good", "--fail", "abort"], 1, "kvstore: interrupted\n"),
        (["good", "--fail", "usage"], 2, "these two do not go together"),
        (["good", "--fail", "nonsense"], 2, "'nonsense' is not one of"),
        (["good", "--nonsense"], 2, "No such option"),
        (["absent"], 2, "No such command 'absent'"),
        ([], 2, "Usage: kvstore"),
        (["good", "--fail", "three"], 3, ""),
    ],
)
def test_exit_codes(
    group: click.Command, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, text: str
) -> None:
    assert main(arguments, group) == code
    error = capsys.readouterr().err
    assert text in error
    assert "Traceback" not in error
    if text.startswith("kvstore: "):
        assert error.lstrip("\n") == text  # click ends the line of a "^C"


def test_a_closed_pipe_is_no_traceback() -> None:
    code = "import sys; from kvstore.cli import main; sys.exit(main(['--help']))"
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-c", code], stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")


def test_version_through_python_m() -> None:
    try:
        version = metadata.version("kvstore")
    except metadata.PackageNotFoundError:
        pytest.skip("kvstore is not installed here, only importable")
    done = subprocess.run([sys.executable, "-m", "kvstore", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"kvstore, version {version}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    assert f"Example:\n  kvstore {name}" in capsys.readouterr().out


def test_sigterm_ends_a_command_as_an_interrupt_does(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)

    @click.command()
    def slow() -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    assert main([], slow) == 1
    assert capsys.readouterr().err.strip() == "kvstore: interrupted"
    assert signal.getsignal(signal.SIGTERM) == before
