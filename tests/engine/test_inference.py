"""Blended inference against the definition: every patch of the padded volume in memory, weighed in float64."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from fgnet.engine.bundle import load_bundle
from fgnet.engine.inference import ArraySource, StageSeconds, default_stride, predict_affinities
from fgnet.engine.onnxruntime_runner import OnnxRuntimeRunner
from fgnet.engine.runner import Runner
from fgnet.postproc.blending import WeightKind
from fgnet.volumes.errors import DecodingError, FGNetError, GeometryError, VolumeError
from fgnet.volumes.geometry import Box, Triple
from fgnet.volumes.reading import open_volume, read_gray

KINDS: list[WeightKind] = ["gaussian", "bump", "constant"]
Affinities = npt.NDArray[np.float32]


@dataclass
class StepRunner:
    """Affinities from the steps between neighbouring voxels, and the place in the patch, so that blending matters."""

    patch: Triple
    batch: int = 1
    name: str = "steps"
    calls: int = 0

    def run(self, patches: npt.NDArray[np.uint8]) -> Affinities:
        assert patches.shape == (self.batch, *self.patch)
        assert patches.dtype == np.uint8
        self.calls += 1
        gray = patches.astype(np.float32) / 255
        steps = [1 - np.abs(gray - np.roll(gray, 1, axis)) for axis in (1, 2, 3)]
        ramp = np.linspace(0, 1, math.prod(self.patch), dtype=np.float32).reshape(self.patch)
        return np.stack(steps, axis=1) * np.float32(0.7) + ramp * np.float32(0.3)

    def describe(self) -> dict[str, Any]:
        return {"backend": self.name, "precision": "fp32"}

    def close(self) -> None:
        """It holds nothing."""


class ByteRunner(StepRunner):
    """The same in 8 bits, as backends return that round on their device."""

    def run(self, patches: npt.NDArray[np.uint8]) -> Any:
        return np.rint(super().run(patches) * 255).astype(np.uint8)


class BrokenRunner(StepRunner):
    """An overflow in one voxel of its last patch."""

    value = np.float32(np.nan)

    def run(self, patches: npt.NDArray[np.uint8]) -> Affinities:
        affinities = super().run(patches)
        affinities[-1, 1, 0, 0, 0] = self.value
        return affinities


def axis_weights(kind: str, size: int) -> npt.NDArray[np.float64]:
    if kind == "constant":
        return np.ones(size)
    if kind == "gaussian":
        u = np.linspace(-1, 1, size) if size > 1 else np.zeros(1)
        return np.exp(-(u**2) / (2 * 0.2**2))
    u = np.arange(1, size + 1) / (size + 1)
    profile = np.exp(-((u * (1 - u)) ** -1.5))
    return profile / profile.max()


def patch_starts(extent: int, patch: int, stride: int) -> list[int]:
    last = max(extent - patch, 0)
    return [*range(0, last, stride), last]


def reference(gray: npt.NDArray[np.uint8], runner: Runner, stride: Triple, kind: str) -> npt.NDArray[np.float64]:
    """Affinities (3, z, y, x) in [0, 1] of a whole volume."""
    patch = runner.patch
    padded: npt.NDArray[np.uint8] = gray
    for axis, (extent, wanted) in enumerate(zip(gray.shape, patch, strict=True)):
        widths = [(0, max(wanted - extent, 0)) if a == axis else (0, 0) for a in range(3)]
        padded = np.pad(padded, widths, mode="edge" if extent == 1 else "reflect")
    z, y, x = (axis_weights(kind, size) for size in patch)
    weights = z[:, None, None] * y[:, None] * x + (0 if kind == "constant" else 1e-4)
    sums, total = np.zeros((3, *padded.shape)), np.zeros(padded.shape)
    starts = [patch_starts(n, p, s) for n, p, s in zip(gray.shape, patch, stride, strict=True)]
    for corner in itertools.product(*starts):
        at = tuple(slice(a, a + p) for a, p in zip(corner, patch, strict=True))
        affinities = runner.run(np.repeat(padded[at][None], runner.batch, axis=0))[0]
        scale = 255 if affinities.dtype == np.uint8 else 1
        sums[(slice(None), *at)] += weights * (affinities.astype(np.float64) / scale)
        total[at] += weights
    result: npt.NDArray[np.float64] = (sums / total)[(slice(None), *(slice(0, n) for n in gray.shape))]
    return result


def assert_equal_to_rounding(found: npt.NDArray[np.uint8], expected: npt.NDArray[np.float64]) -> None:
    assert found.dtype == np.uint8
    assert found.shape == expected.shape
    # Half a step is the rounding to uint8, the rest float32 against float64.
    assert np.abs(found - expected * 255).max() <= 0.51


def noise(shape: Triple, seed: int = 0) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    patch = draw(st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(1, 6)))
    stride = tuple(draw(st.integers(1, side)) for side in patch)
    shape = draw(st.tuples(*[st.integers(1, 13)] * 3))
    first = tuple(draw(st.integers(0, extent - 1)) for extent in shape)
    stop = tuple(draw(st.integers(low + 1, extent)) for low, extent in zip(first, shape, strict=True))
    return {
        "gray": noise(shape, draw(st.integers(0, 9))),
        "runner": draw(st.sampled_from([StepRunner, ByteRunner]))(patch, batch=draw(st.integers(1, 5))),
        "stride": stride,
        "kind": draw(st.sampled_from(KINDS)),
        "roi": Box(first, stop),
        "threads": draw(st.sampled_from([1, 3])),
    }


@settings(deadline=None, max_examples=60)
@given(cases())
def test_a_region_is_that_of_the_definition_at_any_shape_stride_blending_and_batch(case: dict[str, Any]) -> None:
    gray, runner, stride, kind, roi = (case[key] for key in ("gray", "runner", "stride", "kind", "roi"))
    expected = reference(gray, runner, stride, kind)
    options = {"stride": stride, "blending": kind, "threads": case["threads"]}
    whole = predict_affinities(ArraySource(gray), runner, **options)
    assert_equal_to_rounding(whole, expected)
    part = predict_affinities(ArraySource(gray), runner, box=roi, **options)
    np.testing.assert_array_equal(part, whole[(slice(None), *roi.slices)])


@settings(deadline=None, max_examples=60)
@given(cases())
def test_progress_adds_up_to_the_voxels_of_the_region(case: dict[str, Any]) -> None:
    told: list[int] = []
    predict_affinities(
        ArraySource(case["gray"]), case["runner"], stride=case["stride"], box=case["roi"], progress=told.append
    )
    assert sum(told) == case["roi"].size
    assert min(told) >= 0


@pytest.mark.parametrize("kind", KINDS)
def test_the_network_on_real_tissue_gives_what_the_definition_gives(
    tiny_bundle: Path, shared_data: Callable[[str], Path], kind: WeightKind
) -> None:
    # Neither extent is a multiple of the stride, and z is read from the middle of the block.
    box = Box((100, 60, 40), (107, 140, 110))
    runner = OnnxRuntimeRunner(load_bundle(tiny_bundle), threads=1)
    with open_volume(f"{shared_data('fib25_t2.h5')}:raw") as volume:
        gray = read_gray(volume, box)
    stride = default_stride(runner.patch)
    expected = reference(gray, runner, stride, kind)
    found = predict_affinities(ArraySource(gray), runner, blending=kind)
    assert_equal_to_rounding(found, expected)
    assert np.ptp(found) > 100


@dataclass(frozen=True, eq=False)
class FileSource:
    """A volume on disk, read patch by patch."""

    volume: Any

    @property
    def shape(self) -> Triple:
        z, y, x = self.volume.shape
        return z, y, x

    def gray(self, box: Box) -> npt.NDArray[np.uint8]:
        return read_gray(self.volume, box)


def test_real_tissue_read_from_its_file_gives_what_it_gives_from_memory(shared_data: Callable[[str], Path]) -> None:
    address = f"{shared_data('gala_fib_train.h5')}:raw"
    with h5py.File(shared_data("gala_fib_train.h5")) as file:
        gray = file["raw"][:]
    runner = StepRunner((8, 32, 48), batch=3)
    with open_volume(address) as volume:
        found = predict_affinities(FileSource(volume), runner)
    assert_equal_to_rounding(found, reference(gray, runner, (4, 16, 24), "gaussian"))


def test_a_region_is_predicted_without_the_patches_that_do_not_reach_it() -> None:
    runner = StepRunner((4, 8, 8))
    predict_affinities(ArraySource(noise((40, 40, 40))), runner, box=Box((8, 8, 8), (10, 10, 10)))
    assert runner.calls == 8


def test_no_voxel_outside_the_patches_of_a_region_is_read() -> None:
    class Nearby(ArraySource):
        def gray(self, box: Box) -> npt.NDArray[np.uint8]:
            assert Box((6, 4, 4), (12, 16, 16)).contains(box), box
            return super().gray(box)

    predict_affinities(Nearby(noise((40, 40, 40))), StepRunner((4, 8, 8)), box=Box((8, 8, 8), (10, 12, 12)))


def test_time_is_counted_for_every_stage() -> None:
    seconds = StageSeconds()
    predict_affinities(ArraySource(noise((8, 16, 16))), StepRunner((4, 8, 8)), seconds=seconds)
    assert min(seconds.read, seconds.infer, seconds.blend) > 0


@pytest.mark.parametrize("stride", [(5, 8, 8), (4, 9, 8), (4, 8, 100), (0, 8, 8), (4, 0, 8), (4, 8, -1)])
def test_a_stride_that_leaves_gaps_or_does_not_advance_is_refused(stride: Triple) -> None:
    with pytest.raises(GeometryError, match="stride"):
        predict_affinities(ArraySource(noise((8, 16, 16))), StepRunner((4, 8, 8)), stride=stride)


@pytest.mark.parametrize(
    "box",
    [
        Box((0, 0, 0), (9, 16, 16)),
        Box((-1, 0, 0), (8, 16, 16)),
        Box((20, 20, 20), (30, 30, 30)),
        Box((2, 2, 2), (2, 4, 4)),
        Box((50, 50, 50), (50, 50, 50)),
    ],
    ids=str,
)
def test_a_region_outside_the_volume_or_without_voxels_is_refused(box: Box) -> None:
    with pytest.raises(GeometryError, match="is empty or reaches outside"):
        predict_affinities(ArraySource(noise((8, 16, 16))), StepRunner((4, 8, 8)), box=box)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 7.0])
@pytest.mark.parametrize("batch", [1, 4])
def test_affinities_that_are_not_finite_or_far_from_probabilities_are_refused(value: float, batch: int) -> None:
    runner = BrokenRunner((4, 8, 8), batch)
    runner.value = np.float32(value)
    with pytest.raises(DecodingError, match=r"NaN or lie outside of \[0, 1\]"):
        predict_affinities(ArraySource(noise((8, 16, 16))), runner, blending="constant")


@pytest.fixture
def damaged(tmp_path: Path) -> Iterator[FileSource]:
    """A Zarr of noise whose last chunk was cut short, as an interrupted copy leaves it."""
    store = tmp_path / "v.zarr"
    array = zarr.create_array(str(store), shape=(8, 16, 16), chunks=(4, 8, 8), dtype="u1", zarr_format=2)
    array[:] = noise((8, 16, 16))
    chunk = store / "1.1.1"
    chunk.write_bytes(chunk.read_bytes()[:100])
    with open_volume(store) as volume:
        yield FileSource(volume)


def test_a_chunk_that_cannot_be_read_ahead_ends_the_run_with_its_error(damaged: FileSource) -> None:
    runner = StepRunner((4, 8, 8))
    with pytest.raises(VolumeError, match="cannot be read") as caught:
        predict_affinities(damaged, runner)
    assert "v.zarr" in str(caught.value)
    assert runner.calls > 0


def test_a_region_away_from_a_damaged_chunk_is_predicted(damaged: FileSource) -> None:
    box = Box((0, 0, 0), (2, 8, 8))
    assert predict_affinities(damaged, StepRunner((4, 8, 8)), box=box).any()


def test_a_runner_that_fails_ends_the_run_with_its_error() -> None:
    class Failing(StepRunner):
        def run(self, patches: npt.NDArray[np.uint8]) -> Affinities:
            raise FGNetError("the device went away")

    with pytest.raises(FGNetError, match="the device went away"):
        predict_affinities(ArraySource(noise((8, 16, 16))), Failing((4, 8, 8)))
