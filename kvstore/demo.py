"""The demo's run: a chat workload, twice, through a store whose memory is far smaller than what the chats need."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from kvstore import hashing
from kvstore._core.arena import Arena
from kvstore.caller import PIECE_NBYTES, Caller, Counts, Traffic, paths
from kvstore.config import Config
from kvstore.errors import Unavailable
from kvstore.handle import Namespace
from kvstore.namespace import NamespaceSpec
from kvstore.space import slot_nbytes
from kvstore.store import BlockStore
from kvstore.timed import open_timed, set_time
from kvstore.workload import Chat, ChatRequest, chat_requests

NUM_ROUNDS = 2
BLOCK_TOKENS = 16
MEMORY_SHARE = 8  # of the working set, one part in so many fits into memory
PUT_WAIT_MS = 60_000  # the demo makes KV faster than a disk takes it: puts wait instead of dropping blocks
OTHER_NBYTES = 96 << 20  # what the process needs beside its blocks
CHAT = Chat(
    num_users=12,
    system_tokens=(200, 400),
    turn_tokens=(20, 100),
    answer_tokens=(50, 200),
    turns=(1, 5),
)


@dataclass(frozen=True, slots=True)
class Setup:
    """The workload and the sizes of a store for it."""

    requests: list[ChatRequest]
    spec: NamespaceSpec
    working_blocks: int  # different blocks that the requests and their answers have
    host_blocks: int
    disk_nbytes: int

    @property
    def block_nbytes(self) -> int:
        """Bytes of a block."""
        return self.spec.block_nbytes

    @property
    def host_nbytes(self) -> int:
        """What `host_blocks` take in memory."""
        return self.host_blocks * slot_nbytes(self.block_nbytes)


@dataclass(slots=True)
class Round:
    """What one pass over the requests brought."""

    counts: Counts = field(default_factory=Counts)
    requests: int = 0
    prompt_tokens: int = 0
    paths: dict[str, Traffic] = field(default_factory=dict)

    @property
    def tokens_reused(self) -> int:
        """Tokens of the blocks that were found."""
        return self.counts.blocks_hit * BLOCK_TOKENS

    @property
    def load_us(self) -> float:
        """Time until the hits were in the caller's memory: leases, with promotions, and copies."""
        return sum(self.counts.lease_us) + self.counts.copied_out.busy_us


def setup(seed: int, num_requests: int, block_nbytes: int) -> Setup:
    """Draw the workload and measure it: memory for 1/8 of its blocks, but for the longest chat; disk for all."""
    from kvstore.tiers.disk import capacity_for

    spec = NamespaceSpec(model="demo", block_nbytes=block_nbytes, block_tokens=BLOCK_TOKENS)
    requests = list(chat_requests(seed, num_requests, CHAT))
    blocks: set[bytes] = set()
    longest = 0
    for request in requests:
        tokens = np.concatenate([request.prompt, request.answer])
        keys = hashing.chain_keys(spec.digest(), tokens, BLOCK_TOKENS, spec.hash)
        blocks.update(bytes(key) for key in keys)
        longest = max(longest, len(keys))
    host_blocks = max(-(-len(blocks) // MEMORY_SHARE), longest + 1)
    return Setup(requests, spec, len(blocks), host_blocks, capacity_for(len(blocks), block_nbytes))


def run(plan: Setup, advance: Callable[[int], None]) -> list[Round]:
    """Both rounds; `advance` is told the round's number after each request. Every hit is verified.

    Errors: WrongBytes; Unavailable when memory or the temporary folder has less room than the demo needs.
    """
    require_room(plan)
    config = Config(
        host={"nbytes": plan.host_nbytes, "prefault": "now"},
        disk={"nbytes": plan.disk_nbytes},
        index={"entries_max": max(65_536, 2 * plan.working_blocks)},
        mover={"put_wait_ms": PUT_WAIT_MS},
    )
    with open_timed(config) as store:
        namespace = store.namespace(plan.spec)
        rounds = range(NUM_ROUNDS)
        return [_round(store, namespace, plan.requests, partial(advance, number)) for number in rounds]


def require_room(plan: Setup) -> None:
    """Unavailable, with the numbers, when memory or the temporary folder's file system has too little left."""
    scratch_nbytes = max(plan.host_nbytes, min(PIECE_NBYTES, plan.working_blocks * plan.block_nbytes))
    folder = tempfile.gettempdir()
    in_memory_nbytes = plan.disk_nbytes if file_system(folder) in ("tmpfs", "ramfs") else 0
    memory_nbytes = plan.host_nbytes + scratch_nbytes + in_memory_nbytes + OTHER_NBYTES
    Arena(memory_nbytes, base_pages=True).close()  # takes no page, only asks
    free_nbytes = shutil.disk_usage(folder).free
    if free_nbytes < plan.disk_nbytes:
        raise Unavailable(
            f"the demo needs {plan.disk_nbytes >> 20:,} MiB of disk, and the file system of {folder} has "
            f"{free_nbytes >> 20:,} MiB left; ask for fewer --requests, or set TMPDIR to a folder with more room"
        )


def _round(store: BlockStore, namespace: Namespace, requests: list[ChatRequest], advance: Callable[[], None]) -> Round:
    done = Round()
    mover_before = store.stats()["mover"]
    caller = Caller(namespace, done.counts, verify=True)
    began_ms = store.mover.policy_ms()
    for request in requests:
        set_time(store, began_ms + request.arrival_ms)
        prompt = namespace.keys(request.prompt)
        hit = caller.read(prompt)
        caller.put(prompt, hit)  # what a prefill would have computed
        whole = namespace.keys(np.concatenate([request.prompt, request.answer]))
        caller.put(whole, len(prompt))  # what decoding would have added
        done.requests += 1
        done.prompt_tokens += len(request.prompt)
        advance()
    store.flush()
    done.paths = paths(done.counts, mover_before, store.stats()["mover"])
    return done


def file_system(folder: str) -> str:
    """The kind of file system that `folder` lies on, as the kernel names it; "" when it does not say."""
    device = os.stat(folder).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as mounts:
            kinds = [line.partition(" - ")[2].split()[0] for line in mounts if line.split()[2] == wanted]
    except (OSError, IndexError):
        return ""
    return kinds[-1] if kinds else ""
