"""Traces that are made to mislead an eviction policy: prefix hits of each policy, in % of the blocks asked for.

A chat of 6,000 conversations (a shared beginning out of twenty, then a few blocks more with each turn, minutes
between the turns) is mixed with what it has to bear. Capacities are shares of a trace's unique blocks; opt is the
offline optimum.

chat      nothing else
scan      a prompt of 50 blocks every second that nobody asks for again
flood     half a minute out of five with fifty such prompts a second, of 8 blocks
loop      the same prompts round and round, a tenth more than fit into 3 %, among prompts that are asked for once
shift     a popular set of documents that is replaced by another one in the middle
burst     every ten seconds a new prompt two hundred times in a second, and then no more
day       a clock that jumps by a day in the middle
month     the same by thirty days
frozen    a clock that stands still
liar      six prompts a second of 8 blocks for once only, and nothing that is said of them tells them from the chat's
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import count

import numpy as np

from bench.clock import SEED
from bench.report import Result
from kvstore.simulate import INFINITE, Demand, blocks_of, demand, known_policies, simulate
from kvstore.trace import BLOCK_TOKENS, Request

SHARES = (0.01, 0.03, 0.1)
CONVERSATIONS, CONVERSATIONS_QUICK = 6000, 150
SPAN_MS_EACH = 600  # from one conversation's beginning to the next
NUM_OPENINGS, OPENING_BLOCKS = 20, 4
DAY_MS = 86_400_000
CHAT_ENDING = "end_turn"
POLICIES = tuple(name for name in known_policies() if name != INFINITE)


@dataclass(frozen=True, slots=True)
class Prompt:
    """One request to be: its chain, and when."""

    time_ms: int
    chain: tuple[int, ...]
    stop_reason: str = ""


@dataclass(slots=True)
class Maker:
    """Prompts out of one seed; every id is handed out once."""

    num_conversations: int
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(SEED))
    _ids: Iterator[int] = field(default_factory=count)

    @property
    def span_ms(self) -> int:
        return self.num_conversations * SPAN_MS_EACH

    def fresh(self, num_blocks: int) -> tuple[int, ...]:
        return tuple(next(self._ids) for _ in range(num_blocks))

    def chat(self) -> list[Prompt]:
        openings = [self.fresh(OPENING_BLOCKS) for _ in range(NUM_OPENINGS)]
        popular = 1 / np.arange(1, NUM_OPENINGS + 1)
        prompts = []
        for start_ms in self.rng.uniform(0, self.span_ms, self.num_conversations):
            chain, now_ms, stay = openings[self.rng.choice(NUM_OPENINGS, p=popular / popular.sum())], start_ms, 0.4
            while now_ms < self.span_ms:
                chain = chain + self.fresh(int(self.rng.integers(1, 12)))
                prompts.append(Prompt(int(now_ms), chain, CHAT_ENDING))
                if self.rng.random() > stay:
                    break
                stay = min(0.9, stay + 0.1)
                now_ms += self.rng.lognormal(np.log(120_000), 0.9)
        return prompts

    def once(self, times_ms: np.ndarray, num_blocks: int, stop_reason: str = "") -> list[Prompt]:
        return [Prompt(int(now), self.fresh(num_blocks), stop_reason) for now in times_ms]

    def scan(self) -> list[Prompt]:
        return self.chat() + self.once(np.arange(0, self.span_ms, 1000), 50)

    def liar(self) -> list[Prompt]:
        return self.chat() + self.once(np.arange(0, self.span_ms, 166), 8, CHAT_ENDING)

    def flood(self) -> list[Prompt]:
        times_ms = np.arange(0, self.span_ms, 20)
        return self.chat() + self.once(times_ms[times_ms % 300_000 >= 270_000], 8)

    def loop(self) -> list[Prompt]:
        """Of a request of 16 blocks each: once those that make up the rest of the unique blocks, else the loop."""
        num_requests = 5 * self.num_conversations
        num_once = round(num_requests * 0.4)
        num_loop = max(1, round(0.03 * 1.1 * num_once / (1 - 0.03 * 1.1)))
        chains = [self.fresh(16) for _ in range(num_loop)]
        is_once = self.rng.permutation(num_requests) < num_once
        turn = np.cumsum(~is_once)
        return [
            Prompt(at * 100, self.fresh(16) if once else chains[turn[at] % num_loop]) for at, once in enumerate(is_once)
        ]

    def shift(self) -> list[Prompt]:
        num_documents = self.num_conversations // 2
        chains = [self.fresh(12) for _ in range(2 * num_documents)]
        ranks = self.rng.zipf(1.2, 5 * self.num_conversations) % num_documents
        ranks[len(ranks) // 2 :] += num_documents
        return [Prompt(at * 100, chains[rank]) for at, rank in enumerate(ranks)]

    def burst(self) -> list[Prompt]:
        prompts = self.chat()
        for start_ms in range(0, self.span_ms, 10_000):
            chain = self.fresh(8)
            prompts += [Prompt(start_ms + 5 * copy, chain) for copy in range(200)]
        return prompts

    def jump(self, by_ms: int) -> list[Prompt]:
        middle_ms = self.span_ms // 2
        return [replace(p, time_ms=p.time_ms + by_ms * (p.time_ms >= middle_ms)) for p in self.chat()]

    def frozen(self) -> list[Prompt]:
        return [replace(p, time_ms=0) for p in sorted(self.chat(), key=lambda prompt: prompt.time_ms)]


WORKLOADS: dict[str, Callable[[Maker], list[Prompt]]] = {
    "chat": Maker.chat,
    "scan": Maker.scan,
    "flood": Maker.flood,
    "loop": Maker.loop,
    "shift": Maker.shift,
    "burst": Maker.burst,
    "day": lambda maker: maker.jump(DAY_MS),
    "month": lambda maker: maker.jump(30 * DAY_MS),
    "frozen": Maker.frozen,
    "liar": Maker.liar,
}


def trace(name: str, num_conversations: int) -> Demand:
    prompts = sorted(WORKLOADS[name](Maker(num_conversations)), key=lambda prompt: prompt.time_ms)
    return demand(
        Request(p.time_ms, len(p.chain) * BLOCK_TOKENS, 0, np.array(p.chain, dtype=np.uint32), p.stop_reason)
        for p in prompts
    )


def cases(quick: bool) -> Iterator[Result]:
    for name in WORKLOADS:
        asked = trace(name, CONVERSATIONS_QUICK if quick else CONVERSATIONS)
        for share in SHARES:
            num_blocks = blocks_of(share, asked.num_unique)
            best = 100 * simulate(asked, "opt", num_blocks).prefix_hit
            for policy in POLICIES:
                hit = 100 * simulate(asked, policy, num_blocks).prefix_hit
                case = f"{name}_{policy}_{100 * share:g}"
                yield Result("adversary", case, hit, "%", best, "the offline optimum", detail=f"{num_blocks:,} blocks")
