"""What a plan promises against what a run of it does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from fgnet.engine import run_estimate, streaming
from fgnet.engine.chunk_sums import SumPool
from fgnet.engine.pipeline import GrayVolume
from fgnet.engine.run_estimate import estimate
from fgnet.engine.run_options import RunOptions
from fgnet.engine.run_plan import RunPlan, make_plan
from fgnet.engine.streaming import stream
from fgnet.postproc.waterz_decoder import WaterzOptions
from fgnet.volumes.geometry import Box
from fgnet.volumes.reading import open_volume


class Nowhere:
    """A sink that forgets."""

    def write(self, *_: Any) -> None:
        """Do nothing."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gray") / "v.zarr"
    array = zarr.create_array(str(path), shape=(21, 50, 70), chunks=(5, 16, 24), dtype="u1")
    array[:] = np.random.default_rng(0).integers(0, 256, array.shape, dtype=np.uint8)
    return path


@settings(deadline=None, max_examples=15)
@given(
    sections=st.integers(0, 4),
    stride=st.tuples(st.integers(2, 4), st.integers(8, 16), st.integers(8, 16)),
    memory=st.sampled_from([200_000, 1 << 20, 1 << 30]),
    region=st.sampled_from([None, Box((3, 5, 0), (15, 50, 41))]),
)
def test_work_and_memory_are_those_of_the_run(
    slot_runner: Any, store: Path, sections: int, stride: Any, memory: int, region: Box | None
) -> None:
    plan = make_plan((21, 50, 70), (4, 16, 16), stride=stride, region=region, chunk=(8, 16, 16), memory=memory)
    pools: list[SumPool] = []

    class Counting(SumPool):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            pools.append(self)

    runner = slot_runner((4, 16, 16), sections)
    with open_volume(store) as volume, pytest.MonkeyPatch.context() as patch:
        patch.setattr(streaming, "SumPool", Counting)
        state = stream(plan, GrayVolume(volume), runner, Nowhere())
        told = estimate(plan, sections=sections, chunks=volume.chunks, voxel_bytes=1, waterz=True)
    assert state.blocks == runner.decoded == told["work"]["blocks_decoded"]
    assert len(runner.encoded) * sections == told["work"]["sections_encoded"]
    (pool,) = pools
    assert pool.taken * 3 * 4 * np.prod(plan.chunk) <= told["device_memory"]["sum_bytes"] <= memory
    # The plan counts all layers of a chunk's column, which come one after the other at its first block row.
    assert pool.taken >= plan.live_chunks / 2
    assert told["work"]["bytes_decoded_from_input"] >= plan.region.size
    runner.close()


def test_a_plan_survives_its_plain_form() -> None:
    plan = make_plan((21, 50, 70), (4, 16, 16), region=Box((3, 5, 0), (15, 50, 41)), chunk=(8, 16, 16))
    assert RunPlan.from_dict(plan.to_dict()) == plan


@pytest.mark.parametrize("kind", ["zarr", "tiff", "sections"])
def test_sections_of_images_are_counted_as_far_as_they_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    gray = np.random.default_rng(0).integers(0, 256, (12, 40, 50), dtype=np.uint8)
    path = tmp_path / {"zarr": "v.zarr", "tiff": "v.tif", "sections": "v"}[kind]
    if kind == "zarr":
        zarr.create_array(str(path), shape=gray.shape, chunks=(1, 40, 50), dtype="u1")[:] = gray
    elif kind == "tiff":
        tifffile.imwrite(path, gray, compression="zlib")
    else:
        path.mkdir()
        for index, section in enumerate(gray):
            tifffile.imwrite(path / f"{index:02}.tif", section)
    plan = make_plan(gray.shape, (4, 16, 16), region=Box((5, 0, 0), (6, 9, 9)), chunk=(8, 16, 16))
    with open_volume(path) as volume:
        # Blocks of four sections, two apart, reach from section 2 to 8; these are kept whole.
        expected = 0 if kind == "zarr" else 6 * 40 * 50
        assert run_estimate.section_cache_bytes(volume, plan) == expected
        assert run_estimate.decoded_again(volume, plan) is None
        monkeypatch.setattr(run_estimate, "BUDGET", 7000)
        assert run_estimate.section_cache_bytes(volume, plan) == min(expected, 7000)
        told = run_estimate.decoded_again(volume, plan)
        assert (told is None) == (kind == "zarr")
        # Two rows and two columns of blocks, eight apart, reach into the region.
        assert told is None or "each of 4 columns" in told


def test_blocks_that_are_decoded_at_a_time_are_counted() -> None:
    options = RunOptions(Path("out.zarr"), 0.5, decoder="blockwise", threads=3)
    few, many = (64, 256, 300), (640, 2560, 2560)
    in_sections = replace(options, decoding=WaterzOptions(fragments="sections"))
    in_3d = replace(options, decoding=WaterzOptions(fragments="affinity"))
    # As many blocks at a time as there are, and each no larger than the region.
    assert run_estimate.blockwise_bytes(few, in_sections) == (20 * 2 * 64 * 256**2, 45 * 2 * 64 * 256**2)
    assert run_estimate.blockwise_bytes(many, in_sections) == (20 * 3 * 2**24, 45 * 3 * 2**24)
    assert run_estimate.blockwise_bytes(many, in_3d) == (40 * 3 * 2**23, 90 * 3 * 2**23)
    assert run_estimate.blockwise_bytes(many, replace(in_3d, decoder="waterz")) == (0, 0)
