"""Blended inference against the definition: every patch of the padded volume in memory, weighed in float64."""

from __future__ import annotations

import itertools
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

from fgnet.engine.inference import ArraySource, predict_affinities
from fgnet.postproc.blending import WeightKind
from fgnet.volumes.errors import FGNetError, GeometryError, VolumeError
from fgnet.volumes.geometry import Box, Triple
from fgnet.volumes.reading import open_volume, read_gray

KINDS: list[WeightKind] = ["gaussian", "bump", "constant"]
Definition = Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.uint8]]


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


def reference(
    gray: npt.NDArray[np.uint8], definition: Definition, patch: Triple, stride: Triple, kind: str
) -> npt.NDArray[np.float64]:
    """Affinities (3, z, y, x) in [0, 1] of a whole volume, `definition` being those of one block."""
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
        # Where there is but one gray value there is no tissue.
        if padded[at].min() < padded[at].max():
            sums[(slice(None), *at)] += weights * (definition(padded[at]).astype(np.float64) / 255)
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
        "runner": (patch, draw(st.integers(0, patch[0])), draw(st.integers(1, 4 * patch[0]))),
        "stride": stride,
        "kind": draw(st.sampled_from(KINDS)),
        "roi": Box(first, stop),
    }


@settings(deadline=None, max_examples=60)
@given(case=cases())
def test_a_region_is_that_of_the_definition_at_any_shape_stride_blending_and_number_of_slots(
    slot_runner: Any, case: dict[str, Any]
) -> None:
    gray, stride, kind, roi = (case[key] for key in ("gray", "stride", "kind", "roi"))
    runner = slot_runner(*case["runner"])
    expected = reference(gray, runner.alone, runner.patch, stride, kind)
    options = {"stride": stride, "blending": kind}
    whole = predict_affinities(ArraySource(gray), runner, **options)
    assert_equal_to_rounding(whole, expected)
    part = predict_affinities(ArraySource(gray), runner, box=roi, **options)
    np.testing.assert_array_equal(part, whole[(slice(None), *roi.slices)])


@settings(deadline=None, max_examples=60)
@given(case=cases())
def test_progress_adds_up_to_the_voxels_of_the_region(slot_runner: Any, case: dict[str, Any]) -> None:
    told: list[int] = []
    runner = slot_runner(*case["runner"])
    predict_affinities(ArraySource(case["gray"]), runner, stride=case["stride"], box=case["roi"], progress=told.append)
    assert sum(told) == case["roi"].size
    assert min(told) >= 0


@dataclass(frozen=True, eq=False)
class FileSource:
    """A volume on disk, read patch by patch."""

    volume: Any

    @property
    def shape(self) -> Triple:
        z, y, x = self.volume.shape
        return z, y, x

    @property
    def chunk_depth(self) -> int | None:
        return None if self.volume.chunks is None else int(self.volume.chunks[0])

    def gray(self, box: Box) -> npt.NDArray[np.uint8]:
        return read_gray(self.volume, box)


def test_real_tissue_read_from_its_file_gives_what_it_gives_from_memory(
    slot_runner: Any, shared_data: Callable[[str], Path]
) -> None:
    address = f"{shared_data('gala_fib_train.h5')}:raw"
    with h5py.File(shared_data("gala_fib_train.h5")) as file:
        gray = file["raw"][:]
    runner = slot_runner((8, 32, 48), 3)
    with open_volume(address) as volume:
        found = predict_affinities(FileSource(volume), runner)
    assert_equal_to_rounding(found, reference(gray, runner.alone, (8, 32, 48), (4, 16, 24), "gaussian"))


def test_a_region_is_predicted_without_the_patches_that_do_not_reach_it(slot_runner: Any) -> None:
    runner = slot_runner((4, 8, 8), 2)
    predict_affinities(ArraySource(noise((40, 40, 40))), runner, box=Box((8, 8, 8), (10, 10, 10)))
    assert runner.decoded == 8
    # Each of four columns encodes sections 6 to 12.
    assert len(runner.encoded) * 2 == 4 * 6


def test_no_voxel_outside_the_patches_of_a_region_is_read(slot_runner: Any) -> None:
    class Nearby(ArraySource):
        def gray(self, box: Box) -> npt.NDArray[np.uint8]:
            assert Box((6, 4, 4), (12, 16, 16)).contains(box), box
            return super().gray(box)

    predict_affinities(Nearby(noise((40, 40, 40))), slot_runner((4, 8, 8), 2), box=Box((8, 8, 8), (10, 12, 12)))


@pytest.mark.parametrize("stride", [(5, 8, 8), (4, 9, 8), (4, 8, 100), (0, 8, 8), (4, 0, 8), (4, 8, -1)])
def test_a_stride_that_leaves_gaps_or_does_not_advance_is_refused(slot_runner: Any, stride: Triple) -> None:
    with pytest.raises(GeometryError, match="stride"):
        predict_affinities(ArraySource(noise((8, 16, 16))), slot_runner((4, 8, 8)), stride=stride)


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
def test_a_region_outside_the_volume_or_without_voxels_is_refused(slot_runner: Any, box: Box) -> None:
    with pytest.raises(GeometryError, match="is empty or reaches outside"):
        predict_affinities(ArraySource(noise((8, 16, 16))), slot_runner((4, 8, 8)), box=box)


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


def test_a_chunk_that_cannot_be_read_ahead_ends_the_run_with_its_error(slot_runner: Any, damaged: FileSource) -> None:
    runner = slot_runner((4, 8, 8))
    with pytest.raises(VolumeError, match="cannot be read") as caught:
        predict_affinities(damaged, runner)
    assert "v.zarr" in str(caught.value)


def test_a_region_away_from_a_damaged_chunk_is_predicted(slot_runner: Any, damaged: FileSource) -> None:
    box = Box((0, 0, 0), (2, 8, 8))
    assert predict_affinities(damaged, slot_runner((4, 8, 8)), box=box).any()


def test_a_runner_that_fails_ends_the_run_with_its_error(slot_runner: Any) -> None:
    class Failing(slot_runner):  # type: ignore[misc]
        def decode(self, slot: int, affinities: Any) -> None:
            raise FGNetError("the device went away")

    with pytest.raises(FGNetError, match="the device went away"):
        predict_affinities(ArraySource(noise((8, 16, 16))), Failing((4, 8, 8)))
