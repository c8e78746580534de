"""S3-FIFO and ARC over chains in plain Python: what the core's policies of these names do, request by request.

Each is the paper's algorithm, with what a store adds to it. A request's stored prefix is used from its last block to
its first; then room is made for all that it brings at once, while its prefix is leased, and the new blocks come, the
last of them first. Only leaves leave: a block with children that is next in line is hidden, and stands there again
once the last of them is gone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Sequence

ONCE, OFTEN = 0, 1
HELD_MS = 1000
FORGOTTEN_MAX = 64


class QueueModel(ABC):
    """Two lists, cold end first, and the echoes of what left them."""

    remembered: tuple[bool, bool]
    moves_to_hot = False

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.lists: tuple[OrderedDict[int, None], ...] = (OrderedDict(), OrderedDict())
        self.echoes: tuple[OrderedDict[int, None], ...] = (OrderedDict(), OrderedDict())
        self.hidden: dict[int, int] = {}
        self.uses: dict[int, int] = {}
        self.parent: dict[int, int | None] = {}
        self.kids: dict[int, int] = {}
        self.held: dict[int, int] = {}  # spared candidates: number of the sparing
        self.held_from, self.held_until_ms, self.now_ms = 0, 0, 0
        self.clock = 0
        self.filled = 0  # blocks stored when the last one came
        self.num_due = 0

    # ---- what a policy adds

    @abstractmethod
    def used(self, block: int) -> None:
        """A stored block is asked for."""

    def missed(self, left: int) -> None:  # noqa: B027 - not every policy minds
        """A block that left this list is asked for again."""

    def put_off(self) -> None:  # noqa: B027 - likewise
        """Members that are next and shall not go yet move."""

    @abstractmethod
    def loser(self) -> int:
        """The list whose turn it is to give a block up."""

    @abstractmethod
    def surplus(self) -> int | None:
        """A list with an echo too many."""

    # ---- lists

    @property
    def num_stored(self) -> int:
        return len(self.hidden) + sum(map(len, self.lists))

    def count(self, number: int) -> int:
        return len(self.lists[number]) + list(self.hidden.values()).count(number)

    def list_of(self, block: int) -> int | None:
        if block in self.hidden:
            return self.hidden[block]
        return next((number for number in (ONCE, OFTEN) if block in self.lists[number]), None)

    def add_hot(self, block: int, number: int) -> None:
        self.hidden.pop(block, None)
        self.held.pop(block, None)
        for members in self.lists:
            members.pop(block, None)
        self.lists[number][block] = None

    def first(self) -> int:
        loser = self.loser()
        ends = [next(iter(members), None) for members in self.lists]
        own, other = ends[loser], ends[1 - loser]
        if other is None:
            return loser
        return 1 - loser if own is None or (self.is_held(own) and not self.is_held(other)) else loser

    def is_held(self, block: int) -> bool:
        return self.held.get(block, -1) >= self.held_from and self.now_ms < self.held_until_ms

    # ---- eviction

    def take(self, began: int) -> tuple[int, int] | None:
        """The next candidate and its list; what has children is hidden on the way."""
        while True:
            self.put_off()
            number = self.first()
            block = next(iter(self.lists[number]), None)
            if block is None or self.held.get(block, 0) > began:
                return None
            del self.lists[number][block]
            self.held.pop(block, None)
            if self.kids[block] == 0:
                return block, number
            self.hidden[block] = number

    def bare(self, parent: int | None) -> None:
        if parent is None:
            return
        self.kids[parent] -= 1
        if self.kids[parent] == 0 and parent in self.hidden:
            number = self.hidden.pop(parent)
            self.lists[number][parent] = None
            self.lists[number].move_to_end(parent, last=False)

    def spare(self, block: int, number: int) -> None:
        self.clock += 1
        if self.now_ms >= self.held_until_ms:
            self.held_from, self.held_until_ms = self.clock, self.now_ms + HELD_MS
        self.add_hot(block, number)
        self.held[block] = self.clock

    def evict(self, wanted: int, leased: set[int]) -> int:
        began, gone, is_over = self.clock, 0, False
        while gone < wanted and not is_over:
            batch: list[tuple[int, int]] = []
            while len(batch) < wanted - gone:
                taken = self.take(began)
                if taken is None:
                    is_over = True
                    break
                batch.append(taken)
                self.bare(self.parent[taken[0]])
            for block, number in batch:
                if block in leased or self.kids[block] > 0:
                    above = self.parent[block]
                    if above is not None:
                        self.kids[above] += 1
                    if block in leased:
                        self.spare(block, number)
                    continue
                if self.remembered[number]:
                    self.echoes[number][block] = None
                del self.uses[block], self.kids[block]
                gone += 1
            if not batch:
                break
        return gone

    # ---- requests

    def request(self, chain: Sequence[int], now_ms: int) -> tuple[int, int, int]:
        """Leading hits, hits anywhere, fills."""
        self.now_ms = now_ms
        known = [self.list_of(block) is not None for block in chain]
        hits = known.index(False) if False in known else len(chain)
        assert sum(known) == hits, "a block is stored without those before it"
        if hits:
            self.clock += 1
        for block in reversed(chain[:hits]):
            self.used(block)
        self.num_due = sum(not self.miss(block) for block in reversed(chain[hits:]))
        excess = self.num_stored + len(chain) - hits - self.capacity
        while excess > 0:
            gone = self.evict(excess, set(chain[:hits]))
            if gone == 0:
                break
            excess -= gone
        num_new = max(0, min(len(chain) - hits, self.capacity - self.num_stored))
        self.cover(chain, hits, hits + num_new)
        return hits, hits, num_new

    def miss(self, block: int) -> bool:
        for number in (ONCE, OFTEN):
            if block in self.echoes[number]:
                self.missed(number)
                self.echoes[number].move_to_end(block)
                return True
        return False

    def cover(self, chain: Sequence[int], start: int, end: int) -> None:
        if start == end:
            return
        self.clock += 1
        for at in range(start, end):
            self.parent[chain[at]] = chain[at - 1] if at else None
            self.kids[chain[at]] = 0
            if at:
                self.kids[chain[at - 1]] += 1
        for at in reversed(range(end)):
            block = chain[at]
            number = self.list_of(block)
            if number is None:
                is_echo = [block in self.echoes[ONCE], block in self.echoes[OFTEN]]
                for echoes in self.echoes:
                    echoes.pop(block, None)
                self.uses[block] = 0
                self.add_hot(block, OFTEN if any(is_echo) else ONCE)
            elif self.moves_to_hot:
                self.add_hot(block, number)
        self.filled, self.num_due = self.num_stored, 0
        for _ in range(2 * (end - start) + FORGOTTEN_MAX):
            surplus = self.surplus()
            if surplus is None:
                break
            self.echoes[surplus].popitem(last=False)


class PlainS3Fifo(QueueModel):
    remembered = (True, False)

    def used(self, block: int) -> None:
        self.uses[block] = min(3, self.uses[block] + 1)

    def loser(self) -> int:
        return ONCE if 10 * (self.count(ONCE) + max(0, self.num_due - 1)) >= self.filled else OFTEN

    def put_off(self) -> None:
        while True:
            number = self.loser()
            number = number if self.lists[number] else 1 - number
            block = next(iter(self.lists[number]), None)
            if block is None or self.is_held(block) or self.uses[block] <= (number == ONCE):
                return
            self.uses[block] = 0 if number == ONCE else self.uses[block] - 1
            self.add_hot(block, OFTEN)

    def surplus(self) -> int | None:
        return ONCE if len(self.echoes[ONCE]) > self.filled - self.filled // 10 else None


class PlainArc(QueueModel):
    remembered = (True, True)
    moves_to_hot = True

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self.target = 0.0

    def used(self, block: int) -> None:
        self.add_hot(block, OFTEN)

    def missed(self, left: int) -> None:
        step = max(1.0, len(self.echoes[1 - left]) / len(self.echoes[left]))
        self.target = min(max(0.0, self.target + (step if left == ONCE else -step)), float(self.filled))

    def loser(self) -> int:
        return ONCE if self.count(ONCE) + max(0, self.num_due - 1) > self.target else OFTEN

    def surplus(self) -> int | None:
        once, often = map(len, self.echoes)
        if self.count(ONCE) + once > self.filled:
            return ONCE if once else None
        if once + often > self.filled:
            return OFTEN if often else ONCE
        return None


MODELS = {"s3fifo": PlainS3Fifo, "arc": PlainArc}
