"""How much memory did this process hold at most?"""

from __future__ import annotations

import re
from pathlib import Path


def peak_memory() -> int | None:
    """Most bytes of memory that this process held at a time; None where the system does not tell.

    What the kernel reports of a process's resources (ru_maxrss) counts the parent's memory where it was forked.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
    return None if found is None else int(found[1]) << 10
