"""What a worker that outlives its run may still do to the next run of the same output: nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from fgnet.engine.blockwise_run import decoding_job
from fgnet.engine.decoding_crew import _work
from fgnet.engine.decoding_job import DecodingJob
from fgnet.engine.run_options import RunOptions
from fgnet.engine.run_outputs import create_outputs, decoding_folder, drop_decoding, reopen_outputs
from fgnet.engine.run_plan import make_plan
from fgnet.postproc.blockwise_stages import Stage
from fgnet.postproc.sidecar import Sidecar, SidecarGoneError
from fgnet.volumes.reading import Volume, open_volume

SHAPE = (4, 32, 32)
STEP, BLOCK = "fragments", (0, 0, 0)


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    zarr.create_array(str(tmp_path / "v.zarr"), shape=SHAPE, dtype="u1")[:] = 0
    return open_volume(tmp_path / "v.zarr")


def begun(output: Path, volume: Volume, named: dict[str, Any], *, resume: bool = False, **options: Any) -> DecodingJob:
    """The decoding of a run that has replaced what was there, or goes on with it, and has begun."""
    plan = make_plan(SHAPE, (4, 16, 16), chunk=SHAPE)
    if resume:
        outputs = reopen_outputs(output, plan, volume, segmentation=True)
    else:
        outputs = create_outputs(
            output,
            plan,
            volume,
            segmentation=True,
            zarr_format=3,
            overwrite=True,
            first=lambda: drop_decoding(output),
        )
    job = decoding_job(outputs, RunOptions(output, 0.5, "blockwise", **options), named, plan)
    job.sidecar.claim(job.describe())
    return job


def test_blocks_of_an_earlier_run_are_none_of_a_later_one(tmp_path: Path, volume: Volume) -> None:
    output = tmp_path / "out.zarr"
    earlier = begun(output, volume, {"input": "this"})
    earlier.sidecar.save(STEP, BLOCK, {})
    later = begun(output, volume, {"input": "that"})
    with pytest.raises(SidecarGoneError, match="not there any more"):
        earlier.sidecar.save(STEP, BLOCK, {"x": np.zeros(1)})
    assert not later.sidecar.has(STEP, BLOCK)
    assert list(decoding_folder(output).iterdir()) == [later.folder]


def test_a_resumed_run_finds_its_blocks_also_below_a_lower_threshold(tmp_path: Path, volume: Volume) -> None:
    output = tmp_path / "out.zarr"
    killed = begun(output, volume, {"input": "this"}, graph=tmp_path / "tree.zarr", graph_threshold=0.7)
    killed.sidecar.save(STEP, BLOCK, {})
    for options in ({}, {"min_size": 3}, {"graph": tmp_path / "tree.zarr", "graph_threshold": 0.6}):
        assert begun(output, volume, {"input": "this"}, resume=True, **options).sidecar.has(STEP, BLOCK)
    assert not begun(output, volume, {"input": "that"}, resume=True).sidecar.has(STEP, BLOCK)


def test_a_worker_that_comes_later_still_makes_no_folder_and_leaves_no_word(tmp_path: Path, volume: Volume) -> None:
    output = tmp_path / "out.zarr"
    job = begun(output, volume, {})
    drop_decoding(output)
    left = sorted(tmp_path.iterdir())
    stage = Stage("cut", (1, 1, 1), lambda block: job.sidecar.save(STEP, block, {}))
    for step in (STEP, "labels-0/written"):
        with pytest.raises(SidecarGoneError):
            job.sidecar.save(step, BLOCK, {})
    with pytest.raises(SidecarGoneError):
        _work(stage, BLOCK, job.folder / "error.txt")
    assert sorted(tmp_path.iterdir()) == left


def test_a_folder_that_goes_while_a_file_is_written_is_told_too(tmp_path: Path) -> None:
    sidecar = Sidecar(tmp_path / "sidecar")
    sidecar.claim("this")
    with pytest.raises(SidecarGoneError):
        sidecar._write(sidecar.path(STEP, BLOCK), lambda _: sidecar.folder.rename(tmp_path / "gone"))
    assert not sidecar.folder.exists()
