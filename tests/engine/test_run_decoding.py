"""Worker processes that fail while affinities are still made: these stop, and nothing that was made is lost."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import zarr

from fgnet.engine.decoding_crew import Crew
from fgnet.engine.pipeline import OneProcess, StreamJob, segment_volume
from fgnet.engine.run_journal import finished_chunks
from fgnet.engine.run_options import RunOptions
from fgnet.engine.streaming import StreamState
from fgnet.volumes.errors import DecodingError
from fgnet.volumes.reading import open_volume

pytest.importorskip("daisy", reason="worker processes need the extra fgnet[cluster]")

SHAPE, PATCH = (8, 64, 600), (4, 64, 64)


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gray") / "v.zarr"
    gray = np.random.default_rng(0).integers(0, 256, SHAPE, np.uint8)
    zarr.create_array(str(path), shape=SHAPE, chunks=(8, 64, 64), dtype="u1")[:] = gray
    return path


def scheduler() -> int:
    """The process that schedules a decoding for this one."""
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == os.getpid() and b"decode_scheduler" in (entry / "cmdline").read_bytes():
                return int(entry.name)
    raise AssertionError("there is none")


class DisturbedStreamer(OneProcess):
    """Kills the decoding after the first chunk, and waits until it is told to stop."""

    last: StreamState

    def __call__(self, job: StreamJob) -> StreamState:
        def disturb(state: StreamState) -> None:
            self.last = state
            if finished_chunks(job.options.output):
                assert not job.stop()
                os.kill(scheduler(), signal.SIGKILL)
                end = time.monotonic() + 30
                while not job.stop():
                    assert time.monotonic() < end, "it was not noticed"
                    time.sleep(0.01)

        return super().__call__(replace(job, progress=disturb))


def segmented(volume: Path, streamer: OneProcess, options: RunOptions) -> npt.NDArray[Any]:
    with open_volume(volume) as opened:
        segment_volume(opened, streamer, options)
    with open_volume(options.output) as made:
        return made.read(made.box)


def test_workers_that_fail_stop_the_streaming_and_a_resumed_run_goes_on(
    volume: Path, slot_runner: Any, tmp_path: Path
) -> None:
    options = RunOptions(tmp_path / "out.zarr", 0.5, "blockwise", memory=1 << 20, crew=Crew(1))
    streamer = DisturbedStreamer(slot_runner(PATCH))
    with pytest.raises(DecodingError, match="schedules the decoding was killed by signal 9"):
        segmented(volume, streamer, options)
    assert streamer.last.done < streamer.last.blocks
    assert finished_chunks(options.output)
    found = segmented(volume, OneProcess(slot_runner(PATCH)), replace(options, resume=True))
    threads = replace(options, output=tmp_path / "whole.zarr", crew=None)
    np.testing.assert_array_equal(found, segmented(volume, OneProcess(slot_runner(PATCH)), threads))
    assert found.max() > 1
