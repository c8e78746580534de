"""A put, in as many Writes as its size needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from kvstore.block import PutResult
from kvstore.client.blocks import encoded
from kvstore.client.streams import Writing
from kvstore.copying import Located
from kvstore.errors import Unavailable
from kvstore.v1 import kvstore_pb2 as pb

UNAVAILABLE = "unavailable: the daemon does not answer"


def rejections(grant: pb.WriteGrant) -> dict[int, str]:
    """Position → reason."""
    return {position: group.reason for group in grant.rejected for position in group.positions}


@dataclass(slots=True)
class Put:
    """Blocks of a chain of `num_keys` from position `start` on, whose parts `sources` has."""

    num_keys: int
    start: int
    sources: Located
    part_nbytes: int
    _stored: int = 0
    _present: int = 0
    _rejected: dict[int, str] = field(default_factory=dict)

    def run(self, begin: Callable[[int], Writing], piece_nbytes: Callable[[], int]) -> PutResult:
        """`begin` Writes until the chain is through, something is rejected, or the daemon is gone."""
        at = self.start
        while True:
            try:
                considered = self._write(begin(at), piece_nbytes())
            except Unavailable:
                self._rejected |= dict.fromkeys(range(at, self.num_keys), UNAVAILABLE)
                break
            if self._rejected:  # what lies behind extends what has no place
                reason = self._rejected[max(self._rejected)]
                self._rejected |= dict.fromkeys(range(considered, self.num_keys), reason)
                break
            if considered >= self.num_keys:
                break
            at = max(at, considered)
        return PutResult(self._stored, self._present, self._rejected)

    def _write(self, writing: Writing, piece_nbytes: int) -> int:
        """One Write; up to which position it went."""
        grant = writing.grant
        chosen = [position - self.start for position in grant.wanted]
        self._present = grant.num_present - self._stored
        self._rejected |= rejections(grant)
        self._stored += writing.commit(encoded(self.sources, chosen, self.part_nbytes, piece_nbytes)).num_stored
        return grant.num_considered
