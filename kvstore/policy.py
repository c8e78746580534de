"""Decisions, and nothing else: pure functions of numbers that are handed in. The order in which blocks leave is the
eviction policy's (csrc/c/policy.h); how many leave, when, and what moves is decided here."""

from __future__ import annotations

from dataclasses import dataclass

BATCH_BLOCKS = 256  # what one scan of the lease tables is spread over (csrc/c/evict.h)
READ_NBYTES = 4 << 20  # of a promotion's pieces
DAY_US = 86_400_000_000
ENDURANCE_BURST_US = DAY_US // 4  # a quarter of what may be written a day may be written at once
# Eviction policies that take full blocks only, as every engine puts them. Of a trace the others, as baselines, also
# keep the partial block at the end of a prompt, as published numbers do. It counts as asked for either way.
FULL_BLOCKS_ONLY = frozenset({"gittins"})
PROBE_US = 10_000_000  # a path that was worth no load, and carried nothing for so long, is looked at again
STALE_WEIGHT = 0.01  # what the measurements before such a pause still weigh after it
RATE_HALF_US = 60_000_000  # what was computed so long ago weighs half
WHATIF_FACTORS = {"0.5x": 0.5, "1x": 1.0, "2x": 2.0, "4x": 4.0, "8x": 8.0}  # sizes of a tier that are asked about
PLAY_PAUSE_US = 40_000  # between pieces of what is played at other sizes, some two milliseconds each
WHATIF_OWN = 1  # number of the size that it has
FULL_SHARE = 64  # of a tier: one with less room than this is full
SPARE_SHARE = 1024  # the spare slots of a tier are at most this part of it, so that small stores stay exact


def spare_nbytes(capacity_nbytes: int, slot_nbytes: int) -> int:
    """Bytes that may be used on top of the capacity, so that evictions come in batches: at most one batch of blocks
    and 1/1024 of the tier, in whole slots."""
    slots = min(BATCH_BLOCKS, capacity_nbytes // SPARE_SHARE // slot_nbytes)
    return slots * slot_nbytes


def is_full(used_nbytes: int, capacity_nbytes: int, slot_nbytes: int) -> bool:
    """Does something have to go for a new block, now or soon? 1/64 of a tier is as good as nothing: room is made for
    batches ahead."""
    return capacity_nbytes - used_nbytes < max(slot_nbytes, capacity_nbytes // FULL_SHARE)


def whatif_memory(near_nbytes: int) -> tuple[int, ...]:
    """Sizes of memory that are asked about."""
    return tuple(int(near_nbytes * factor) for factor in WHATIF_FACTORS.values())


def whatif_disk(near_nbytes: int, far_nbytes: int) -> tuple[int, ...]:
    """What memory and disk hold together at the sizes of the disk that are asked about: blocks in memory have a copy on
    disk, so it is what the larger of them holds."""
    return tuple(max(near_nbytes, int(far_nbytes * factor)) for factor in WHATIF_FACTORS.values())


def whatif_is_off(begun_slot_nbytes: int, slot_nbytes: int) -> bool:
    """Are blocks so much smaller or larger than a sample was made for that another should be taken?"""
    return not begun_slot_nbytes / 2 <= slot_nbytes <= begun_slot_nbytes * 4


def read_blocks(slot_nbytes: int) -> int:
    """How many blocks of a promotion are read as one piece: a reader waits for a whole piece, and what is paid for each
    must not show beside its I/O."""
    return max(1, READ_NBYTES // slot_nbytes)


@dataclass(frozen=True, slots=True)
class WriteBack:
    """How much may be under way to the far tier at a time, and how it is cut into batches."""

    batch_nbytes: int = 16 << 20
    batch_blocks: int = BATCH_BLOCKS
    batches_max: int = 4


def may_write(healthy: bool, num_batches: int, now_us: int, ready_us: int, limits: WriteBack) -> bool:
    """May another batch be started? `ready_us`: when the write budget allows the next byte."""
    return healthy and num_batches < limits.batches_max and now_us >= ready_us


def write_blocks(slot_nbytes: int, writing_nbytes: int, near_nbytes: int, limits: WriteBack) -> int:
    """Blocks that the next batch may have, while `writing_nbytes` of the near tier are under way: together no more than
    half of it, because what is being written cannot make room; but always one at a time."""
    left_nbytes = min(limits.batch_nbytes, near_nbytes // 2 - writing_nbytes)
    return max(min(limits.batch_blocks, left_nbytes // slot_nbytes), 0 if writing_nbytes else 1)


def may_scrub(healthy: bool, num_reads: int, now_us: int, ready_us: int, nbytes_per_s: int) -> bool:
    """May the scrubber go on? Not while anybody waits for a read; never with a budget of 0."""
    return nbytes_per_s > 0 and healthy and num_reads == 0 and now_us >= ready_us


def next_ready_us(ready_us: int, now_us: int, nbytes: int, nbytes_per_s: int) -> int:
    """When the write budget allows the batch after one of `nbytes`; unlimited when `nbytes_per_s` is 0."""
    if nbytes_per_s == 0:
        return 0
    return max(ready_us, now_us) + nbytes * 1_000_000 // nbytes_per_s


def endurance_full_us(full_us: int, now_us: int, nbytes: int, nbytes_per_day: int) -> int:
    """When the day's budget, a bucket of ENDURANCE_BURST_US worth of it, is full again after `nbytes` were taken out of
    what is full at `full_us`; nothing is ever missing when `nbytes_per_day` is 0, no limit."""
    if nbytes_per_day == 0:
        return 0
    return max(full_us, now_us) + nbytes * DAY_US // nbytes_per_day


def endurance_left_nbytes(full_us: int, now_us: int, nbytes_per_day: int) -> int:
    """What is in the bucket now. The last batch may have taken more than there was: that is waited for, too."""
    missing_us = max(0, full_us - now_us)
    return max(0, ENDURANCE_BURST_US - missing_us) * nbytes_per_day // DAY_US


def blocks_to_load(num_blocks: int, num_far: int, queue_us: float, load_us: float, compute_us: float) -> int:
    """How many of `num_blocks` leading blocks are worth having that way: `num_far` of them are loaded, behind what
    takes `queue_us`, for `load_us` each; what is behind those is computed anew, for `compute_us` each.

    With k of n blocks kept it takes queue_us + k * load_us + (n - k) * compute_us, or n * compute_us with none. In k
    that is a straight line with a step at 0, so that the least is at one of its ends: all of them, or none. A near
    block among them saves its computing and costs nothing.
    """
    return num_blocks if queue_us + num_far * load_us <= num_blocks * compute_us else 0


def may_probe(now_us: int, measured_us: int, probed_us: int) -> bool:
    """May a few blocks be loaded that are not worth it by what was measured? A path that nobody uses cannot be seen to
    become faster: once PROBE_US have passed since the last measurement and the last probe."""
    return now_us - max(measured_us, probed_us) >= PROBE_US


@dataclass(slots=True)
class TokenRate:
    """How fast tokens are computed: tokens and the time they took, the recent past weighing most."""

    tokens: float = 0.0
    busy_us: float = 0.0
    recorded_us: int = 0

    def record(self, num_tokens: int, elapsed_us: float, now_us: int) -> None:
        """So many tokens were computed in this time, until now."""
        kept = 0.5 ** (max(0, now_us - self.recorded_us) / RATE_HALF_US)
        self.tokens, self.busy_us = kept * self.tokens + num_tokens, kept * self.busy_us + elapsed_us
        self.recorded_us = now_us

    @property
    def tokens_per_s(self) -> float:
        """0.0 while nothing was recorded."""
        return self.tokens / self.busy_us * 1e6 if self.busy_us else 0.0


@dataclass(slots=True)
class Bandwidth:
    """Measured throughput of one path: bytes and busy time, the recent past weighing most, and what was before a pause
    of PROBE_US hardly anything.

    Transfers that overlap share their time: the path is busy while any of them is under way.
    """

    nbytes: float = 0.0
    busy_us: float = 0.0
    total_nbytes: int = 0
    total_us: int = 0
    busy_until_us: int = 0

    def record(self, nbytes: int, began_us: int, ended_us: int) -> None:
        """One transfer; to be called in the order in which they end."""
        if began_us - self.busy_until_us >= PROBE_US:  # it may be another device by now
            self.nbytes, self.busy_us = STALE_WEIGHT * self.nbytes, STALE_WEIGHT * self.busy_us
        elapsed_us = ended_us - max(began_us, self.busy_until_us)
        self.busy_until_us = ended_us
        self.total_nbytes += nbytes
        self.total_us += elapsed_us
        self.nbytes = 0.9 * self.nbytes + nbytes
        self.busy_us = 0.9 * self.busy_us + max(1, elapsed_us)

    @property
    def nbytes_per_s(self) -> float:
        """0.0 while nothing has been measured."""
        return self.nbytes / self.busy_us * 1e6 if self.busy_us else 0.0

    def estimate_us(self, nbytes: int) -> int:
        """Time for `nbytes` more; 0 while nothing has been measured."""
        return int(nbytes / self.nbytes * self.busy_us) if self.nbytes else 0
