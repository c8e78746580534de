"""What a caller is told of the numbers: the store's and the service's, without the names of other tenants."""

from __future__ import annotations

from typing import Any

from kvstore.service.attaching import Attaching
from kvstore.service.identity import Caller
from kvstore.service.limits import Held
from kvstore.store import BlockStore


class Statistics:
    """The store's statistics, with those of the service in the sections `service` and `attached`."""

    def __init__(self, store: BlockStore, held: Held) -> None:
        self._store, self._held = store, held
        self._began_us = store.clock.now_us()
        self.attaching: Attaching | None = None  # once it listens

    def all(self) -> dict[str, Any]:
        """Every number, of every tenant. Errors: Unavailable once the store is closed."""
        uptime_us = self._store.clock.now_us() - self._began_us
        service = {"uptime_us": uptime_us} | self._held.counts() | {"clients": self._held.clients()}
        attached = self.attaching.counts() if self.attaching is not None else {}
        return self._store.stats() | {"service": service, "attached": attached}

    def seen_by(self, caller: Caller) -> dict[str, Any]:
        """What this caller may know: with the verb `admin` everything, otherwise no namespace and no client of another
        tenant. Sums over all of them stay, for they name nobody. Errors: as `all`."""
        found = self.all()
        if "admin" in caller.rule.verbs:
            return found
        spaces, service = found["namespaces"], found["service"]
        found["namespaces"] = {name: row for name, row in spaces.items() if row["tenant"] == caller.tenant}
        service["clients"] = {name: row for name, row in service["clients"].items() if row["tenant"] == caller.tenant}
        return found
