"""Encoder and decoder with features reused, blended, against the plain network patch by patch in eager PyTorch."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from fgnet.engine.backends import Choice, open_runner
from fgnet.engine.bundle import Bundle, load_bundle
from fgnet.engine.inference import ArraySource, predict_affinities
from fgnet.engine.runner import Runner
from fgnet.engine.torch_runner import TorchRunner
from fgnet.postproc.blending import WeightKind
from fgnet.volumes.geometry import Box, Triple
from fgnet.volumes.reading import open_volume, read_gray

pytestmark = pytest.mark.usefixtures("one_torch_thread")

PATCH = (4, 64, 64)
Build = Callable[[Bundle], Any]
Infer = Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]]


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return load_bundle(tiny_bundle)


@pytest.fixture(scope="module")
def infer(bundle: Bundle, build: Build) -> Infer:
    """The whole network on one block in eager PyTorch; the same block is computed once."""
    eager = TorchRunner(build(bundle), PATCH, device="cpu")

    @cache
    def computed(block: bytes) -> npt.NDArray[np.float32]:
        return eager.run(np.frombuffer(block, np.uint8).reshape(PATCH).copy())

    return lambda block: computed(block.tobytes())


@pytest.fixture(scope="module")
def opened(bundle: Bundle, build: Build) -> Callable[[str], Runner]:
    """Runners in fp32 by name."""
    choices: Any = ("onnxruntime", "openvino", "torch")
    assert bundle.manifest.patch == PATCH

    @cache
    def opened(backend: str) -> Runner:
        assert backend in choices
        return open_runner(Choice(backend, "fp32", "cpu", ""), bundle, build, threads=1)  # type: ignore[arg-type]

    return opened


@pytest.fixture(scope="module")
def tissue(shared_data: Callable[[str], Path]) -> npt.NDArray[np.uint8]:
    """(9, 96, 90) voxels of real tissue from the middle of a volume."""
    with open_volume(f"{shared_data('fib25_t2.h5')}:raw") as volume:
        return read_gray(volume, Box((100, 60, 40), (109, 156, 130)))


def weights(kind: str, size: int) -> npt.NDArray[np.float64]:
    return np.ones(size) if kind == "constant" else np.exp(-(np.linspace(-1, 1, size) ** 2) / (2 * 0.2**2))


def blended(gray: npt.NDArray[np.uint8], infer: Infer, stride: Triple, kind: str) -> npt.NDArray[np.float64]:
    """Affinities (3, z, y, x) of a whole volume, times 255."""
    missing = [(0, max(side - extent, 0)) for side, extent in zip(PATCH, gray.shape, strict=True)]
    padded = np.pad(gray, missing, mode="reflect")
    z, y, x = (weights(kind, side) for side in PATCH)
    weight = z[:, None, None] * y[:, None] * x + (0 if kind == "constant" else 1e-4)
    sums, total = np.zeros((3, *padded.shape)), np.zeros(padded.shape)
    ends = [extent - side for extent, side in zip(padded.shape, PATCH, strict=True)]
    for corner in itertools.product(*((*range(0, end, step), end) for end, step in zip(ends, stride, strict=True))):
        at = tuple(slice(first, first + side) for first, side in zip(corner, PATCH, strict=True))
        sums[(slice(None), *at)] += weight * infer(padded[at])
        total[at] += weight
    result: npt.NDArray[np.float64] = 255 * (sums / total)[(slice(None), *(slice(0, n) for n in gray.shape))]
    return result


def assert_a_level_apart_at_most(found: npt.NDArray[np.uint8], expected: npt.NDArray[np.float64]) -> None:
    assert (found.shape, found.dtype) == (expected.shape, np.uint8)
    # A block's affinities are rounded and their blend is, each by half a level at most.
    assert np.abs(found - expected).max() <= 1.02
    assert np.abs(found - expected).mean() <= 0.4
    assert np.ptp(found) > 100


STRIDES: list[tuple[Triple, WeightKind]] = [
    ((2, 32, 32), "gaussian"),
    ((1, 32, 64), "gaussian"),
    ((3, 50, 41), "constant"),
    ((4, 64, 64), "gaussian"),
]


@pytest.mark.parametrize(("stride", "kind"), STRIDES, ids=str)
def test_reused_features_give_the_plain_networks_affinities_at_any_stride(
    opened: Callable[[str], Runner], infer: Infer, tissue: npt.NDArray[np.uint8], stride: Triple, kind: WeightKind
) -> None:
    expected = blended(tissue, infer, stride, kind)
    found = predict_affinities(ArraySource(tissue), opened("onnxruntime"), stride=stride, blending=kind)
    assert_a_level_apart_at_most(found, expected)


@pytest.mark.parametrize("shape", [(3, 70, 64), (5, 40, 70), (6, 64, 33), (2, 40, 50), (4, 64, 64)], ids=str)
def test_volumes_smaller_than_a_patch_are_mirrored_as_the_plain_network_would_see_them(
    opened: Callable[[str], Runner], infer: Infer, tissue: npt.NDArray[np.uint8], shape: Triple
) -> None:
    z, y, x = shape
    gray = tissue[:z, :y, :x]
    found = predict_affinities(ArraySource(gray), opened("onnxruntime"))
    assert_a_level_apart_at_most(found, blended(gray, infer, (2, 32, 32), "gaussian"))


@pytest.mark.parametrize("backend", ["openvino", "torch"])
def test_other_backends_give_the_plain_networks_affinities_too(
    opened: Callable[[str], Runner], infer: Infer, tissue: npt.NDArray[np.uint8], backend: str
) -> None:
    gray = tissue[:, :70, :64]
    found = predict_affinities(ArraySource(gray), opened(backend), stride=(1, 32, 32))
    assert_a_level_apart_at_most(found, blended(gray, infer, (1, 32, 32), "gaussian"))


@pytest.mark.parametrize("box", [Box((3, 10, 20), (6, 30, 90)), Box((8, 0, 0), (9, 96, 1))], ids=str)
def test_a_region_is_the_same_part_of_the_whole_to_the_bit(
    opened: Callable[[str], Runner], tissue: npt.NDArray[np.uint8], box: Box
) -> None:
    source = ArraySource(tissue)
    part, whole = (predict_affinities(source, opened("onnxruntime"), box=region) for region in (box, None))
    np.testing.assert_array_equal(part, whole[(slice(None), *box.slices)])
