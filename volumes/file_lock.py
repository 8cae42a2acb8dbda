"""A file that one process at a time holds, for as long as it lives."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path
from typing import IO


def lock_file(path: Path) -> IO[str]:
    """Open a text file to read and to append to, and lock it; closing it, or the process' end, unlocks it.

    Args:
        path: of the file, which is created where it is missing. Who holds the lock may remove it.

    Raises:
        BlockingIOError: another process holds it.
        OSError: it cannot be opened, or its disk knows no locks.
    """
    while True:
        file = path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Who held the lock may just have removed the file.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    return file
        except BaseException:
            file.close()
            raise
        file.close()
