"""A row's process: what it tells when it dies, what it takes while it rests, how soon it ends."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fgnet.benchmarks import engine_benchmark
from fgnet.benchmarks.row_process import RowProcess
from fgnet.benchmarks.rows import Row
from fgnet.benchmarks.tissue import column_shape
from fgnet.engine.bundle import Bundle
from fgnet.volumes.errors import BackendError

ORT = Row("onnxruntime fp32", "onnxruntime", "fp32", "cpu")


@pytest.fixture
def opened(bundle: Bundle, tmp_path: Path) -> Iterator[RowProcess]:
    pytest.importorskip("onnxruntime")
    shape = column_shape(bundle.manifest, 2)
    np.save(tmp_path / "gray.npy", np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
    with RowProcess(ORT, tmp_path) as process:
        process.open(bundle, tmp_path / "gray.npy", 1)
        yield process


def test_a_process_that_was_killed_says_so(opened: RowProcess) -> None:
    os.kill(opened.pid, signal.SIGKILL)
    with pytest.raises(BackendError, match=r"onnxruntime fp32: .*killed.*memory"):
        opened.window(1)


def test_an_idle_row_takes_no_time_from_others(opened: RowProcess) -> None:
    def used() -> float:
        fields = Path(f"/proc/{opened.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    if not Path("/proc/self/stat").is_file():
        pytest.skip("the system does not tell a process's time")
    opened.window(2)
    time.sleep(engine_benchmark._REST_SECONDS)
    before = used()
    time.sleep(1)
    assert used() - before <= 0.05


def test_an_interrupt_does_not_wait_for_the_block_under_way(opened: RowProcess) -> None:
    opened.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    with pytest.raises(ProcessLookupError):
        os.kill(opened.pid, 0)
