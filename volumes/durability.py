"""What must be done so that a finished file is still there, and whole, after a power cut?

The content of a file is one thing that reaches the disk in its own time, its name in a folder is another: a file that
was synchronised and then renamed may be found under its old name, or not at all, until the folder is synchronised too.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

_UNABLE = {errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EPERM, errno.EBADF, errno.ENOSYS}
"""What systems say that cannot open a folder, or cannot synchronise one: some network shares, or a folder whose list of
names is not ours to read."""


def sync_file(path: Path) -> None:
    """Wait until the content of a file is on the disk itself, not only on its way to it.

    Raises:
        OSError: the file cannot be opened, or the disk refuses it.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk; does nothing where the system has no such thing.

    Raises:
        OSError: the folder is not there, or the disk fails.
    """
    try:
        sync_file(folder)
    except OSError as error:
        if error.errno not in _UNABLE:
            raise


def make_folder(folder: Path) -> None:
    """Make a folder and those that it lies in, where they are missing, so that they outlive a power cut.

    Raises:
        OSError: one cannot be made.
    """
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for made in missing:
        sync_folder(made.parent)


def put_in_place(made: Path, place: Path, aside: Path | None = None) -> None:
    """Rename a folder that is complete, so that its place holds the old one or all of the new one.

    Args:
        made: the folder, on the same disk as its place; all that it holds is synchronised first.
        place: where it goes.
        aside: where what lies there is put, if anything does, to be removed afterwards; a folder that is not empty is
            not replaced by default.

    Raises:
        OSError: it cannot be renamed, or the disk refuses its content.
    """
    for parent, _, files in os.walk(made, topdown=False):
        for name in files:
            sync_file(Path(parent) / name)
        sync_folder(Path(parent))
    replaced = aside is not None and place.exists()
    if aside is not None and replaced:
        place.rename(aside)
    try:
        made.rename(place)
    except BaseException:
        if aside is not None and replaced:
            aside.rename(place)
        raise
    sync_folder(place.parent)
