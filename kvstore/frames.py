"""Pieces of bulk streams as protobuf encodes them, without a message object in between.

`ReadReply.data` and `WriteRequest.data` are field 2, length-delimited: one byte of tag, the length as a varint, the
bytes. Encoding so costs the one copy that joins tag and bytes; reading gives a view of what arrived and costs none.
"""

from __future__ import annotations

from collections.abc import Sequence

DATA_TAG = 0x12  # field 2, length-delimited
HEADER_NBYTES_MAX = 6  # tag, and a length of up to 35 bits


def data_header(nbytes: int) -> bytes:
    """What comes before `nbytes` bytes of `data`."""
    header = bytearray([DATA_TAG])
    while nbytes >= 0x80:
        header.append(nbytes & 0x7F | 0x80)
        nbytes >>= 7
    header.append(nbytes)
    return bytes(header)


def encode_data(views: Sequence[memoryview | bytes]) -> bytes:
    """A message whose `data` is these views behind one another."""
    nbytes = sum(len(view) for view in views)
    return b"".join((data_header(nbytes), *views))


def decode_data(message: bytes) -> memoryview | None:
    """The `data` of a message that has nothing else, as a view of it; None when it is another message."""
    if not message or message[0] != DATA_TAG:
        return None
    nbytes, shift = 0, 0
    for at in range(1, min(len(message), HEADER_NBYTES_MAX)):
        byte = message[at]
        nbytes |= (byte & 0x7F) << shift
        if byte < 0x80:
            return memoryview(message)[at + 1 :] if len(message) - at - 1 == nbytes else None
        shift += 7
    return None


def cuts(block_nbytes: int, num_blocks: int, piece_nbytes: int) -> list[tuple[int, int, int, int]]:
    """How blocks are cut into pieces: (first block, blocks, offset, bytes) of each.

    Several whole blocks (offset 0), or a stretch of one that is larger than a piece.
    """
    if block_nbytes <= piece_nbytes:
        most = piece_nbytes // block_nbytes
        runs = ((first, min(most, num_blocks - first)) for first in range(0, num_blocks, most))
        return [(first, count, 0, count * block_nbytes) for first, count in runs]
    return [
        (block, 1, offset, min(piece_nbytes, block_nbytes - offset))
        for block in range(num_blocks)
        for offset in range(0, block_nbytes, piece_nbytes)
    ]
