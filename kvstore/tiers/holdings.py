"""Holdings: what the folder of a disk tier holds when it is opened, made to agree with itself."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from kvstore.errors import ConfigInvalid, Unavailable
from kvstore.tiers.changes import Clean
from kvstore.tiers.disk_folder import DiskFolder
from kvstore.tiers.geometry import Geometry
from kvstore.tiers.manifest import Manifest, ManifestError
from kvstore.tiers.segment_files import SegmentFiles
from kvstore.tiers.segments import SegmentTable

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Holdings:
    """The parts of an open folder; whoever has them closes manifest and files."""

    manifest: Manifest
    geometry: Geometry
    files: SegmentFiles
    table: SegmentTable
    names: dict[int, str]  # number of a namespace → its text
    quotas: dict[int, int]  # the same → bytes
    num_dropped: int  # entries and whole manifests that cannot be used


def open_holdings(
    folder: DiskFolder, capacity_nbytes: int, segment_nbytes: int | None, free_nbytes_min: int, now_s: int
) -> Holdings:
    """Open what a locked folder holds, or make it. Errors: ConfigInvalid, Unavailable, OSError."""
    manifest = Manifest(folder.manifest, capacity_nbytes, now_s)
    try:
        stored = manifest.segment_nbytes
        if stored and segment_nbytes and stored != segment_nbytes:
            raise ConfigInvalid(
                f"disk segment_nbytes={segment_nbytes}, but {folder.path} was made with {stored}; "
                f"allowed: {stored}, or an empty folder"
            )
        geometry = Geometry.choose(capacity_nbytes, stored or segment_nbytes)
        if stored is None:
            folder.sync()
            manifest.initialise(geometry.segment_nbytes, now_s)
        files = SegmentFiles(folder.segments, geometry.segment_nbytes, free_nbytes_min)
        table, num_lost = _match(folder, manifest, geometry, files)
        num_dropped = num_lost + manifest.was_damaged
        return Holdings(manifest, geometry, files, table, manifest.namespaces(), manifest.quotas(), num_dropped)
    except ManifestError as error:
        manifest.close()
        raise Unavailable(f"{folder.manifest}: {error}") from error
    except BaseException:
        manifest.close()
        raise


def _match(folder: DiskFolder, manifest: Manifest, geometry: Geometry, files: SegmentFiles) -> tuple[SegmentTable, int]:
    """Drop rows of segments without a usable file, then files without a usable number; the entries that went."""
    written = files.existing(geometry.num_segments)
    holding = manifest.segments()
    lost = [segment for segment in holding if segment not in written]
    num_lost = sum(len(row.entries) for segment in lost for row in manifest.rows(segment)[0])
    if lost:
        manifest.apply([Clean(segment) for segment in lost])
        log.warning("%s: %d segments have no usable file; their blocks are gone", folder.path, len(lost))
    files.remove_others(written)
    recovered = [segment for segment in holding if segment in written]
    return SegmentTable(geometry, written, recovered, manifest.seq), num_lost
