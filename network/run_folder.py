"""Who writes in a run's folder: one run at a time."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from fgnet.volumes.errors import OutputError
from fgnet.volumes.file_lock import lock_file

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
        lock = _lock(folder)
    except OSError as error:
        raise OutputError(
            f"the folder cannot be used: {error.strerror}", where=folder, remedy="choose another one"
        ) from error
    with lock:
        # Of runs that were killed while they wrote a checkpoint: there is no other one now.
        for torn in folder.glob(".*.pt.*.part"):
            with contextlib.suppress(OSError):
                torn.unlink()
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                (folder / LOCK).unlink()


def _lock(folder: Path) -> AbstractContextManager[object]:
    try:
        return lock_file(folder / LOCK)
    except BlockingIOError:
        raise OutputError(
            "another run is writing in this folder",
            where=folder,
            remedy="wait for it or stop it, or choose another folder",
        ) from None
    except OSError as error:
        if error.errno not in _UNABLE:
            raise
        return nullcontext()
