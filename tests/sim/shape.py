"""How one run differs from the next: sizes, limits, faults, namespaces and prompts, all drawn from the seed."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from kvstore import policy
from kvstore.namespace import NamespaceSpec
from kvstore.space import Limits
from kvstore.tiers.base import PLACE_NBYTES
from kvstore.tiers.geometry import Geometry
from sim.client import Space
from sim.far import Faults

CHUNK_NBYTES = 2 << 20
LEASES_MAX = 4096


@dataclass(frozen=True)
class Shape:
    """How large everything is in one run."""

    near_nbytes: int
    arena_nbytes: int
    entries_max: int
    leases_max: int
    geometry: Geometry
    limits: Limits
    ttl_ms: int
    put_wait_ms: int

    @classmethod
    def drawn(cls, rng: Random) -> Shape:
        pages = rng.choice((12, 24, 48, 96))
        near_nbytes = pages * PLACE_NBYTES
        geometry = Geometry(rng.choice((4, 8, 16)) * PLACE_NBYTES, rng.choice((5, 8, 8, 16, 40)))
        batches = policy.WriteBack(batch_blocks=rng.choice((1, 3, 256)), batches_max=rng.choice((1, 2, 4)))
        limits = Limits(
            near_nbytes=near_nbytes,
            writeback_queue_blocks=rng.choice((6, 1 << 16, 1 << 16, 1 << 16)),
            promote_queue_blocks=rng.choice((3, 1 << 14, 1 << 14)),
            write_nbytes_per_s=rng.choice((0, 0, 0, 1 << 20)),
            scrub_nbytes_per_s=rng.choice((0, 1 << 14, 1 << 18)),
            pins_nbytes_max=rng.choice((1, near_nbytes // 8, near_nbytes // 2)),
            pin_leases_max=rng.choice((64, 256)),
            ttl_blocks_max=rng.choice((0, 8, 1 << 20)),
            batches=batches,
        )
        return cls(
            near_nbytes=near_nbytes,
            arena_nbytes=rng.choice((1, 2, 4)) * CHUNK_NBYTES,
            entries_max=rng.choice((24, 4096, 4096, 4096)),
            leases_max=rng.choice((256, LEASES_MAX, LEASES_MAX, LEASES_MAX)),
            geometry=geometry,
            limits=limits,
            ttl_ms=rng.choice((500, 5_000)),
            put_wait_ms=rng.choice((0, 30, 500)),
        )

    @property
    def far_nbytes(self) -> int:
        return (self.geometry.num_segments - 2) * self.geometry.segment_nbytes


def draw_faults(rng: Random) -> Faults:
    """Some kinds of faults, not all at once: each run has its own."""

    def sometimes(chance: float) -> float:
        return chance if rng.random() < 0.35 else 0.0

    return Faults(
        io_error=sometimes(0.1),
        corrupt=sometimes(0.05),
        rot=sometimes(0.02),
        batch_error=sometimes(0.15),
        stall=sometimes(0.05),
        fewer=sometimes(0.2),
        commit=sometimes(0.3),
        delay_us_max=rng.choice((50, 2_000, 100_000)),
    )


def draw_spaces(rng: Random) -> list[Space]:
    shapes = rng.sample([(4096, 1), (6000, 2), (12_288, 3), (100, 1)], rng.choice((1, 2, 2)))
    spaces = []
    for number, (block_nbytes, shards) in enumerate(shapes):
        spec = NamespaceSpec(model=f"model-{number}", block_nbytes=block_nbytes, block_tokens=2, shards=shards)
        spaces.append(Space(spec))
    return spaces


def draw_prompts(rng: Random, space: Space) -> None:
    """Prompts that share beginnings with each other, as those of one system prompt do."""
    stems: list[list[int]] = [[]]
    for _ in range(rng.randrange(3, 9)):
        stem = rng.choice(stems)
        tokens = stem[: 2 * rng.randrange(len(stem) // 2 + 1)]
        tokens = tokens + [rng.randrange(1000) for _ in range(2 * rng.randrange(1, 9))]
        stems.append(tokens)
        space.learn(space.handle.keys(tokens))
