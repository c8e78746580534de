"""Quotas: how many bytes the blocks of a namespace, or of all of a tenant's, may take, and room within one by eviction
of its own coldest."""

from __future__ import annotations

from kvstore import policy
from kvstore.space import Space
from kvstore.tiers.base import DurableTier


class Quotas:
    """What each namespace and each tenant may hold, in slots and counted once for all tiers, reservations included. A
    far tier that outlives the process keeps the namespaces'. Caller holds the store's lock."""

    def __init__(self, space: Space) -> None:
        self._space = space
        self._nbytes: dict[int, int] = dict(self._durable.quotas()) if self._durable is not None else {}
        self._tenant_of: dict[int, str] = {}
        self._tenants: dict[str, int] = {}
        self._numbers: dict[str, int] = {"": 0}  # of tenants in the index

    @property
    def _durable(self) -> DurableTier | None:
        far = self._space.far
        return far if isinstance(far, DurableTier) else None

    def join(self, far: DurableTier) -> None:
        """A tier comes that keeps quotas: what it says of namespaces without a quota holds, of the others it learns."""
        kept = far.quotas()
        self._nbytes = kept | self._nbytes
        for ns, nbytes in self._nbytes.items():
            if nbytes != kept.get(ns, 0):
                far.remember_quota(ns, nbytes)
            if ns in self._space.sizes:
                self.apply(ns)

    def set(self, ns: int, nbytes: int) -> None:
        """From the next reservation on; 0 is no limit."""
        if self._durable is not None and nbytes != self.quota_nbytes(ns):
            self._durable.remember_quota(ns, nbytes)
        self._nbytes[ns] = nbytes
        self.apply(ns)

    def apply(self, ns: int) -> None:
        """Tell the index how many blocks the quota of a namespace allows; once its sizes are known."""
        nbytes = self.quota_nbytes(ns)
        self._space.index.set_quota(ns, nbytes // self._space.sizes[ns].slot_nbytes if nbytes else None)

    def quota_nbytes(self, ns: int) -> int:
        """0: no limit."""
        return self._nbytes.get(ns, 0)

    def used_nbytes(self, ns: int) -> int:
        """Bytes of all its blocks."""
        return int(self._space.index.num_blocks(ns)) * self._space.sizes[ns].slot_nbytes

    def belongs(self, ns: int, tenant: str) -> None:
        """Whose namespace it is; "" is nobody's."""
        self._tenant_of[ns] = tenant
        self._space.index.set_tenant(ns, self._number(tenant))

    def limit_tenant(self, tenant: str, nbytes: int) -> None:
        """What all namespaces of a tenant may hold together, from the next reservation on; 0 is no limit. Not kept."""
        self._tenants[tenant] = nbytes
        self._space.index.limit_tenant(self._number(tenant), nbytes)

    def _number(self, tenant: str) -> int:
        return self._numbers.setdefault(tenant, len(self._numbers))

    def room(self, ns: int, num_blocks: int) -> tuple[int, bool]:
        """How many of `num_blocks` new blocks are within the quotas of the namespace and of its tenant, after eviction
        of the namespace's own coldest, then of the tenant's others, where that is needed, and whether fewer could go
        than were to. One call looks at a bounded number of blocks of each namespace (csrc/c/evict.h)."""
        num_blocks, is_short = self._within(self.quota_nbytes(ns), [ns], num_blocks)
        if limit := self._tenant_nbytes(ns):
            num_blocks, is_shorter = self._within(limit, self._family(ns), num_blocks)
            is_short |= is_shorter
        return num_blocks, is_short

    def _tenant_nbytes(self, ns: int) -> int:
        tenant = self._tenant_of.get(ns, "")
        return self._tenants.get(tenant, 0) if tenant else 0

    def _family(self, ns: int) -> list[int]:
        """All namespaces of the same tenant, this one first."""
        tenant = self._tenant_of[ns]
        return [ns, *(other for other, owner in self._tenant_of.items() if owner == tenant and other != ns)]

    def _within(self, quota_nbytes: int, family: list[int], num_blocks: int) -> tuple[int, bool]:
        """As `room`, of one limit: new blocks are of the first namespace of `family`, which it is for."""
        if not quota_nbytes or not num_blocks:
            return num_blocks, False
        index, sizes = self._space.index, self._space.sizes
        slot = sizes[family[0]].slot_nbytes
        wanted = num_blocks * slot
        free = quota_nbytes - sum(map(self.used_nbytes, family))
        excess = wanted - free + policy.spare_nbytes(quota_nbytes, slot) if wanted > free else 0
        for ns in family:
            if excess > 0:
                before = self.used_nbytes(ns)
                most = min(index.num_blocks(ns), -(-excess // sizes[ns].slot_nbytes))
                _, groups = index.evict_namespace(ns, most, self._space.clock.time_s())
                self._space.give_back(groups)
                excess -= before - self.used_nbytes(ns)
        free = quota_nbytes - sum(map(self.used_nbytes, family))
        allowed = int(max(0, min(num_blocks, free // slot)))
        return allowed, allowed < min(num_blocks, quota_nbytes // slot)

    def stats(self, ns: int) -> dict[str, int]:
        """Numbers of a namespace."""
        return {
            "blocks": self._space.index.num_blocks(ns),
            "block_nbytes": self._space.sizes[ns].block_nbytes,
            "used_nbytes": self.used_nbytes(ns),
            "quota_nbytes": self.quota_nbytes(ns),
        }

    def text(self, ns: int) -> str:
        """Quotas and use, for reasons."""
        text = f"quota_nbytes={self.quota_nbytes(ns)}, of which {self.used_nbytes(ns)} are used"
        if limit := self._tenant_nbytes(ns):
            used = sum(map(self.used_nbytes, self._family(ns)))
            text += f"; tenant {self._tenant_of[ns]!r}: quota_nbytes={limit}, of which {used} are used"
        return text
