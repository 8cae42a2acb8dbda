"""How is a folder deleted so that its place holds all of it or nothing, whenever a kill comes?

Deleted where it lies, a Zarr group may lose chunks first and what declares it complete last. So it is renamed first,
into a hidden folder beside it that a mark tells from anybody else's, and is deleted there. What a kill leaves in such a
folder is deleted the next time that something is put in the same place. The mark is locked as long as a process uses
the folder; the lock ends with the process, however it ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from fgnet.volumes.durability import sync_folder

MARK = "fgnet-replaced"
"""Lies in a folder whose content is to be deleted, as long as there is any."""

_SUFFIX = ".replaced"


@contextlib.contextmanager
def aside(place: Path) -> Iterator[Path]:
    """Give a folder beside a place that is deleted with all that is put there, also where a kill comes.

    Args:
        place: what is or was there goes into the folder, or what is to take its place comes from it, by renaming.

    Yields:
        The folder, on the disk of the place.

    Raises:
        OSError: the folder cannot be made, or what it holds not be deleted.
    """
    remove_leftovers(place)
    folder, mark = _marked(place)
    try:
        try:
            sync_folder(folder)
            yield folder
        finally:
            _empty(folder)
    finally:
        os.close(mark)


def _marked(place: Path) -> tuple[Path, int]:
    """A folder beside a place, and its mark, locked."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=f".{place.name}.", suffix=_SUFFIX, dir=place.parent))
        # Another process may take it for a leftover until the mark is locked.
        with contextlib.suppress(FileNotFoundError):
            mark = os.open(folder / MARK, os.O_CREAT | os.O_RDWR, 0o666)
            if _locked(mark, folder / MARK):
                return folder, mark
            os.close(mark)


def _locked(mark: int, path: Path) -> bool:
    """Whether a mark could be locked, and is still there."""
    try:
        fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        # A disk without locks: no other process can lock it either, and so none deletes the folder.
        return True
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(mark), path.stat())
    return False


def remove_folder(folder: Path) -> None:
    """Delete a folder if it is there, and what an earlier call that was killed has left of it.

    Raises:
        OSError: it is no folder of its own, or cannot be deleted; its place holds all of it or nothing then too.
    """
    remove_leftovers(folder)
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise NotADirectoryError(f"{folder} is no folder")
    if folder.exists():
        with aside(folder) as spare:
            folder.rename(spare / "old")
            # Before anything of it is deleted: otherwise a power cut could bring back a part of it.
            sync_folder(folder.parent)


def remove_leftovers(place: Path) -> None:
    """Delete what a kill has left of folders that were in a place; what cannot be deleted stays, and is no error.

    A folder that another process uses stays too.
    """
    name = re.compile(rf"\.{re.escape(place.name)}\.[^.]+{re.escape(_SUFFIX)}")
    with contextlib.suppress(OSError):
        for folder in list(place.parent.iterdir()):
            if name.fullmatch(folder.name):
                with contextlib.suppress(OSError):
                    # One without a mark goes only where nothing is in it.
                    _empty_unused(folder) if (folder / MARK).is_file() else folder.rmdir()


def is_leftover(folder: Path) -> bool:
    """Whether a folder is one that holds what is to be deleted, of whatever place beside it."""
    if not (folder.is_dir() and re.fullmatch(rf"\..+\.[^.]+{re.escape(_SUFFIX)}", folder.name)):
        return False
    return (folder / MARK).is_file() or not any(folder.iterdir())


def _empty_unused(folder: Path) -> None:
    mark = os.open(folder / MARK, os.O_RDWR)
    try:
        fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _empty(folder)
    finally:
        os.close(mark)


def _empty(folder: Path) -> None:
    for entry in list(folder.iterdir()):
        if entry.is_dir():
            shutil.rmtree(entry)
    # Last: what lies in a folder without it is somebody else's.
    (folder / MARK).unlink(missing_ok=True)
    folder.rmdir()
