"""A C library that keeps freed memory serves large arrays without new pages."""

from __future__ import annotations

import subprocess
import sys

# Page faults of 20 arrays of 64 MiB, each freed before the next one.
FAULTS = """
import resource
import numpy as np
from fgnet.network.kept_memory import keep_memory

if {keep}:
    keep_memory()
np.ones(64 << 20, np.uint8)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    np.ones(64 << 20, np.uint8)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(*, keep: bool) -> int:
    done = subprocess.run(
        [sys.executable, "-c", FAULTS.format(keep=keep)], capture_output=True, text=True, check=True, timeout=60
    )
    return int(done.stdout)


def test_kept_memory_is_used_again() -> None:
    assert faults(keep=True) * 5 < faults(keep=False)
