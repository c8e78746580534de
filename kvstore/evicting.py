"""The section [policy] of the configuration."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import ByteSize, Field

from kvstore.section import TIER_NBYTES_MAX, Section

Eviction = Literal["gittins", "lru", "s3fifo", "arc"]
EVICTIONS: tuple[str, ...] = get_args(Eviction)


class Policy(Section):
    """Which blocks stay, and what callers may say about that."""

    eviction: Eviction = Field(
        default="gittins",
        description="Order in which blocks leave, and whether a new one is worth a place.",
    )
    ghosts_max: int = Field(
        default=1_000_000,
        ge=0,
        le=1 << 30,
        description="Blocks that are not stored and that the gittins policy may remember, up to 72 bytes each.",
    )
    disk_chance_min: float = Field(
        default=0.2,
        ge=0,
        le=1,
        description="Blocks that gittins expects back in half an hour less likely than this are not written to disk.",
    )
    disk_gain_min: float = Field(
        default=1.5,
        ge=0,
        le=1000,
        description="A full disk takes a block only if gittins ranks it so many times above what has to go; 0: any.",
    )
    pins_nbytes_max: ByteSize = Field(
        default=ByteSize(0),
        ge=0,
        le=TIER_NBYTES_MAX,
        description="Bytes of blocks that may be pinned at a time; 0 is a tenth of host.nbytes.",
    )
    ttl_blocks_max: int = Field(
        default=1 << 20, ge=0, le=1 << 26, description="Blocks of chains with a time to live; further ones get none."
    )
    whatif: bool = Field(default=True, description="Whether hit ratios at other sizes of the tiers are found (advise).")
