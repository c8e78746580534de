"""Run benchmarks and print each figure beside the ceiling measured in the same run.

\b
  hash          keys of a prompt: the core's hash chains against Python loops
  lookup        match, lease and release of a prefix among a million blocks, in C and from Python
  copy          gather, scatter and contiguous copies against memcpy and the best contiguous copy
  copy_kernels  every copy kernel on every shape, to choose between them on another processor
  evict         eviction and bookkeeping per block, and its metadata
  adversary     hits of each eviction policy on traces made to mislead it
  policy        what each eviction policy costs per block among a million
  rpc           control calls to a daemon against a bare gRPC server
  stream        blocks to and from a daemon against a bare gRPC stream
  attach        lookups, reservations and copies of an attached process against C, a socket and gRPC
  store         put and get through a whole store against a plain copy, and what a put costs beside it

Example: python -m bench hash,copy --json
"""

from __future__ import annotations

import importlib
import json
import shlex
import sys
from pathlib import Path

import click

from bench import report

FOLDER = Path(__file__).parent


def names() -> list[str]:
    """The benchmarks there are: the modules of this folder that define cases()."""
    return sorted(path.stem for path in FOLDER.glob("*.py") if "\ndef cases(" in path.read_text())


@click.command(help=__doc__)
@click.argument("which", metavar="NAME[,NAME]")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per figure and line.")
@click.option("--quick", is_flag=True, help="Finish in seconds; the figures mean little.")
@click.option("--save", type=click.Path(dir_okay=False, path_type=Path), help="Also write a result file.")
def main(which: str, as_json: bool, quick: bool, save: Path | None) -> None:
    wanted = which.split(",")
    unknown = [name for name in wanted if name not in names()]
    if unknown:
        raise click.UsageError(f"unknown benchmark {', '.join(unknown)}; there are: {', '.join(names())}")
    hardware = report.machine()
    results = []
    for name in wanted:
        for result in importlib.import_module(f"bench.{name}").cases(quick):
            results.append(result)
            if as_json:
                click.echo(json.dumps(result.as_dict()))
    if not as_json:
        report.show(results, hardware)
    if save is not None:
        report.save(save, results, hardware, shlex.join(["python", "-m", "bench", *sys.argv[1:]]))


main(prog_name="python -m bench")
