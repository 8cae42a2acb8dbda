"""A C library that keeps freed memory serves large arrays without new pages."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only glibc can be told to keep memory")

# Page faults of 20 arrays of 64 MiB, each freed before the next one.
FAULTS = """
import resource
import numpy as np
from fgnet.volumes.kept_memory import keep_memory

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


# MiB that are held once 20 arrays of 16 MiB were freed, kept, and given back, and then once more were freed.
HELD = """
import re
from pathlib import Path
import numpy as np
from fgnet.volumes.kept_memory import give_memory_back, keep_memory

def held():
    arrays = [np.ones(16 << 20, np.uint8) for _ in range(20)]
    del arrays
    return int(re.search(r"VmRSS:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) >> 10

begin = held()
keep_memory()
kept = held()
give_memory_back()
print(begin, kept, int(re.search(r"VmRSS:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) >> 10, held())
"""


def test_kept_memory_is_given_back() -> None:
    done = subprocess.run([sys.executable, "-c", HELD], capture_output=True, text=True, check=True, timeout=60)
    begin, kept, given, after = map(int, done.stdout.split())
    assert kept > begin + 300
    assert given < begin + 100
    assert after < begin + 100
