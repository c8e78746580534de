"""kvstore.aio: the verbs as coroutines, embedded and remote."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from pathlib import Path

import pytest
from service_helpers import WAYS, config_for, start, wait_for
from store_helpers import all_right, chain, make_spec, payload

from kvstore import Hint, aio
from kvstore.errors import InvalidRequest, LeaseExpired, Unavailable


async def opened(name: str, folder: Path, stack: ExitStack):
    """An asynchronous store and the BlockStore behind it."""
    config = config_for(folder)
    if name == "embedded":
        store = await aio.open(config)
        return store, store._inner
    inner, _ = start(config, stack)
    return aio.connect(f"unix:{config.serve.socket}"), inner


@pytest.mark.parametrize("name", WAYS)
def test_the_verbs_are_coroutines(name: str, tmp_path: Path):
    async def run(stack: ExitStack) -> None:
        store, inner = await opened(name, tmp_path, stack)
        async with store:
            ns = await store.namespace(make_spec())
            keys = chain(ns, 4)
            async with await ns.reserve(keys) as room:
                await room.fill(payload(keys))
                assert (await room.commit()).stored == 4
            assert (await ns.match(keys)).num_blocks == 4
            num_blocks, blocks = await ns.get(keys)
            assert num_blocks == 4 and all_right(keys, list(blocks))
            async with await ns.lease(keys) as lease:
                assert lease.num_blocks == 4 and all_right(keys, lease.views)
            with pytest.raises(LeaseExpired):
                _ = lease.views
            assert (await ns.prefetch(keys)).num_blocks == 4
            assert await ns.explain(keys) == ["host"] * 4
            assert (await store.stats())["index"]["entries"] == 4
            assert await store.flush() and not await ns.make_durable(keys, 50)
            with pytest.raises(InvalidRequest):
                await ns.match(b"short")
            hint = Hint(stop="end_turn", ttl_s=3600)
            assert await ns.hint(keys, hint) == 4 and (await ns.put(keys, payload(keys), hint=hint)).present == 4
            assert await ns.pin(keys, 60) == 4 and await ns.unpin(keys) == 4
            assert await ns.remove(keys[3:]) == 1 and await ns.clear() == 3
            assert wait_for(lambda: inner.stats()["lookups"]["leases_in_use"] == 0)
        with pytest.raises(Unavailable):
            await ns.match(keys)

    with ExitStack() as stack:
        asyncio.run(run(stack))


def test_a_lease_that_nobody_waits_for_any_more_is_released(tmp_path: Path):
    async def run() -> None:
        async with await aio.open(config_for(tmp_path)) as store:
            ns = await store.namespace(make_spec())
            keys = chain(ns, 2)
            await ns.put(keys, payload(keys))
            inner, real = ns._inner, ns._inner.lease
            going = asyncio.Event()
            loop = asyncio.get_running_loop()

            def slow(*arguments: object, **named: object) -> object:
                loop.call_soon_threadsafe(going.set)
                lease = real(*arguments, **named)
                assert inner._leases.used > 0
                return lease

            inner.lease = slow
            task = asyncio.create_task(ns.lease(keys))
            await going.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert wait_for(lambda: inner._leases.used == 0)

    asyncio.run(run())
