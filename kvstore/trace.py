"""Request traces: one JSON object per line, plain or gzip, read as a stream.

The format of published traces, with two optional fields for what a store records of itself.

| field | meaning |
|---|---|
| timestamp | milliseconds from the trace's start; never goes back |
| input_length, output_length | tokens of the prompt and of the answer |
| hash_ids | one id from 0 to 2^53 - 1 per block of the prompt, chained: equal id, equal prefix up to there |
| block_tokens | optional: tokens of a block; 512 |
| namespace | optional: from 0 to 2^53 - 1, which of several namespaces it is of; 0 |
| stop_reason | optional: why the answer ended |

The last id may cover a partial block; some traces leave that one out. Other fields are ignored.
"""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from numpy.typing import NDArray

from kvstore.errors import InvalidRequest

BLOCK_TOKENS = 512
LINE_NBYTES_MAX = 16 << 20
TIMESTAMP_MS_MAX = 2**53
TOKENS_MAX = 2**31 - 1
BLOCK_TOKENS_MAX = 65_536
ID_MAX = 2**53 - 1  # what every reader of JSON can tell apart


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """One request of a trace."""

    timestamp_ms: int
    input_tokens: int
    output_tokens: int
    block_ids: NDArray[np.uint64]  # read-only, (num_blocks,)
    stop_reason: str = ""  # "" when the trace does not say
    block_tokens: int = BLOCK_TOKENS
    namespace: int = 0

    @property
    def num_full(self) -> int:
        """Blocks without a partial one at the end."""
        return min(len(self.block_ids), self.input_tokens // self.block_tokens)


def read_trace(path: str | os.PathLike[str]) -> Iterator[Request]:
    """The requests of a trace file in their order; gzip is recognised by its first bytes, not by the name.

    InvalidRequest names the file, the line and the field of the first thing that is wrong; requests before it
    have been given out by then.
    """
    name = os.fspath(path)
    timestamp_ms = 0
    number = 0
    try:
        with _opened(Path(path)) as file:
            while line := file.readline(LINE_NBYTES_MAX + 1):
                number += 1
                request = _request(line, f"{name}, line {number}", timestamp_ms)
                timestamp_ms = request.timestamp_ms
                yield request
    except (OSError, EOFError, zlib.error) as error:
        raise InvalidRequest(f"{name}: cannot be read after line {number}: {error}") from None


def encode(request: Request) -> bytes:
    """The line of a request, as `read_trace` reads it."""
    fields: dict[str, object] = {
        "timestamp": request.timestamp_ms,
        "input_length": request.input_tokens,
        "output_length": request.output_tokens,
        "block_tokens": request.block_tokens,
        "namespace": request.namespace,
        "hash_ids": request.block_ids.tolist(),
    }
    if request.stop_reason:
        fields["stop_reason"] = request.stop_reason
    return json.dumps(fields, separators=(",", ":")).encode() + b"\n"


def _opened(path: Path) -> IO[bytes]:
    with path.open("rb") as file:
        is_gzip = file.read(2) == b"\x1f\x8b"
    return cast(IO[bytes], gzip.open(path, "rb")) if is_gzip else path.open("rb")


def _request(line: bytes, where: str, earliest_ms: int) -> Request:
    if len(line) > LINE_NBYTES_MAX:
        raise InvalidRequest(f"{where}: longer than {LINE_NBYTES_MAX:,} bytes")
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{where}: not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise InvalidRequest(f"{where}: must be a JSON object, not {_shown(fields)}")
    input_tokens = _whole(fields, "input_length", where, 0, TOKENS_MAX)
    block_tokens = _whole({"block_tokens": BLOCK_TOKENS, **fields}, "block_tokens", where, 1, BLOCK_TOKENS_MAX)
    stop_reason = fields.get("stop_reason", "")
    if not isinstance(stop_reason, str):
        raise InvalidRequest(f"{where}: stop_reason must be text, not {_shown(stop_reason)}")
    return Request(
        timestamp_ms=_whole(fields, "timestamp", where, earliest_ms, TIMESTAMP_MS_MAX),
        input_tokens=input_tokens,
        output_tokens=_whole(fields, "output_length", where, 0, TOKENS_MAX),
        block_ids=_ids(fields, where, input_tokens, block_tokens),
        stop_reason=stop_reason,
        block_tokens=block_tokens,
        namespace=_whole({"namespace": 0, **fields}, "namespace", where, 0, ID_MAX),
    )


def _whole(fields: dict[str, Any], field: str, where: str, low: int, high: int) -> int:
    value = fields.get(field)
    if type(value) is not int or not low <= value <= high:
        given = _shown(value) if field in fields else "missing"
        raise InvalidRequest(f"{where}: {field} must be a whole number from {low} to {high}, not {given}")
    return value


def _ids(fields: dict[str, Any], where: str, input_tokens: int, block_tokens: int) -> NDArray[np.uint64]:
    ids = fields.get("hash_ids")
    if not isinstance(ids, list) or not set(map(type, ids)) <= {int}:
        given = _shown(ids) if "hash_ids" in fields else "missing"
        raise InvalidRequest(f"{where}: hash_ids must be a list of whole numbers, not {given}")
    num_full, rest = divmod(input_tokens, block_tokens)
    if not num_full <= len(ids) <= num_full + (rest > 0):
        raise InvalidRequest(
            f"{where}: hash_ids has {len(ids)} ids, not one for each {block_tokens} of {input_tokens} tokens"
        )
    if ids and not 0 <= min(ids) <= max(ids) <= ID_MAX:
        raise InvalidRequest(f"{where}: hash_ids must be from 0 to {ID_MAX}, not {min(ids)} to {max(ids)}")
    block_ids = np.array(ids, dtype=np.uint64)
    block_ids.flags.writeable = False
    return block_ids


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
