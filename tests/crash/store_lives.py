"""Lives of a whole store that end by `kill -9`, each forked from a process without threads that has all imported.

A life opens the folder, works, and says in an append-only log what it was promised. An audit, in a process of its own,
then opens the folder and holds it against the log. Two folders take turns: in the roomy one nothing can be evicted, so
that whatever a flush acknowledged must be there until it is removed; in the tight one everything may be evicted as soon
as something else is stored.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import kvstore
from kvstore.errors import TierRefused
from kvstore.tiers.disk import DiskTier
from kvstore.workload import fill_payloads, require_payloads

MIB = 1 << 20
BLOCK_NBYTES = (4096, 20_000, 60_000)  # of the namespaces 0, 1, 2
TOKENS = 4  # per block
CHAIN_BLOCKS_MAX = 12
DISK_NBYTES = {"roomy": 16 * MIB, "tight": 8 * MIB}
ROOMY_NBYTES_MAX = 6 * MIB  # stored at a time in the roomy folder, of 14 MiB: whole segments come free or are carried
LIFE_LINES_MAX = 80  # of its log, after which a life is killed; a draw of 0 kills it while it opens the folder
LIFE_S_MAX = 20.0  # for one that has hardly anything to say
KILL_S_MAX = 0.03  # more, so that it dies anywhere between two lines
FLUSH_MS = 60_000
REMOVED_MAX = 2000  # removed chains that are looked for in later lives

Chain = tuple[int, int]  # namespace, number


@dataclass
class Promises:
    """What the log of a life, or the audit before it, says of the chains of blocks: key → number of blocks from the
    first on."""

    stored_max: dict[Chain, int] = field(default_factory=dict)  # there may be no more
    kept: dict[Chain, int] = field(default_factory=dict)  # these have to be there
    removed: dict[Chain, int] = field(default_factory=dict)  # nothing from here on may be there
    num_flushes: int = 0
    num_swaps: int = 0  # times that the disk tier had left when it was to come back
    num_carried: int = 0  # blocks, by the last flush
    num_evicted: int = 0

    def read(self, path: Path, *, tight: bool) -> None:
        """Follow the log to its end, which may be in the middle of a line."""
        asked: dict[Chain, int] = {}  # removals that no flush has confirmed
        for line in path.read_text().splitlines(keepends=True):
            if not line.endswith("\n"):
                break
            verb, *numbers = json.loads(line)
            if verb == "store":
                chain, length = (numbers[0], numbers[1]), numbers[2]
                self.stored_max[chain] = max(self.stored_max.get(chain, 0), length)
                asked.pop(chain, None)
                self.removed.pop(chain, None)
                if tight:
                    self.kept.clear()
            elif verb == "remove":
                chain, depth = (numbers[0], numbers[1]), numbers[2]
                asked[chain] = min(depth, asked.get(chain, depth))
                self.kept[chain] = min(depth, self.kept.get(chain, 0))
            elif verb in ("leave", "come"):
                self.num_swaps += verb == "come"
            elif verb == "clear":
                for chain in [chain for chain in self.stored_max if chain[0] == numbers[0]]:
                    asked[chain] = self.kept[chain] = 0
            else:
                self.num_flushes += 1
                self.num_carried, self.num_evicted = numbers[1]
                self.kept = {(ns, number): length for ns, number, length in numbers[0]}
                for chain, depth in asked.items():
                    self.removed[chain] = min(depth, self.removed.get(chain, depth))
                asked = {}


class Session:
    """An open store and its three namespaces."""

    def __init__(self, folder: Path, kind: str, host_nbytes: int) -> None:
        self.store = kvstore.open(
            kvstore.Config(
                host={"nbytes": host_nbytes, "prefault": "off"},
                disk={"path": str(folder), "nbytes": DISK_NBYTES[kind], "segment_nbytes": MIB},
                index={"entries_max": 1 << 16},
                mover={"put_wait_ms": 60_000 if kind == "roomy" else 20},
            )
        )
        self.spaces = [
            self.store.namespace(kvstore.NamespaceSpec(model=f"m{nbytes}", block_nbytes=nbytes, block_tokens=TOKENS))
            for nbytes in BLOCK_NBYTES
        ]

    @property
    def tier(self) -> DiskTier:
        assert isinstance(self.store.far, DiskTier)
        return self.store.far

    def keys(self, chain: Chain, length: int) -> Any:
        first = chain[1] * CHAIN_BLOCKS_MAX * TOKENS
        return self.spaces[chain[0]].keys(np.arange(first, first + length * TOKENS, dtype=np.uint32))

    def length(self, chain: Chain) -> int:
        return self.spaces[chain[0]].match(self.keys(chain, CHAIN_BLOCKS_MAX)).num_blocks

    def read(self, chain: Chain, length: int) -> int:
        """How many blocks of a chain can be read; each of them is right."""
        keys = self.keys(chain, length)
        num_blocks, blocks = self.spaces[chain[0]].get(keys)
        if num_blocks:
            require_payloads(keys[:num_blocks], blocks[:num_blocks])
        return num_blocks


class Life(Session):
    """Random verbs without end. `there` is the most that may be stored; in the roomy folder `kept` is the least: what
    the last flush found, less removals. (Unwritten blocks may have to leave memory there, too.)"""

    def __init__(self, folder: Path, kind: str, rng: random.Random, there: dict[Chain, int], log: int) -> None:
        self._rng, self._log, self._roomy = rng, log, kind == "roomy"
        self._there, self._kept = dict(there), dict(there) if kind == "roomy" else {}
        self._next = 1 + max((number for _, number in there), default=0)
        self._leases: list[Any] = []
        super().__init__(folder, kind, 4 * MIB)

    def tell(self, *words: Any) -> None:
        os.write(self._log, json.dumps(words).encode() + b"\n")

    def run(self) -> None:
        verbs = [self.put, self.extend, self.get, self.lease, self.remove, self.clear, self.flush, self.swap]
        while True:
            self._rng.choices(verbs, weights=[8, 4, 4, 4, 5, 0.3, 3, 1])[0]()

    def put(self) -> None:
        chain = (self._rng.randrange(len(BLOCK_NBYTES)), self._next)
        self._next += 1
        self._put(chain, self._rng.randint(1, 8))

    def extend(self) -> None:
        """Also: store again what was removed or evicted."""
        if self._there:
            chain = self._rng.choice(list(self._there))
            self._put(chain, self._rng.randint(1, CHAIN_BLOCKS_MAX))

    def _put(self, chain: Chain, length: int) -> None:
        while self._roomy and sum(BLOCK_NBYTES[ns] * n for (ns, _), n in self._there.items()) > ROOMY_NBYTES_MAX:
            self._remove(next(iter(self._there)), 0)
        keys = self.keys(chain, length)
        blocks = np.empty((length, BLOCK_NBYTES[chain[0]]), dtype=np.uint8)
        fill_payloads(keys, blocks)
        self.tell("store", *chain, length)
        result = self.spaces[chain[0]].put(keys, blocks)
        length = max(length - len(result.rejected), self._there.get(chain, 0))  # leases may have taken all memory
        if length:
            self._there[chain] = length

    def get(self) -> None:
        if self._there:
            chain, length = self._rng.choice(list(self._there.items()))
            self.read(chain, length)  # perhaps less than is stored: leases may have taken all memory
            found = self.length(chain)
            assert found >= self._kept.get(chain, 0), f"{found} of {length} blocks of {chain}"

    def lease(self) -> None:
        if len(self._leases) > 3:
            self._leases.pop(0).release()
        elif self._there:
            chain = self._rng.choice(list(self._there))
            self._leases.append(self.spaces[chain[0]].lease(self.keys(chain, 2), deadline_ms=0))

    def remove(self) -> None:
        if self._there:
            chain, length = self._rng.choice(list(self._there.items()))
            self._remove(chain, self._rng.randrange(length))

    def _remove(self, chain: Chain, depth: int) -> None:
        self.tell("remove", *chain, depth)
        self.spaces[chain[0]].remove(self.keys(chain, CHAIN_BLOCKS_MAX)[depth : depth + 1])
        self._kept[chain] = min(depth, self._kept.get(chain, 0))
        self._there[chain] = min(depth, self._there[chain])
        if not depth:
            del self._there[chain]

    def clear(self) -> None:
        ns = self._rng.randrange(len(BLOCK_NBYTES))
        self.tell("clear", ns)
        self.spaces[ns].clear()
        self._there = {chain: length for chain, length in self._there.items() if chain[0] != ns}
        self._kept = {chain: length for chain, length in self._kept.items() if chain[0] != ns}

    def flush(self) -> None:
        while self._leases:  # a removed block that is leased is not gone yet
            self._leases.pop().release()
        flushed = self.store.flush(FLUSH_MS)
        assert flushed or not self._roomy
        found = {chain: self.length(chain) for chain in self._there}
        lost = {chain for chain, length in self._kept.items() if found.get(chain, 0) < length}
        assert not lost, f"{lost} had been flushed"
        if flushed:
            moved = self.store.mover.carried_blocks, self.store.index.counts()["evicted_far"]
            self.tell("flush", [[*chain, length] for chain, length in found.items()], moved)
            self._kept = dict(found) if self._roomy else {}
            self._there = {chain: length for chain, length in found.items() if length}

    def swap(self) -> None:
        """The disk tier leaves and comes back; what was flushed is there, less what was removed meanwhile."""
        self.flush()
        self.tell("leave")
        try:
            self.store.detach_tier("disk", FLUSH_MS)
        except TierRefused:
            assert not self._roomy
            return
        for verb in self._rng.choices([self.put, self.extend, self.remove, self.clear], [4, 4, 4, 0.3], k=3):
            verb()
        self.tell("come")
        self.store.attach_tier("disk")
        lost = {chain for chain, length in self._kept.items() if self.length(chain) < length}
        assert not lost, f"{lost} did not come back"


def audit(folder: Path, kind: str, promises: Promises) -> dict[Chain, int]:
    """Everything that must be true of a folder after a life: what is there, by chain."""
    session = Session(folder, kind, 64 * MIB)
    store, tier = session.store, session.tier
    store.check()
    there = {chain: session.length(chain) for chain in promises.stored_max}
    for chain, length in there.items():
        assert length >= promises.kept.get(chain, 0), f"{chain}: only {length} of {promises.kept[chain]} blocks"
        assert length <= promises.removed.get(chain, length), f"{chain}: block {promises.removed[chain]} came back"
        assert length <= promises.stored_max[chain], f"{chain}: more blocks than were ever stored"
        assert session.read(chain, length) == length, f"{chain}: a block cannot be read"
    num_blocks = sum(there.values())
    for ns, space in enumerate(session.spaces):
        expected = sum(length for chain, length in there.items() if chain[0] == ns)
        assert store.stats()["namespaces"][space.spec.title]["blocks"] == expected, f"namespace {ns}"
    assert store.stats()["mover"]["corrupt_blocks"] == 0 and tier.num_dropped == 0
    check_accounts(session, num_blocks)
    store.close()
    check_files(folder, DISK_NBYTES[kind] // MIB)
    return {chain: length for chain, length in there.items() if length}


def check_accounts(session: Session, num_blocks: int) -> None:
    """Index, tier and manifest agree about every block and byte."""
    assert session.store.flush(FLUSH_MS)
    counts, usage, manifest = session.store.index.counts(), session.tier.usage(), session.tier._manifest
    assert (usage.num_blocks, usage.used_nbytes) == (counts["far"], session.store.index.far_nbytes)
    assert counts["far"] == num_blocks
    num_entries = sum(len(row.entries) for segment in manifest.segments() for row in manifest.rows(segment)[0])
    assert num_entries == num_blocks, f"the manifest speaks of {num_entries} blocks, {num_blocks} are there"


def check_files(folder: Path, num_segments: int) -> None:
    """No file is there that nobody would miss."""
    assert {path.name for path in folder.iterdir()} == {"lock", "manifest", "segments"}
    assert {path.name for path in (folder / "manifest").iterdir()} == {"data.mdb", "lock.mdb"}
    for path in (folder / "segments").iterdir():
        assert path.name == f"{int(path.stem):05d}.seg" and int(path.stem) < num_segments, path
        assert path.stat().st_size == MIB, path


def forked(work: Callable[[], None]) -> int:
    """Run `work` in a child; its process id."""
    child = os.fork()
    if child:
        return child
    try:
        work()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


def wait_for_lines(log: Path, num_lines: int) -> None:
    end_s = time.monotonic() + LIFE_S_MAX
    while log.read_bytes().count(b"\n") < num_lines and time.monotonic() < end_s:
        time.sleep(0.001)


class Lives:
    """Life after life in one folder."""

    def __init__(self, folder: Path, kind: str) -> None:
        self._folder, self.kind = folder, kind
        self._there: dict[Chain, int] = {}
        self._removed: dict[Chain, int] = {}
        self.counts = dict.fromkeys(("flushes", "swaps", "kept", "removed", "carried", "evicted"), 0)

    def live_and_die(self, rng: random.Random) -> None:
        log, report = self._folder.with_suffix(".log"), self._folder.with_suffix(".json")
        log.unlink(missing_ok=True)
        descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        life = forked(lambda: Life(self._folder, self.kind, rng, self._there, descriptor).run())
        os.close(descriptor)
        wait_for_lines(log, max(0, rng.randint(-20, LIFE_LINES_MAX)))
        time.sleep(rng.uniform(0, KILL_S_MAX))
        os.kill(life, signal.SIGKILL)
        status = os.waitpid(life, 0)[1]
        assert os.WIFSIGNALED(status), f"the life ended by itself, status {status}"

        promises = Promises(dict(self._there), dict(self._there), dict(self._removed))
        for chain in self._removed:
            promises.stored_max.setdefault(chain, CHAIN_BLOCKS_MAX)
        promises.read(log, tight=self.kind == "tight")

        def work() -> None:
            there = audit(self._folder, self.kind, promises)
            report.write_text(json.dumps([[*chain, length] for chain, length in there.items()]))

        status = os.waitpid(forked(work), 0)[1]
        assert status == 0, f"the audit failed, status {status}"
        self._there = {(ns, number): length for ns, number, length in json.loads(report.read_text())}
        self._removed = dict(list(promises.removed.items())[-REMOVED_MAX:])
        for what, num in (
            ("flushes", promises.num_flushes),
            ("swaps", promises.num_swaps),
            ("kept", sum(promises.kept.values())),
            ("removed", len(promises.removed)),
            ("carried", promises.num_carried),
            ("evicted", promises.num_evicted),
        ):
            self.counts[what] += num


def main(seed: int, num_kills: int, places: list[Path]) -> None:
    """Says at the end, for each kind of folder, how much there was to hold against the audits."""
    lives = [Lives(place / kind, kind) for kind in DISK_NBYTES for place in places]
    for number in range(num_kills):
        turn = lives[number % len(lives)]
        try:
            turn.live_and_die(random.Random(f"{seed}/{number}"))
        except AssertionError as error:
            sys.exit(f"seed {seed}, kill {number}, {turn.kind}: {error}")
    for kind in DISK_NBYTES:
        counts = [turn.counts for turn in lives if turn.kind == kind]
        print(json.dumps([kind, {what: sum(one[what] for one in counts) for what in counts[0]}]))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), [Path(place) for place in sys.argv[3:]])
