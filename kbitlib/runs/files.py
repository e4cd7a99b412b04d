"""Files that are there whole or not at all."""

import hashlib
import os
import time
from pathlib import Path

SCRATCH = ".work"  # the folder of a store that holds what is being made

TICK = 2_000_000_000  # nanoseconds: the coarsest time stamps in use, those of FAT

_verified: dict[Path, tuple[int, int, int, str]] = {}


def write_file(path: Path, content: bytes) -> None:
    """Write and wait until the disk has it."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def replace_file(path: Path, content: bytes, scratch: Path) -> None:
    """Put `content` at `path` in one step, by way of a folder on the same disk: a reader never sees a part of it."""
    scratch.mkdir(parents=True, exist_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = scratch / f"{path.name}.{os.getpid()}"
    try:
        part.write_bytes(content)
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut; Windows has no such call and needs none."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def sha256(path: Path) -> str:
    """The digest of a file, read again only if its size, inode or time of change differ from the last time.

    A sweep asks for the same large file hundreds of times; reading it each time would cost more than the jobs. A file
    that was changed just now may change again within one tick of its time stamp, so that its digest is not kept.
    """
    stat = path.stat()
    state = (stat.st_size, stat.st_mtime_ns, stat.st_ino)
    known = _verified.get(path)
    if known is not None and known[:3] == state:
        return known[3]
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if time.time_ns() - stat.st_mtime_ns > TICK:
        _verified[path] = (*state, digest)
    return digest


def shown(path: Path) -> str:
    """A path as it may be published: relative to the working directory, or its last part alone."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else path.name
