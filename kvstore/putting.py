"""The second half of a put: the blocks of a grant are copied in and committed."""

from __future__ import annotations

from kvstore.block import PutResult
from kvstore.copying import Located
from kvstore.room import Grant, Granting

PREFIX_GONE = "the blocks before it are not stored any more"


def fill_and_commit(owner: Granting, grant: Grant, sources: Located, *, start: int, shard: int) -> PutResult:
    """Store what was granted of a chain, whose parts from position `start` to its end `sources` has.

    Errors: those of copying and committing; nothing is stored then.
    """
    mine = grant.ids
    if not len(mine):
        return PutResult(0, grant.present, grant.rejected)
    if grant.positions[0] < start:  # what this was to extend has left the store since the caller looked
        owner.abandon_later(mine, shard)
        owner.settle()
        return PutResult(0, grant.present, {i: PREFIX_GONE for i in range(grant.present, start + sources.num_blocks)})
    try:
        chosen = grant.positions - start if len(mine) < sources.num_blocks else None
        owner.copy_in(grant.places, shard, sources, chosen)
    except BaseException:
        owner.abandon_later(mine, shard)
        owner.settle()
        raise
    lost = owner.commit(mine, shard)
    return PutResult(len(mine) - lost, grant.present, grant.rejected)
