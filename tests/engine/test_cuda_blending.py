"""Blending on a GPU, or by the same source on the CPU: bit for bit what `postproc.blending` computes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fgnet.engine.cuda_blending import blending_source
from fgnet.engine.cuda_compiler import compile_kernels
from fgnet.engine.cuda_device import CudaDevice
from fgnet.engine.cuda_memory import open_cuda
from fgnet.engine.device import Buffer, Stream
from fgnet.postproc.blending import WeightTotals, add_patch, finish_chunk, make_weights
from fgnet.volumes.errors import BackendError
from fgnet.volumes.geometry import Box, Triple
from fgnet.volumes.grid import PatchGrid


@pytest.fixture(scope="module", params=["host", pytest.param("gpu", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest, host_memory: Any) -> Iterator[CudaDevice]:
    if request.param == "host":
        opened = CudaDevice(host_memory(1 << 28))
    else:
        try:
            opened = CudaDevice(open_cuda())
        except BackendError as error:
            pytest.skip(f"needs an NVIDIA GPU: {error.what}")
    yield opened
    opened.close()


@dataclass(frozen=True)
class Case:
    """A grid of patches, and a chunk of its padded volume."""

    grid: PatchGrid
    box: Box
    kind: Any
    seed: int


@st.composite
def cases(draw: st.DrawFn) -> Case:
    patch = draw(st.tuples(st.integers(1, 5), st.integers(1, 20), st.integers(1, 70)))
    stride = draw(st.tuples(*(st.integers(max(1, size // 3), size) for size in patch)))
    volume = draw(st.tuples(*(st.integers(1, 2 * size + 1) for size in patch)))
    grid = PatchGrid(volume, patch, stride)
    bounds = [sorted(draw(st.lists(st.integers(0, n), min_size=2, max_size=2, unique=True))) for n in grid.padded]
    box = Box(tuple(low for low, _ in bounds), tuple(high for _, high in bounds))  # type: ignore[arg-type]
    return Case(grid, box, draw(st.sampled_from(["gaussian", "bump", "constant"])), draw(st.integers(0, 999)))


def brought(device: CudaDevice, array: npt.NDArray[Any], stream: Stream) -> Buffer:
    """A buffer of the device with the values of an array."""
    staging, buffer = device.staging((array.nbytes,)), device.empty(array.shape, array.dtype)
    staging[:] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    device.upload(buffer, staging, stream)
    finish(device, stream)
    return buffer


def fetched(device: CudaDevice, buffer: Buffer, stream: Stream) -> npt.NDArray[Any]:
    staging = device.staging((buffer.nbytes,))
    device.download(staging, buffer, stream)
    finish(device, stream)
    return staging.view(buffer.dtype).reshape(buffer.shape)


def finish(device: CudaDevice, stream: Stream) -> None:
    event = device.event()
    device.record(event, stream)
    device.synchronise(event)


@given(cases())
@example(Case(PatchGrid((40, 100, 200), (16, 64, 96), (8, 32, 48)), Box((3, 5, 7), (35, 90, 190)), "gaussian", 1))
@settings(deadline=None, max_examples=60)
def test_chunks_are_blended_to_the_same_bits_as_on_the_cpu(device: CudaDevice, case: Case) -> None:
    grid, box, random = case.grid, case.box, np.random.default_rng(case.seed)
    weights = make_weights(case.kind, grid.patch)
    totals = WeightTotals.of(weights, grid)
    blender, stream = device.blender(weights, totals), device.stream("blend")
    # Memory is that of the largest chunk, which this one need not be.
    spare = 5
    size = 3 * box.size + spare
    sums, target = device.empty((size,), np.float32), brought(device, np.full(size, 7, np.uint8), stream)
    expected = np.zeros((3, *box.shape), np.float32)
    for patch in grid:
        affinities = random.integers(0, 256, (3, *grid.patch), dtype=np.uint8)
        add_patch(expected, box, affinities, patch.start, weights)
        blender.accumulate(sums, box, brought(device, affinities, stream), patch.start, stream)
    found = fetched(device, sums, stream)
    np.testing.assert_array_equal(found[:-spare].view(np.uint32), expected.reshape(-1).view(np.uint32))
    finished = finish_chunk(expected, box, totals)
    blender.normalise(sums, box, target, stream)
    blended = fetched(device, target, stream)
    np.testing.assert_array_equal(blended[:-spare].reshape(finished.shape), finished)
    np.testing.assert_array_equal(blended[-spare:], 7)
    assert not fetched(device, sums, stream).any()


@given(
    st.lists(st.floats(0, 300, width=32) | st.sampled_from([0.5, 1.5, 254.5, 255.0, 255.4]), min_size=3, max_size=3),
    st.sampled_from([(1, 1, 1), (2, 3, 4)]),
)
@settings(deadline=None, max_examples=60)
def test_halves_are_rounded_up_and_what_is_too_large_is_255(
    device: CudaDevice, values: list[float], shape: Triple
) -> None:
    weights, box = make_weights("constant", shape), Box.from_shape(shape)
    totals = WeightTotals.of(weights, PatchGrid(shape, shape, shape))
    stream = device.stream("blend")
    sums = np.broadcast_to(np.array(values, np.float32)[:, None, None, None], (3, *shape))
    target = device.empty((3, *shape))
    device.blender(weights, totals).normalise(brought(device, sums, stream), box, target, stream)
    expected = np.floor(np.minimum(sums, np.float32(255)) + np.float32(0.5)).astype(np.uint8)
    np.testing.assert_array_equal(fetched(device, target, stream), expected)


def test_what_is_not_a_number_becomes_0(device: CudaDevice) -> None:
    weights = make_weights("constant", (1, 1, 1))
    totals = WeightTotals.of(weights, PatchGrid((1, 1, 1), (1, 1, 1), (1, 1, 1)))
    stream = device.stream("blend")
    sums = brought(device, np.array([np.nan, -3, np.inf], np.float32), stream)
    target = device.empty((3, 1, 1, 1))
    device.blender(weights, totals).normalise(sums, Box.from_shape((1, 1, 1)), target, stream)
    assert fetched(device, target, stream).ravel().tolist() == [0, 0, 255]


def test_patches_beside_the_chunk_and_empty_chunks_change_nothing(device: CudaDevice) -> None:
    weights = make_weights("bump", (2, 4, 4))
    blender = device.blender(weights, WeightTotals.of(weights, PatchGrid((4, 8, 8), (2, 4, 4), (1, 2, 2))))
    stream = device.stream("blend")
    sums, patch = device.empty((3, 2, 4, 4), np.float32), brought(device, np.full((3, 2, 4, 4), 9, np.uint8), stream)
    for start in ((2, 0, 0), (0, 4, 0), (-2, 0, 0), (0, 0, -4)):
        blender.accumulate(sums, Box.from_shape((2, 4, 4)), patch, start, stream)
    blender.normalise(sums, Box((1, 1, 1), (1, 3, 3)), patch, stream)
    assert not fetched(device, sums, stream).any()
    assert (fetched(device, patch, stream) == 9).all()


def test_blending_and_normalising_are_timed(device: CudaDevice) -> None:
    weights = make_weights("gaussian", (4, 64, 64))
    grid = PatchGrid((4, 64, 64), (4, 64, 64), (4, 64, 64))
    blender, stream = device.blender(weights, WeightTotals.of(weights, grid)), device.stream("blend")
    sums, patch = device.empty((3, 4, 64, 64), np.float32), device.empty((3, 4, 64, 64))
    before = device.busy()
    blender.accumulate(sums, Box.from_shape((4, 64, 64)), patch, (0, 0, 0), stream)
    blender.normalise(sums, Box.from_shape((4, 64, 64)), patch, stream)
    finish(device, stream)
    after = device.busy()
    assert after["blend"] > before["blend"]
    assert after["normalise"] > before["normalise"]


@pytest.mark.parametrize("capability", [(8, 0), (9, 0), (12, 0)])
def test_the_kernels_are_compiled_for_every_kind_of_gpu(capability: tuple[int, int]) -> None:
    code = _compile(blending_source(), capability)
    assert code[:4] == b"\x7fELF"
    assert all(name in code for name in (b"accumulate", b"normalise"))


def test_what_does_not_compile_is_an_error_with_its_first_line() -> None:
    _compile(blending_source(), (9, 0))
    with pytest.raises(BackendError, match=r"no kernels for sm_90 \(kernels\.cu\(1\): error: .*nonsense.*"):
        compile_kernels("nonsense nonsense;", (9, 0))


def test_a_gpu_that_the_compiler_does_not_know_is_an_error_with_what_to_install() -> None:
    _compile(blending_source(), (9, 0))
    with pytest.raises(BackendError, match=r"no kernels for sm_987 .*--upgrade cuda-bindings nvidia-cuda-nvrtc"):
        compile_kernels(blending_source(), (98, 7))


def test_without_the_compiler_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    nvrtc = pytest.importorskip("cuda.bindings.nvrtc", reason="cuda-bindings is missing")

    def missing(*_: object) -> None:
        raise RuntimeError("there is no libnvrtc")

    monkeypatch.setattr(nvrtc, "nvrtcCreateProgram", missing)
    with pytest.raises(BackendError, match=r"NVRTC.* is not installed .*fgnet\[gpu\]"):
        compile_kernels(blending_source(), (9, 0))


def _compile(source: str, capability: tuple[int, int]) -> bytes:
    """Machine code; skips the test where there is no compiler for it."""
    pytest.importorskip("cuda.bindings.nvrtc", reason="cuda-bindings is missing")
    try:
        return compile_kernels(source, capability)
    except BackendError as error:
        if "not installed" in error.what:
            pytest.skip("nvidia-cuda-nvrtc is missing")
        raise
