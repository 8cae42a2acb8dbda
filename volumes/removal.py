"""How is a folder deleted so that its place holds all of it or nothing, whenever a kill comes?

Deleted where it lies, a Zarr group may lose chunks first and what declares it complete last. So it is renamed first,
into a hidden folder beside it that a mark tells from anybody else's, and is deleted there. What a kill leaves in such a
folder is deleted the next time that something is put in the same place.
"""

from __future__ import annotations

import contextlib
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
    folder = Path(tempfile.mkdtemp(prefix=f".{place.name}.", suffix=_SUFFIX, dir=place.parent))
    try:
        (folder / MARK).touch()
        sync_folder(folder)
        yield folder
    finally:
        _empty(folder)


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
    """Delete what a kill has left of folders that were in a place; what cannot be deleted stays, and is no error."""
    name = re.compile(rf"\.{re.escape(place.name)}\.[^.]+{re.escape(_SUFFIX)}")
    with contextlib.suppress(OSError):
        for folder in list(place.parent.iterdir()):
            if name.fullmatch(folder.name):
                with contextlib.suppress(OSError):
                    # One without a mark goes only where nothing is in it.
                    _empty(folder) if (folder / MARK).is_file() else folder.rmdir()


def _empty(folder: Path) -> None:
    for entry in list(folder.iterdir()):
        if entry.is_dir():
            shutil.rmtree(entry)
    # Last: what lies in a folder without it is somebody else's.
    (folder / MARK).unlink(missing_ok=True)
    folder.rmdir()
