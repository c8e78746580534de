"""The verbs as coroutines, over an embedded or a remote store: each call runs in a thread of a small pool.

Same names, arguments and errors. What waits is awaited; what only computes or looks at what is there (`keys`, `views`,
`num_blocks`, ...) is called as it is. `prefetch` awaits the Match itself. A cancelled await leaves its call to end by
itself, so a lease or room that it was to give is released when it comes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

from kvstore import embedded
from kvstore.client import connect as connect_store
from kvstore.config import Config
from kvstore.errors import Unavailable
from kvstore.events import START, Events, Position

__all__ = ["Lease", "Namespace", "Room", "Store", "Watch", "connect", "open"]

THREADS = 16


class _Wrapper:
    """An object whose waiting calls are awaited and everything else passed on."""

    _awaited: frozenset[str] = frozenset()

    def __init__(self, inner: Any, pool: ThreadPoolExecutor) -> None:
        self._inner, self._pool = inner, pool

    async def _run(self, call: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        return await asyncio.wrap_future(self._begin(call, *arguments, **named))

    def _begin(self, call: Callable[..., Any], *arguments: Any, **named: Any) -> Future[Any]:
        """Errors: Unavailable once the store was closed."""
        try:
            return self._pool.submit(lambda: call(*arguments, **named))
        except RuntimeError:
            raise Unavailable("the store is closed") from None

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if name not in self._awaited:
            return found

        async def call(*arguments: Any, **named: Any) -> Any:
            return await self._run(found, *arguments, **named)

        return call


class _Released(_Wrapper):
    """Something that is let go of at the end of an `async with`."""

    async def release(self) -> None:
        """As the synchronous one."""
        await self._run(self._inner.release)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.release()


class Lease(_Released):
    """As kvstore.lease.Lease; `copy_into` and `release` are coroutines."""

    _awaited = frozenset({"copy_into"})


class Room(_Released):
    """As kvstore.room.Room; `fill`, `commit` and `release` are coroutines."""

    _awaited = frozenset({"fill", "commit"})


class Namespace(_Wrapper):
    """As kvstore.Namespace; every verb but `keys` and `computed` is a coroutine."""

    _awaited = frozenset({"match", "get", "put", "make_durable", "remove", "clear", "explain", "hint", "pin", "unpin"})

    async def lease(self, *arguments: Any, **named: Any) -> Lease:
        """As Namespace.lease."""
        return Lease(await self._held(self._inner.lease, *arguments, **named), self._pool)

    async def reserve(self, *arguments: Any, **named: Any) -> Room:
        """As Namespace.reserve."""
        return Room(await self._held(self._inner.reserve, *arguments, **named), self._pool)

    async def prefetch(self, *arguments: Any, **named: Any) -> Any:
        """As Namespace.prefetch, and waits for the Match."""
        return await asyncio.wrap_future(await self._run(self._inner.prefetch, *arguments, **named))

    async def _held(self, call: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """Await what has to be released; when nobody awaits it any more, it is released as it comes."""
        future = self._begin(call, *arguments, **named)
        try:
            return await asyncio.shield(asyncio.wrap_future(future))
        except asyncio.CancelledError:
            future.add_done_callback(lambda done: done.exception() or done.result().release())
            raise


class Watch:
    """As kvstore.watching.Watch, for `async for`. It has a thread of its own; an await that is cancelled loses nothing:
    the batch that it waited for is the next one's."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="kvstore-aio-watch")
        self._coming: Future[Events | None] | None = None

    @property
    def position(self) -> Position:
        """How far it has come; not to be asked while somebody waits for its next batch."""
        found: Position = self._inner.position
        return found

    def __aiter__(self) -> Watch:
        return self

    async def __anext__(self) -> Events:
        if self._coming is None:
            try:
                self._coming = self._pool.submit(next, self._inner, None)
            except RuntimeError:  # closed
                raise StopAsyncIteration from None
        coming = self._coming
        try:
            found = await asyncio.shield(asyncio.wrap_future(coming))
        except asyncio.CancelledError:  # nobody has had the batch yet
            raise
        except BaseException:
            self._coming = None
            raise
        self._coming = None
        if found is None:
            raise StopAsyncIteration
        return found

    async def close(self) -> None:
        """As the synchronous one."""
        await asyncio.get_running_loop().run_in_executor(None, self._inner.close)
        self._pool.shutdown(wait=False)

    async def __aenter__(self) -> Watch:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class Store(_Wrapper):
    """As kvstore.BlockStore; `namespace`, `flush`, `stats`, `detach_tier`, `attach_tier` and `close` are coroutines."""

    _awaited = frozenset({"flush", "stats", "detach_tier", "attach_tier"})

    async def namespace(self, *arguments: Any, **named: Any) -> Namespace:
        """As BlockStore.namespace."""
        return Namespace(await self._run(self._inner.namespace, *arguments, **named), self._pool)

    def watch(self, namespaces: Sequence[Namespace] | None = None, since: Position = START) -> Watch:
        """As BlockStore.watch; it does not wait for anything, so it is no coroutine."""
        inner = namespaces
        if isinstance(namespaces, (list, tuple)):
            inner = [one._inner if isinstance(one, Namespace) else one for one in namespaces]
        return Watch(self._inner.watch(inner, since))

    async def close(self) -> None:
        """As BlockStore.close; calls under way end first."""
        await self._run(self._inner.close)
        self._pool.shutdown(wait=False)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def connect(
    target: str,
    *,
    token: str | None = None,
    tls: bool | Mapping[str, str] | None = None,
    timeout_ms: float = 2_000,
    attach: bool = True,
) -> Store:
    """As kvstore.connect; it does not wait for anything, so it is no coroutine."""
    return Store(connect_store(target, token=token, tls=tls, timeout_ms=timeout_ms, attach=attach), _pool())


async def open(config: Config | None = None) -> Store:
    """As kvstore.open."""
    pool = _pool()
    inner = await asyncio.get_running_loop().run_in_executor(pool, lambda: embedded.open(config))
    return Store(inner, pool)


def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(THREADS, thread_name_prefix="kvstore-aio")
