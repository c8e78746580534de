"""A daemon's server in this process, beside a client of ours that has to go on as if nothing had been."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import attach_wire as wire
from attach_wire import Raw
from service_helpers import Way, open_way, wait_for
from store_helpers import BLOCK, all_right, make_spec, payload, put_chain
from store_helpers import chain as chain_keys


class House:
    """A daemon's server in this process, one client of ours that is attached, and tickets for raw ones."""

    def __init__(self, folder: Path, stack: ExitStack, **sections: Any) -> None:
        self.way: Way = open_way("attached", folder, stack, **sections)
        self.ns = self.way.store.namespace(make_spec())
        self.keys = put_chain(self.ns, 3)
        self.num_clients = self.counts()["num_clients"]
        self.stack = stack

    @property
    def number(self) -> int:
        return int(self.ns._space.number)

    @property
    def path(self) -> str:
        return str(self.attaching.path)

    @property
    def attaching(self) -> Any:
        assert self.way.server is not None and self.way.server.attaching is not None
        return self.way.server.attaching

    def counts(self) -> dict[str, int]:
        counts: dict[str, int] = self.attaching.counts()
        return counts

    def ticket(self, number: int | None = None, *, may_write: bool = True) -> bytes:
        ticket: bytes = self.attaching.ticket(self.number if number is None else number, may_write=may_write)
        return ticket

    def raw(self, *, opened: bool = True, number: int | None = None, may_write: bool = True) -> Raw:
        raw = self.stack.enter_context(Raw(self.path))
        if opened:
            assert raw.open(self.ticket(number, may_write=may_write)).status == wire.OK
        return raw

    def is_idle(self) -> bool:
        """Nothing is held by anybody but our own client."""
        counts, stats = self.counts(), self.way.inner.stats()
        held = (counts["num_clients"] - self.num_clients, counts["num_silent"], counts["num_reservations"])
        return (*held, stats["index"]["writing"], stats["lookups"]["leases_in_use"]) == (0, 0, 0, 0, 0)

    def require_well(self) -> None:
        """Our own client goes on as if nothing had been."""
        assert wait_for(self.is_idle), (self.counts(), self.way.inner.stats())
        others = chain_keys(self.ns, 2, prompt=7)
        assert self.ns.put(others, payload(others)).present + self.ns.match(others).num_blocks >= 2
        num_blocks, blocks = self.ns.get(others)
        assert num_blocks == 2 and all_right(others, list(blocks))
        assert self.ns._space is not None and not self.ns._space.attachment.is_over
        self.way.inner.check()

    def limited(self, num_keys: int = 3) -> tuple[int, bytes]:
        """A namespace with a quota of two blocks, and keys of it."""
        ns = self.way.store.namespace(make_spec(model="limited"), quota_nbytes=2 * BLOCK)
        keys = chain_keys(ns, num_keys)
        ns.match(keys)
        return int(ns._space.number), keys.tobytes()
