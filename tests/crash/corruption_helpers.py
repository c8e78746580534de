"""A whole store on disk whose every block proves itself, and ways to read all of it after something happened to it."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lmdb
import numpy as np

import kvstore
from kvstore.cli import main
from kvstore.tiers.base import ENTRY
from kvstore.workload import check_payloads, fill_payloads

MIB = 1 << 20
SEGMENT_NBYTES = MIB
BLOCK_TOKENS = 4
PROMPT_BLOCKS = 8
NUM_PROMPTS = 8  # of each namespace
SPECS = [
    kvstore.NamespaceSpec(model="even", block_nbytes=65_536, block_tokens=BLOCK_TOKENS),
    kvstore.NamespaceSpec(model="odd", block_nbytes=20_000, block_tokens=BLOCK_TOKENS),
]
NUM_BLOCKS = len(SPECS) * NUM_PROMPTS * PROMPT_BLOCKS

Rows = dict[bytes, bytes]


@dataclass(frozen=True, slots=True)
class Found:
    """What a store gave back: how many blocks, all of them right, and what it counted."""

    num_blocks: int
    corrupt_blocks: int
    dropped: int


def open_store(path: Path, host_nbytes: int) -> Any:
    return kvstore.open(
        kvstore.Config(
            host={"nbytes": host_nbytes, "prefault": "off"}, disk={"nbytes": "16 MiB", "path": path, "io_threads": 2}
        )
    )


def keys_of(namespace: Any, prompt: int) -> Any:
    return namespace.keys(np.arange(PROMPT_BLOCKS * BLOCK_TOKENS, dtype=np.uint32) + np.uint32(1000 * prompt))


def fill(path: Path, prompts: range = range(NUM_PROMPTS)) -> None:
    """Store these prompts of every namespace, each durable before the next."""
    with open_store(path, 6 * MIB) as store:  # less than the disk, which then can take all that is there
        end_s = time.monotonic() + 60
        while not store.far._table.num_ready:  # segments written ahead are used in the order of their numbers
            assert time.monotonic() < end_s, "no segment became ready"
            time.sleep(0.005)
        for spec in SPECS:
            namespace = store.namespace(spec)
            for prompt in prompts:
                keys = keys_of(namespace, prompt)
                blocks = np.empty((len(keys), spec.block_nbytes), dtype=np.uint8)
                fill_payloads(keys, blocks)
                result = namespace.put(keys, blocks, deadline_ms=60_000)
                assert not result.rejected
                assert store.flush()


def read_all(path: Path, prompts: range = range(NUM_PROMPTS)) -> Found:
    """Ask for every prompt twice; a wrong byte fails."""
    with open_store(path, 32 * MIB) as store:  # all of it fits
        for _ in range(2):
            num_blocks = 0
            for spec in SPECS:
                namespace = store.namespace(spec)
                for prompt in prompts:
                    keys = keys_of(namespace, prompt)
                    num, blocks = namespace.get(keys)
                    assert num == 0 or check_payloads(keys[:num], blocks[:num]).all(), f"wrong bytes in prompt {prompt}"
                    num_blocks += num
        store.check()
        stats = store.stats()
        assert stats["mover"]["defects"] == 0
        return Found(num_blocks, stats["mover"]["corrupt_blocks"], stats["tiers"]["disk"]["dropped"])


def run_check(capsys: Any, path: Path, *options: str) -> tuple[int, dict[str, Any]]:
    """`kvstore check`: its exit code and what it said; without a report, the line of its error."""
    capsys.readouterr()
    code = main(["check", str(path), "--json", *options])
    said = capsys.readouterr()
    return code, json.loads(said.out) if said.out else {"error": said.err.strip()}


def kinds_of(report: dict[str, Any]) -> dict[str, int]:
    return {finding["kind"]: finding["count"] for finding in report["problems"]}


def change_rows(path: Path, change: Callable[[Rows], Rows], database: bytes = b"rows") -> None:
    """Have `change` say what the records of a database are from now on."""
    with lmdb.open(str(path / "manifest"), max_dbs=4, lib_version=0) as env:
        handle = env.open_db(database)
        with env.begin(db=handle, write=True) as txn:
            before = {bytes(key): bytes(value) for key, value in txn.cursor()}
            after = change(dict(before))
            for key in before.keys() - after.keys():
                txn.delete(key)
            for key, value in after.items():
                txn.put(key, value)


def entries_of(path: Path) -> list[tuple[int, Any]]:
    """(segment, entry) of every block in the manifest."""
    found: list[tuple[int, Any]] = []

    def note(rows: Rows) -> Rows:
        for key, value in sorted(rows.items()):
            segment = int.from_bytes(key[:4], "big")
            found.extend((segment, entry) for entry in np.frombuffer(value[16:], ENTRY))
        return rows

    change_rows(path, note)
    return found


def segment_file(path: Path, segment: int) -> Path:
    return path / "segments" / f"{segment:05d}.seg"


def block_range(path: Path, segment: int, entry: Any) -> tuple[Path, int, int]:
    """Its file, first byte, and length."""
    return segment_file(path, segment), int(entry["offset"]) * 4096, int(entry["nbytes"])


def overwrite(file: Path, offset: int, content: bytes) -> None:
    with file.open("r+b") as opened:
        opened.seek(offset)
        opened.write(content)


def read_bytes(file: Path, offset: int, nbytes: int) -> bytes:
    with file.open("rb") as opened:
        opened.seek(offset)
        return opened.read(nbytes)


def flip(file: Path, offset: int, bit: int = 0) -> None:
    overwrite(file, offset, bytes([read_bytes(file, offset, 1)[0] ^ 1 << bit]))


def replace_folder(source: Path, target: Path) -> None:
    shutil.rmtree(target)
    shutil.copytree(source, target)
