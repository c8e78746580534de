"""The manifest: an LMDB environment that says what each segment of the disk tier holds. Formats:
docs/formats.md.

One process has it open (the tier's lock file sees to that) and one thread writes. Every commit is durable
when it returns: LMDB runs with its default synchronous settings, because a commit that a power failure could
undo would bring removed blocks back. The file format of LMDB 0.9 is asked for by number, so that another
default does not change it.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import lmdb
import lmdb.verify
import numpy as np
from numpy.typing import NDArray

from kvstore.errors import Unavailable
from kvstore.tiers.changes import Change, Clean, Forget, Name, Put, Quota, Use
from kvstore.tiers.manifest_rows import (
    FORMAT,
    NAMESPACE_KEY,
    ROW_HEAD,
    ROW_KEY,
    SEGMENT_KEY,
    U32,
    U64,
    USE,
    Row,
    pack_row,
    require_format,
    unpack_row,
)

LMDB_LIBRARY = 0  # LMDB 0.9
DATABASES = (b"meta", b"rows", b"namespaces", b"usage", b"quotas")
MAP_NBYTES_MIN = 1 << 30
MAP_SHARE = 16  # of the tier's capacity; rows take at most 1/40 of it, with 4 KiB blocks

NO_OFFSETS = np.empty(0, dtype=np.uint32)

log = logging.getLogger(__name__)


class ManifestError(Exception):
    """LMDB could not do it; the text says what it said. Nothing of the transaction is kept."""


class Manifest:
    """See the module's text. All methods but `apply` and `reopen` may be called from any thread."""

    def __init__(self, path: Path, capacity_nbytes: int, now_s: int) -> None:
        """Open or create; a damaged manifest is renamed to `path`.damaged-`now_s` and a new one created.

        Errors: Unavailable for a newer format, or when LMDB cannot open it.
        """
        self._path = path
        self._map_nbytes = MAP_NBYTES_MIN + capacity_nbytes // MAP_SHARE
        self.was_damaged = False
        damage = find_damage(path)
        if damage:
            self.was_damaged = True
            set_aside(path, now_s, damage)
        try:
            self._open()
            damage = self._check_meta()
            if damage:
                self._env.close()
                self.was_damaged = True
                set_aside(path, now_s, damage)
                self._open()
        except lmdb.Error as error:
            raise Unavailable(f"{path}: the manifest cannot be opened: {error}") from error

    @property
    def segment_nbytes(self) -> int | None:
        """The size of its segments; None for a new manifest."""
        value = self._get_meta(b"segment_nbytes")
        return None if value is None else int(U64.unpack(value)[0])

    @property
    def seq(self) -> int:
        """The highest opening number any row has had."""
        value = self._get_meta(b"seq")
        return 0 if value is None else int(U64.unpack(value)[0])

    def initialise(self, segment_nbytes: int, now_s: int) -> None:
        """Say what a new manifest is for. Errors: ManifestError."""
        with self._transaction() as txn:
            for key, value in (
                (b"format", U32.pack(FORMAT)),
                (b"uuid", uuid.uuid4().bytes),
                (b"segment_nbytes", U64.pack(segment_nbytes)),
                (b"created_s", U64.pack(now_s)),
                (b"seq", U64.pack(0)),
            ):
                txn.put(key, value, db=self._meta)

    def segments(self) -> list[int]:
        """Every segment that has rows, in the order in which they were opened."""
        found: list[tuple[int, int]] = []
        with self._env.begin(db=self._rows) as txn, txn.cursor() as cursor:
            more = cursor.first()
            while more:
                key, value = cursor.item()
                if len(key) != ROW_KEY.size or len(value) < ROW_HEAD.size:
                    more = cursor.next()
                    continue
                segment, _ = ROW_KEY.unpack(key)
                found.append((ROW_HEAD.unpack_from(value)[0], segment))
                more = segment < 0xFFFF_FFFF and cursor.set_range(ROW_KEY.pack(segment + 1, 0))
        return [segment for _, segment in sorted(found)]

    def rows(self, segment: int) -> tuple[list[Row], int]:
        """The rows of the segment's latest opening in commit order, and how many others there are."""
        with self._env.begin(db=self._rows) as txn:
            return read_rows(txn, self._rows, segment)

    def uses(self, segment: int) -> NDArray[Any]:
        """When its blocks were last used: USE rows, at most one per offset."""
        with self._env.begin(db=self._usage) as txn:
            value = txn.get(SEGMENT_KEY.pack(segment)) or b""
        return np.frombuffer(value[: len(value) // USE.itemsize * USE.itemsize], dtype=USE)

    def namespaces(self) -> dict[int, str]:
        """Number → text of every namespace on record."""
        with self._env.begin(db=self._namespaces) as txn:
            return {
                NAMESPACE_KEY.unpack(bytes(key))[0]: bytes(value).decode(errors="replace")
                for key, value in txn.cursor()
                if len(key) == NAMESPACE_KEY.size
            }

    def quotas(self) -> dict[int, int]:
        """Number → bytes of every quota on record; one that cannot be read is none."""
        with self._env.begin(db=self._quotas) as txn:
            return {
                NAMESPACE_KEY.unpack(bytes(key))[0]: U64.unpack(bytes(value))[0]
                for key, value in txn.cursor()
                if len(key) == NAMESPACE_KEY.size and len(value) == U64.size
            }

    def apply(self, changes: Iterable[Change]) -> None:
        """All of `changes`, in this order, in one durable transaction. Errors: ManifestError, and nothing is
        done."""
        with self._transaction() as txn:
            seq = U64.unpack(bytes(txn.get(b"seq", db=self._meta) or bytes(U64.size)))[0]
            # No key is written twice: LMDB would shrink a value of this transaction in place and keep its pages, which
            # find_damage takes for damage. No offset is used twice between two Cleans, so that within them it does not
            # matter which of a segment's changes came first.
            put: dict[int, list[Put]] = {}
            forgotten: dict[int, list[NDArray[np.uint32]]] = {}
            uses: dict[int, list[NDArray[Any]]] = {}
            names: dict[int, str] = {}
            quotas: dict[int, int] = {}
            for change in changes:
                match change:
                    case Put(segment):
                        put.setdefault(segment, []).append(change)
                        seq = max(seq, change.seq)
                    case Forget(segment, offsets):
                        forgotten.setdefault(segment, []).append(offsets)
                    case Clean(segment):
                        for waiting in (put, forgotten, uses):
                            waiting.pop(segment, None)
                        self._clean(txn, segment)
                    case Name(namespace, text):
                        names[namespace] = text
                    case Quota(namespace, nbytes):
                        quotas[namespace] = nbytes
                    case Use(segment, rows):
                        uses.setdefault(segment, []).append(rows)
            for segment, parts in forgotten.items():
                self._forget(txn, segment, np.concatenate(parts))
            for segment, puts in put.items():
                self._put_row(txn, puts, np.concatenate(forgotten.get(segment, [NO_OFFSETS])))
            for segment, rows_of in uses.items():
                self._merge_uses(txn, segment, np.concatenate(rows_of[::-1]))
            for namespace, text in names.items():
                txn.put(NAMESPACE_KEY.pack(namespace), text.encode(), db=self._namespaces)
            for namespace, nbytes in quotas.items():
                txn.put(NAMESPACE_KEY.pack(namespace), U64.pack(nbytes), db=self._quotas)
            txn.put(b"seq", U64.pack(seq), db=self._meta)

    def reopen(self) -> None:
        """Start over after a failed commit, which may leave LMDB refusing everything. Errors:
        ManifestError."""
        self._env.close()
        try:
            self._open()
        except (lmdb.Error, OSError) as error:
            raise ManifestError(f"{self._path}: {error}") from error

    def close(self) -> None:
        """Give up the file; nothing may be asked afterwards."""
        self._env.close()

    def _open(self) -> None:
        self._env = lmdb.open(
            str(self._path),
            map_size=self._map_nbytes,
            max_dbs=len(DATABASES),
            mode=0o600,
            lib_version=LMDB_LIBRARY,
        )
        opened = (self._env.open_db(name) for name in DATABASES)
        self._meta, self._rows, self._namespaces, self._usage, self._quotas = opened

    def _check_meta(self) -> str:
        """What is wrong with the meta records; "" for nothing, or a new manifest. Errors: Unavailable."""
        with self._env.begin(db=self._meta) as txn:
            found = {bytes(key): bytes(value) for key, value in txn.cursor()}
        try:
            return require_format(self._path, found)
        except Unavailable:
            self._env.close()
            raise

    def _get_meta(self, key: bytes) -> bytes | None:
        with self._env.begin(db=self._meta) as txn:
            return txn.get(key)

    def _transaction(self) -> _Transaction:
        return _Transaction(self._env)

    def _put_row(self, txn: lmdb.Transaction, puts: list[Put], forgotten: NDArray[np.uint32]) -> None:
        """One row for all blocks of `puts`, which are of one segment, but those forgotten by now."""
        segment = puts[0].segment
        entries = np.concatenate([put.entries for put in puts])
        entries = entries[~np.isin(entries["offset"], forgotten)]
        if len(entries):
            key = ROW_KEY.pack(segment, next_batch(txn, self._rows, segment))
            txn.put(key, pack_row(key, puts[0].seq, entries), db=self._rows)

    def _forget(self, txn: lmdb.Transaction, segment: int, offsets: NDArray[np.uint32]) -> None:
        for row in read_rows(txn, self._rows, segment)[0]:
            kept = row.entries[~np.isin(row.entries["offset"], offsets)]
            key = ROW_KEY.pack(segment, row.batch)
            if len(kept) == 0:
                txn.delete(key, db=self._rows)
            elif len(kept) < len(row.entries):
                txn.put(key, pack_row(key, row.seq, kept), db=self._rows)

    def _clean(self, txn: lmdb.Transaction, segment: int) -> None:
        with txn.cursor(db=self._rows) as cursor:
            found = cursor.set_range(ROW_KEY.pack(segment, 0))
            while found and cursor.key()[:4] == SEGMENT_KEY.pack(segment):
                found = cursor.delete()
        txn.delete(SEGMENT_KEY.pack(segment), db=self._usage)

    def _merge_uses(self, txn: lmdb.Transaction, segment: int, rows: NDArray[Any]) -> None:
        key = SEGMENT_KEY.pack(segment)
        old = txn.get(key, db=self._usage) or b""
        both = np.concatenate([rows, np.frombuffer(old[: len(old) // USE.itemsize * USE.itemsize], dtype=USE)])
        _, first = np.unique(both["offset"], return_index=True)  # of two for one offset the new one is first
        txn.put(key, both[first].tobytes(), db=self._usage)


class _Transaction:
    """A write transaction whose failure, also that of its commit, is a ManifestError."""

    def __init__(self, env: lmdb.Environment) -> None:
        self._env = env

    def __enter__(self) -> lmdb.Transaction:
        try:
            self._txn = self._env.begin(write=True)
        except lmdb.Error as error:
            raise ManifestError(str(error)) from error
        return self._txn

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is None:
            try:
                self._txn.commit()
            except lmdb.Error as failure:
                raise ManifestError(str(failure)) from failure
            return
        self._txn.abort()
        if isinstance(error, lmdb.Error):
            raise ManifestError(str(error)) from error


def read_rows(txn: lmdb.Transaction, db: Any, segment: int) -> tuple[list[Row], int]:
    """The good rows of a segment's latest opening by batch, and the number of malformed or older ones."""
    rows: list[Row] = []
    num_bad = 0
    with txn.cursor(db=db) as cursor:
        found = cursor.set_range(ROW_KEY.pack(segment, 0))
        while found and cursor.key()[:4] == SEGMENT_KEY.pack(segment):
            row = unpack_row(bytes(cursor.key()), bytes(cursor.value()))
            if row is None:
                num_bad += 1
            else:
                rows.append(row)
            found = cursor.next()
    newest = max((row.seq for row in rows), default=0)
    latest = [row for row in rows if row.seq == newest]
    return latest, num_bad + len(rows) - len(latest)


def next_batch(txn: lmdb.Transaction, db: Any, segment: int) -> int:
    """One more than the highest batch number among the segment's rows."""
    with txn.cursor(db=db) as cursor:
        found = cursor.set_range(ROW_KEY.pack(segment + 1, 0))
        found = cursor.prev() if found else cursor.last()
        if found and cursor.key()[:4] == SEGMENT_KEY.pack(segment):
            return int(ROW_KEY.unpack(cursor.key())[1]) + 1
    return 0


def read_records(path: Path, database: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Every record of one database, by key, without changing anything; none where there is no such database. For a
    manifest without damage that nobody has open. Errors: Unavailable."""
    options: dict[str, Any] = {"readonly": True, "lock": False, "create": False}
    try:
        with lmdb.open(str(path), max_dbs=1, lib_version=LMDB_LIBRARY, **options) as env, env.begin() as txn:
            if txn.get(database) is None:
                return
            with txn.cursor(db=env.open_db(database, txn=txn, create=False)) as cursor:
                for key, value in cursor:
                    yield bytes(key), bytes(value)
    except lmdb.Error as error:
        raise Unavailable(f"{path}: the manifest cannot be read: {error}") from error


def change_records(path: Path, changes: Iterable[tuple[bytes, bytes, bytes | None]]) -> None:
    """Put, or with None delete, records: (database, key, value), in one durable transaction. For a manifest without
    damage that nobody has open. Errors: Unavailable, and nothing is changed."""
    map_nbytes = MAP_NBYTES_MIN + 2 * (path / "data.mdb").stat().st_size
    try:
        with lmdb.open(
            str(path), map_size=map_nbytes, max_dbs=len(DATABASES), mode=0o600, lib_version=LMDB_LIBRARY
        ) as env:
            databases = {name: env.open_db(name) for name in DATABASES}
            with env.begin(write=True) as txn:
                for name, key, value in changes:
                    if value is None:
                        txn.delete(key, db=databases[name])
                    else:
                        txn.put(key, value, db=databases[name])
    except lmdb.Error as error:
        raise Unavailable(f"{path}: the manifest cannot be changed: {error}") from error


def find_damage(path: Path) -> str:
    """What makes the manifest at `path` unfit for LMDB, which trusts its file blindly; "" for none, or no
    manifest.

    Walks the whole file (about a second per million rows) without mapping it.
    """
    data = path / "data.mdb"
    if not data.exists():
        return ""
    try:
        problems: list[str] = lmdb.verify.verify(str(path))  # type: ignore[no-untyped-call]
    except lmdb.verify.VerifyError as error:
        problems = [str(error)]
    return problems[0] if problems else ""


def set_aside(path: Path, now_s: int, damage: str) -> None:
    """Rename a damaged manifest, for whoever wants to look at it, and go on without. Errors: OSError."""
    target = path.with_name(f"{path.name}.damaged-{now_s}")
    while target.exists():
        now_s += 1
        target = path.with_name(f"{path.name}.damaged-{now_s}")
    path.rename(target)
    log.warning("%s is damaged (%s): set aside as %s, starting without its blocks", path, damage, target.name)
