"""Who writes in a run's folder: one run at a time."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from fgnet.volumes.errors import OutputError

LOCK = ".lock"

# Of file systems without locks: there, nobody is told.
_UNABLE = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other runs out of a folder, which is made where it is missing; the lock ends with the process at the latest.

    Raises:
        OutputError: another run is writing there, or the folder cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = _lock(folder)
    except OSError as error:
        raise OutputError(
            f"the folder cannot be used: {error.strerror}", where=folder, remedy="choose another one"
        ) from error
    with file:
        # Of runs that were killed while they wrote a checkpoint: there is no other one now.
        for torn in folder.glob(".*.pt.*.part"):
            with contextlib.suppress(OSError):
                torn.unlink()
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                (folder / LOCK).unlink()


def _lock(folder: Path) -> IO[str]:
    while True:
        file = (folder / LOCK).open("a")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise OutputError(
                "another run is writing in this folder",
                where=folder,
                remedy="wait for it or stop it, or choose another folder",
            ) from None
        except OSError as error:
            if error.errno not in _UNABLE:
                file.close()
                raise
        # The run that held the lock may just have removed the file.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), (folder / LOCK).stat()):
                return file
        file.close()
