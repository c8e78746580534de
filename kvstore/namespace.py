"""Namespaces: everything that must be equal for KV bytes to be reusable, and the digest that seeds every key."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass, fields, replace

from kvstore.errors import InvalidRequest, NamespaceMismatch

BLOCK_TOKENS_MAX = 4096
BLOCK_NBYTES_MAX = 1 << 30
SHARDS_MAX = 32
TEXT_MAX = 512
HASHES = ("sha256", "xxh3_128")
TENANT = re.compile(r"[A-Za-z0-9._-]{1,64}")
IDENTITY = ("model", "lora", "group", "salt")  # what a namespace without a name is told apart by


def _check_int(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InvalidRequest(f"{name}={value!r} is not an integer between {low} and {high}")


@dataclass(frozen=True, slots=True, kw_only=True)
class NamespaceSpec:
    """What a namespace holds. Two specs with equal fields share blocks; any difference keeps them apart.

    `block_nbytes` is the size of a whole block, all shards together. `shards` is the number of parts that are written
    separately (tensor parallel ranks); the block becomes visible when all are committed. `name` is what two openings
    have to agree on; empty, it is made of model, lora, group and salt, so that opening the same model with another
    dtype, layout or block size is refused instead of mixing bytes. `tenant` is filled in by the daemon from the
    caller's identity: leave it empty. Errors: InvalidRequest names the field.
    """

    model: str
    block_nbytes: int
    revision: str = "main"
    dtype: str = "bfloat16"
    layout: str = "opaque"
    block_tokens: int = 16
    shards: int = 1
    lora: str = ""
    group: int = 0
    hash: str = "sha256"
    salt: str = ""
    name: str = ""
    tenant: str = ""

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if item.type == "str" and (not isinstance(value, str) or len(value) > TEXT_MAX):
                raise InvalidRequest(f"{item.name}={value!r:.80} is not a text of at most {TEXT_MAX} characters")
        if not self.model:
            raise InvalidRequest("model='' is empty; name the model whose KV this is")
        if self.tenant and not TENANT.fullmatch(self.tenant):
            raise InvalidRequest(f"tenant={self.tenant!r:.80} is not 1 to 64 of A-Z a-z 0-9 . _ -")
        _check_int("block_tokens", self.block_tokens, 1, BLOCK_TOKENS_MAX)
        _check_int("block_nbytes", self.block_nbytes, 1, BLOCK_NBYTES_MAX)
        _check_int("shards", self.shards, 1, SHARDS_MAX)
        _check_int("group", self.group, 0, 2**31 - 1)
        if self.block_nbytes % self.shards:
            raise InvalidRequest(f"block_nbytes={self.block_nbytes} does not divide into shards={self.shards}")
        if self.hash not in HASHES:
            raise InvalidRequest(f"hash={self.hash!r} is not one of {', '.join(HASHES)}")

    @property
    def part_nbytes(self) -> int:
        """Bytes of one shard's part of a block."""
        return self.block_nbytes // self.shards

    @property
    def title(self) -> str:
        """The name that a handshake compares under; no two tenants have one in common."""
        return f"{self.own_title} tenant={self.tenant}" if self.tenant else self.own_title

    @property
    def own_title(self) -> str:
        """The same as its tenant calls it: `name`, or what it is made of."""
        rest = [f"{item}={getattr(self, item)}" for item in IDENTITY[1:] if getattr(self, item)]
        return self.name or " ".join([self.model, *rest])

    def text(self) -> str:
        """Canonical text (docs/formats.md, "Namespace"): JSON, keys sorted, no spaces; without an empty tenant."""
        values = asdict(self)
        if not self.tenant:
            del values["tenant"]
        return json.dumps(values, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_text(cls, text: str) -> NamespaceSpec:
        """The spec of a canonical text; InvalidRequest when it is none."""
        try:
            return cls(**json.loads(text))
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidRequest(f"not a namespace: {error}") from None

    def digest(self) -> bytes:
        """32 bytes that seed the hash chain: no two namespaces or tenants can have a key in common."""
        shared = replace(self, tenant="").text()
        return hashlib.sha256(f"kvstore namespace v1\n{self.tenant}\n{shared}".encode()).digest()

    def require_equal(self, wanted: NamespaceSpec) -> None:
        """NamespaceMismatch naming the first field in which `wanted` differs from this, the stored spec."""
        for item in fields(self):
            stored, asked = getattr(self, item.name), getattr(wanted, item.name)
            if stored != asked:
                raise NamespaceMismatch(self.title, item.name, stored, asked)
