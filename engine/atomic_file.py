"""Write a file so that others see either all of it or none."""

from __future__ import annotations

import contextlib
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from fgnet.volumes.durability import make_folder, sync_folder


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file as `open_atomically` does.

    Raises:
        OSError: the folder cannot be made or written to; nothing is left behind.
    """
    with open_atomically(path) as file:
        file.write(data)


@contextmanager
def open_atomically(path: Path) -> Iterator[IO[bytes]]:
    """A file to write under another name beside `path`, renamed at the end; the folder is made where it is missing.

    It is on the disk when the context ends, unless by an error. Who may read it is what the process' umask says, as for
    every file that is made plainly, or what was said of the file that it replaces.

    Raises:
        OSError: the folder cannot be made or written to; nothing is left behind.
    """
    make_folder(path.parent)
    # Named after its writer: no other one, in this process or on another host, writes the same.
    part = path.with_name(f".{path.name}.{os.uname().nodename}-{os.getpid()}-{threading.get_ident()}.part")
    try:
        with part.open("wb") as file:
            # There is none, or this file system knows no modes.
            with contextlib.suppress(OSError):
                os.fchmod(file.fileno(), stat.S_IMODE(path.stat().st_mode))
            yield file
            file.flush()
            # Renamed before its content is on disk, it could be found empty after a power cut.
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)
