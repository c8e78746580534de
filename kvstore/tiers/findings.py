"""What an inspection of a disk tier's folder can find, in words and numbers."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass, field

EXAMPLES_MAX = 3


class Kind(enum.Enum):
    """One thing that can be found; its value says what is counted. Those from LEFT_OVER on are no faults."""

    MANIFEST_DAMAGED = "manifests that are damaged: nothing they say can be used"
    ROWS_MALFORMED = "rows whose key, length or CRC is wrong"
    ROWS_OUTDATED = "rows of an earlier opening of their segment"
    USES_MALFORMED = "usage records whose key or length is wrong"
    QUOTAS_MALFORMED = "quotas whose key or length is wrong"
    NAMESPACES_UNREADABLE = "namespaces whose number or text is wrong"
    SEGMENTS_MISSING = "segments with rows but without a file"
    SEGMENTS_MISSIZED = "segments with rows and a file of a wrong size"
    BLOCKS_WITHOUT_FILE = "blocks of segments without a usable file"
    BLOCKS_OUTSIDE = "blocks that do not lie inside their segment"
    BLOCKS_OVERLAPPING = "blocks that overlap another one"
    BLOCKS_UNKNOWN = "blocks of a namespace that is not known"
    BLOCKS_MISSIZED = "blocks of another size than their namespace's"
    BLOCKS_CORRUPT = "blocks whose bytes do not match their checksum"
    BLOCKS_UNREADABLE = "blocks that the device refuses to read"
    BLOCKS_LOST = "blocks that extend one of those"
    LEFT_OVER = "files that the next start removes"
    BLOCKS_UNREACHABLE = "blocks whose parent is not stored"
    BLOCKS_REPEATED = "blocks that are stored once more"

    @property
    def is_fault(self) -> bool:
        """Whether it means that something went wrong; the others come about in every store."""
        return self not in (Kind.LEFT_OVER, Kind.BLOCKS_UNREACHABLE, Kind.BLOCKS_REPEATED)


@dataclass(slots=True)
class Finding:
    """How often something was found, and the first few of it."""

    kind: Kind
    count: int = 0
    examples: list[str] = field(default_factory=list)


class Findings:
    """All that was found, in the order of Kind."""

    def __init__(self) -> None:
        self._found: dict[Kind, Finding] = {}

    def add(self, kind: Kind, count: int, examples: Iterable[str]) -> None:
        """Count `count` more; of `examples` no more are taken than are shown."""
        if count:
            finding = self._found.setdefault(kind, Finding(kind))
            finding.count += count
            for example in examples:
                if len(finding.examples) >= EXAMPLES_MAX:
                    break
                finding.examples.append(example)

    @property
    def faults(self) -> list[Finding]:
        """What went wrong."""
        return [self._found[kind] for kind in Kind if kind in self._found and kind.is_fault]

    @property
    def notes(self) -> list[Finding]:
        """What comes about in every store: space that is free again later."""
        return [self._found[kind] for kind in Kind if kind in self._found and not kind.is_fault]

    def count(self, kind: Kind) -> int:
        """How often `kind` was found."""
        return self._found[kind].count if kind in self._found else 0
