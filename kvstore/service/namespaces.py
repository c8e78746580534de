"""Namespaces as callers opened them: handles, and keys that carry the caller's tenant."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from dataclasses import dataclass, replace

from kvstore import hashing
from kvstore.access import Verb
from kvstore.arrays import Keys
from kvstore.checks import KEY_NBYTES, checked_keys
from kvstore.errors import InvalidRequest, KVStoreError, LimitExceeded
from kvstore.handle import Namespace
from kvstore.namespace import NamespaceSpec
from kvstore.service.identity import Caller
from kvstore.service.limits import KEYS_MAX
from kvstore.store import BlockStore

NUMBER_BITS = 16  # namespaces have numbers up to 65,535


class Stale(KVStoreError):
    """A handle that this life of the server has not given to this caller's tenant."""

    code = "NOT_FOUND"


@dataclass(frozen=True, slots=True)
class Opened:
    """A namespace of one tenant. `title` is its name as the tenant calls it."""

    namespace: Namespace
    tenant: str
    title: str
    seed: bytes

    @property
    def event_seed(self) -> bytes:
        """What a caller has to mix with its keys to know them in events; empty where they are the same."""
        return self.seed if self.tenant else b""

    def keys(self, sent: bytes) -> Keys:
        """What the store knows the caller's blocks by. Errors: InvalidRequest, LimitExceeded."""
        if len(sent) > KEYS_MAX * KEY_NBYTES:
            raise LimitExceeded(f"{len(sent) // KEY_NBYTES} keys are more than keys_max={KEYS_MAX}")
        keys = checked_keys(sent)
        return hashing.mix_keys(self.seed, keys) if self.tenant else keys


class Namespaces:
    """Handle → namespace. A handle holds a random number of this life, so that one of an earlier life is never
    mistaken; whose it is, is checked again at every call."""

    def __init__(self, store: BlockStore) -> None:
        self._store = store
        self._life = int.from_bytes(os.urandom(6), "little") << NUMBER_BITS
        self._opened: dict[int, Opened] = {}
        self._quotas: dict[str, int] = {}  # of tenants, as the store was told
        self._lock = threading.Lock()

    def open(self, caller: Caller, spec: NamespaceSpec, quota_nbytes: int | None) -> tuple[int, Opened]:
        """A namespace and its handle, of the caller's tenant. Errors: those of BlockStore.namespace, AccessDenied."""
        if spec.tenant:
            raise InvalidRequest(f"tenant={spec.tenant!r}: the tenant is who the caller is")
        rule = caller.rule
        rule.require_namespace(spec.title)
        if quota_nbytes is not None:
            rule.require("admin")
        own = replace(spec, tenant=caller.tenant)
        self._limit(caller)
        with self._lock:
            mine = {one.title for one in self._opened.values() if one.tenant == caller.tenant}
            if spec.title not in mine:
                rule.require_room(len(mine))
            namespace = self._store.namespace(own, quota_nbytes)
            handle = self._life | namespace.number
            opened = self._opened[handle] = Opened(namespace, caller.tenant, spec.title, own.digest())
        return handle, opened

    def get(self, caller: Caller, handle: int, verb: Verb) -> Opened:
        """Errors: Stale, also for another tenant's; AccessDenied for a verb or name that is not allowed any more."""
        caller.rule.require(verb)
        opened = self._opened.get(handle)
        if opened is None or opened.tenant != caller.tenant:
            raise Stale(f"namespace {handle:#x} is not open here; open it again")
        caller.rule.require_namespace(opened.title)
        self._limit(caller)
        return opened

    def titles(self, caller: Caller, verb: Verb, numbers: Iterable[int]) -> dict[int, str]:
        """Which of the namespaces with these numbers are the caller's tenant's and open to it, and what it calls them;
        also those that nobody has opened in this life. Errors: AccessDenied for the verb."""
        caller.rule.require(verb)
        specs = {number: self._store.spec(number) for number in numbers}
        mine = {number: spec.own_title for number, spec in specs.items() if spec.tenant == caller.tenant}
        return {number: title for number, title in mine.items() if caller.rule.may_use(title)}

    def _limit(self, caller: Caller) -> None:
        """The tenant's quota is what its row says now: rows can change while it has namespaces open."""
        quota_nbytes = int(caller.rule.quota_nbytes)
        if caller.tenant and self._quotas.get(caller.tenant) != quota_nbytes:
            self._store.limit_tenant(caller.tenant, quota_nbytes)
            self._quotas[caller.tenant] = quota_nbytes

    def set_quota(self, caller: Caller, handle: int, quota_nbytes: int) -> None:
        """Errors: as `get`, and those of BlockStore.namespace."""
        opened = self.get(caller, handle, "admin")
        self._store.namespace(opened.namespace.spec, quota_nbytes)

    def clear_all(self) -> int:
        """Remove every block of every open namespace; how many went."""
        return sum(opened.namespace.clear() for opened in list(self._opened.values()))
