"""What an embedded store tells of its blocks: an iterator over events, and the verbs that BlockStore has for them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from types import TracebackType

from kvstore.checks import duration_us
from kvstore.clock import Clock
from kvstore.errors import InvalidRequest
from kvstore.events import START, Events, Position, listed
from kvstore.feed import Feed, told
from kvstore.handle import Namespace
from kvstore.namespace import NamespaceSpec
from kvstore.tiers.host import HostTier


class Watch:
    """Iterates over the events of an embedded store as batches (kvstore.events.Events): the first at once, then within
    about 50 ms when something happens, and at least every 2 s, empty if nothing did. It ends when it is closed, from
    any thread. Errors: Unavailable once the store is closed."""

    def __init__(
        self, feed: Feed, spec: Callable[[int], NamespaceSpec], since: Position, numbers: frozenset[int] | None
    ) -> None:
        self.position = since
        self._feed, self._spec, self._numbers = feed, spec, numbers
        self._closed = self._begun = False
        feed.require_kept()

    def __iter__(self) -> Watch:
        return self

    def __next__(self) -> Events:
        found = self.pull(self._feed.idle_us() if self._begun else 0)
        if self._closed:
            raise StopIteration
        self._begun, self.position = True, found.position
        return found

    def pull(self, until_us: int) -> Events:
        """What is behind the position, which stays: at `until_us` in any case."""
        batch = self._feed.read(self.position, until_us, self._chosen, lambda: self._closed)
        return Events(batch.position, batch.gap, told(batch))

    def _chosen(self, numbers: Collection[int]) -> Mapping[int, str]:
        return {one: self._spec(one).title for one in numbers if self._numbers is None or one in self._numbers}

    def close(self) -> None:
        """End it, also while somebody waits for its next batch. Idempotent."""
        self._closed = True
        self._feed.wake()

    def __enter__(self) -> Watch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Watching:
    """The part of BlockStore that tells what became stored and what is stored no more."""

    feed: Feed
    clock: Clock
    near: HostTier

    @abstractmethod
    def check_open(self) -> None:
        """Errors: Unavailable once the store is closed."""

    @abstractmethod
    def spec(self, number: int) -> NamespaceSpec:
        """Of a namespace that the index knows."""

    def events(
        self, since: Position = START, namespaces: Sequence[Namespace] | None = None, deadline_ms: float = 0
    ) -> Events:
        """What happened to blocks of these namespaces (None: all) since an earlier batch's `position`, at most 4,096
        blocks; START: since the oldest event that is kept. Waits up to `deadline_ms` until there is something. Errors:
        InvalidRequest; LimitExceeded when index.events_max is 0; Unavailable."""
        until_us = self.clock.now_us() + duration_us("deadline_ms", deadline_ms)
        return self.watch(namespaces, since).pull(until_us)

    def watch(self, namespaces: Sequence[Namespace] | None = None, since: Position = START) -> Watch:
        """The same without an end: an iterator over batches, which waits for more. Close it, or use it as a context
        manager. Errors: as `events`."""
        self.check_open()
        chosen = None if namespaces is None else frozenset(map(self._number_of, listed(namespaces)))
        return Watch(self.feed, self.spec, Position.checked(since), chosen)

    def _number_of(self, namespace: Namespace) -> int:
        if not isinstance(namespace, Namespace) or namespace.arena is not self.near.arena:
            raise InvalidRequest(f"namespaces has {namespace!r:.80}, which is no namespace of this store")
        return namespace.number
