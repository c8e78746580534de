"""The keys and values of the manifest's records as bytes. Formats: docs/formats.md."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kvstore.errors import Unavailable
from kvstore.tiers.base import ENTRY, Entries
from kvstore.tiers.geometry import SEGMENT_NBYTES_MAX, SEGMENT_NBYTES_MIN

FORMAT = 1
SEQ_MAX = (1 << 62) - 1  # opening numbers stay below the largest signed number, however many are added
NAMESPACE_NUMBER_MAX = 65_535  # what the index has room for; the first is 1

ROW_KEY = struct.Struct(">II")  # segment, batch
ROW_HEAD = struct.Struct("<QII")  # seq, number of entries, CRC-32
SEGMENT_KEY = struct.Struct(">I")
NAMESPACE_KEY = struct.Struct(">I")
U32, U64 = struct.Struct("<I"), struct.Struct("<Q")
USE = np.dtype([("offset", "<u4"), ("last_used_s", "<u4")])


@dataclass(frozen=True, slots=True)
class Row:
    """One manifest row that could be read."""

    batch: int
    seq: int
    entries: Entries


def pack_row(key: bytes, seq: int, entries: Entries) -> bytes:
    """The value of a row. Its CRC-32 also covers the key, so that a row under a wrong key is malformed."""
    body = entries.tobytes()
    return ROW_HEAD.pack(seq, len(entries), row_crc(key, seq, len(entries), body)) + body


def row_crc(key: bytes, seq: int, num_entries: int, body: bytes | memoryview) -> int:
    """What a row has to carry to be believed: CRC-32 of its key, its head and its body."""
    return zlib.crc32(body, zlib.crc32(key + ROW_HEAD.pack(seq, num_entries, 0)))


def unpack_row(key: bytes, value: bytes) -> Row | None:
    """None for a malformed row."""
    if len(key) != ROW_KEY.size or len(value) < ROW_HEAD.size:
        return None
    seq, num_entries, crc = ROW_HEAD.unpack_from(value)
    body = memoryview(value)[ROW_HEAD.size :]
    if len(body) != num_entries * ENTRY.itemsize or crc != row_crc(key, seq, num_entries, body):
        return None
    return Row(ROW_KEY.unpack(key)[1], seq, np.frombuffer(body, dtype=ENTRY))


def require_format(path: Path, meta: Mapping[bytes, bytes]) -> str:
    """What is wrong with the meta records of the manifest at `path`; "" for nothing, also where there are none. Errors:
    Unavailable for another format."""
    if not meta:
        return ""
    if len(meta.get(b"format", b"")) == U32.size:  # first: another format may have other records
        stored = U32.unpack(meta[b"format"])[0]
        if stored != FORMAT:
            raise Unavailable(f"{path}: manifest format {stored}; this version reads and writes format {FORMAT} only")
    sizes = ((b"format", U32.size), (b"segment_nbytes", U64.size), (b"seq", U64.size))
    if any(len(meta.get(name, b"")) != size for name, size in sizes):
        return "its meta records are incomplete"
    segment_nbytes = U64.unpack(meta[b"segment_nbytes"])[0]
    is_size = SEGMENT_NBYTES_MIN <= segment_nbytes <= SEGMENT_NBYTES_MAX and segment_nbytes.bit_count() == 1
    if not is_size or U64.unpack(meta[b"seq"])[0] > SEQ_MAX:
        return "its meta records are impossible"
    return ""
