"""The folder of a disk tier: checks before anything is made, one owner at a time, nothing left behind on
failure."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from pathlib import Path

from kvstore.errors import ConfigInvalid, LimitExceeded, Unavailable

NAMES = ("lock", "manifest", "segments")


class DiskFolder:
    """path/{lock,manifest/,segments/}, made where missing and owned until close() or abandon().

    Errors: ConfigInvalid when `path` is no folder; Unavailable when it cannot be made or written to, or
    another process owns it; LimitExceeded when its file system has no room for `floor_nbytes` of segments.
    """

    def __init__(self, path: Path, floor_nbytes: int) -> None:
        self.path = path
        self.segments = path / "segments"
        self.manifest = path / "manifest"
        self._lock_descriptor = -1
        nearest = nearest_existing(path)
        if not nearest.is_dir():
            raise ConfigInvalid(f"disk path {path}: {nearest} is a file; allowed: a folder, or a name for a new one")
        self._made = [folder for folder in [path, *path.parents] if not folder.exists()]
        self._made_names = [name for name in NAMES if not (path / name).exists()]
        try:
            self._check_room(nearest, floor_nbytes)
            self.segments.parent.mkdir(parents=True, exist_ok=True)
            self._lock()
            self.segments.mkdir(exist_ok=True)
            self.manifest.mkdir(exist_ok=True)
        except OSError as error:
            self.abandon()
            raise Unavailable(f"disk path {path} cannot be used: {error.strerror}: {error.filename}") from error
        except Unavailable:
            self._made_names = []  # they belong to the owner
            self.abandon()
            raise

    def sync(self) -> None:
        """Make the names of the folders durable, and that of the manifest in its own. Errors: OSError.

        Before a new manifest says anything: later nobody would know that it was never done.
        """
        for folder in [self.manifest, self.path, self.path.parent, *(made.parent for made in self._made)]:
            sync_names(folder)

    def abandon(self) -> None:
        """Give up the folder and remove what this object made. For a tier that could not be opened."""
        for name in self._made_names:
            shutil.rmtree(self.path / name, ignore_errors=True)
            with contextlib.suppress(OSError):
                (self.path / name).unlink(missing_ok=True)
        for folder in self._made:
            with contextlib.suppress(OSError):
                folder.rmdir()
        self.close()

    def close(self) -> None:
        """Give up the lock. Idempotent."""
        if self._lock_descriptor >= 0:
            os.close(self._lock_descriptor)
            self._lock_descriptor = -1

    def _check_room(self, nearest: Path, floor_nbytes: int) -> None:
        system = os.statvfs(nearest)
        taken_nbytes = sum(file.stat().st_blocks * 512 for file in self.segments.glob("*.seg"))
        room_nbytes = system.f_bavail * system.f_frsize + taken_nbytes
        if room_nbytes < floor_nbytes:
            raise LimitExceeded(
                f"disk path {self.path}: its file system has room for {room_nbytes} bytes of segments; "
                f"needed: at least {floor_nbytes}"
            )

    def _lock(self) -> None:
        self._lock_descriptor = lock_folder(self.path)


def lock_folder(folder: Path) -> int:
    """Become the owner of a folder until the descriptor given back is closed. Errors: Unavailable names the process
    that has it; OSError."""
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    except BlockingIOError:
        owner = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
        os.close(descriptor)
        raise Unavailable(f"disk path {folder} is in use by process {owner}") from None
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def nearest_existing(path: Path) -> Path:
    """`path`, or the first of its parents that exists."""
    for candidate in [path, *path.parents]:
        if os.path.lexists(candidate):
            return candidate
    return Path("/")


def sync_names(folder: Path) -> None:
    """Make the names in a folder durable. Errors: OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
