"""Removals: what was asked away while the far tier could not be told, so that it does not come back with it."""

from __future__ import annotations

from kvstore.arrays import Keys

KEYS_MAX = 1 << 16  # 32 bytes each; beyond them whole namespaces count as cleared


class Removals:
    """Keys and namespaces that were removed since `start`, and which namespaces the far tier may not have durably
    forgotten something of. Caller holds the store's lock."""

    def __init__(self) -> None:
        self.is_kept = False  # whether keys are noted now
        self._keys: dict[int, set[bytes]] = {}
        self._num_keys = 0
        self._cleared: set[int] = set()
        self._taken: list[tuple[dict[int, set[bytes]], set[int]]] = []
        self._unconfirmed: dict[int, int] = {}  # namespace → number of its latest removal
        self._number = 0

    def start(self) -> None:
        """Note keys from now on, until `stop`."""
        self.is_kept = True

    def stop(self) -> None:
        """Forget them all: the tier knows."""
        self.is_kept = False
        self.take()
        self._taken.clear()

    def note(self, ns: int, keys: Keys | None) -> None:
        """These were asked away, with all that extends them; None: every block of the namespace."""
        self._number += 1
        self._unconfirmed[ns] = self._number
        if not self.is_kept or ns in self._cleared:
            return
        if keys is None:
            self._clear(ns)
            return
        self._add(ns, {key.tobytes() for key in keys})

    def _add(self, ns: int, keys: set[bytes]) -> None:
        found = self._keys.setdefault(ns, set())
        before = len(found)
        found |= keys
        self._num_keys += len(found) - before
        while self._num_keys > KEYS_MAX:
            self._clear(max(self._keys, key=lambda number: len(self._keys[number])))

    def _clear(self, ns: int) -> None:
        self._cleared.add(ns)
        self._num_keys -= len(self._keys.pop(ns, ()))

    def take(self) -> tuple[set[bytes], set[int]]:
        """What was noted since the last call: keys, and namespaces of which every block was removed."""
        keys = set().union(*self._keys.values())
        cleared, self._cleared = self._cleared, set()
        if keys or cleared:
            self._taken.append((self._keys, cleared))
        self._keys, self._num_keys = {}, 0
        return keys, cleared

    def restore(self) -> None:
        """Whoever took them could not tell the tier."""
        taken, self._taken = self._taken, []
        for keys, cleared in taken:
            for ns in cleared:
                self._clear(ns)
            for ns in keys.keys() - self._cleared:
                self._add(ns, keys[ns])

    @property
    def unconfirmed(self) -> dict[int, int]:
        """Namespaces of which something was removed since the far tier last said that it is durable; for `confirm`."""
        return dict(self._unconfirmed)

    def confirm(self, told: dict[int, int]) -> None:
        """What `unconfirmed` was, before the tier was asked, is durable."""
        for ns, number in told.items():
            if self._unconfirmed.get(ns) == number:
                del self._unconfirmed[ns]

    def distrust(self) -> None:
        """The tier left without having said so: nothing of those namespaces may come back with it."""
        for ns in self._unconfirmed:
            self._clear(ns)
