"""The CUDA calls: without a GPU an error that says so; with one, what is copied, recorded and refused."""

from __future__ import annotations

import re
from collections.abc import Iterator
from ctypes import c_float, c_int32, c_int64, c_uint64
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from fgnet.engine import cuda_bindings_memory
from fgnet.engine.cuda_memory import Cuda, DeviceMemoryError, architecture_of, open_cuda
from fgnet.volumes.errors import BackendError


@pytest.fixture
def cuda() -> Iterator[Cuda]:
    """The GPU; skips the test, saying so, where there is none."""
    try:
        device = open_cuda()
    except BackendError as error:
        pytest.skip(f"needs an NVIDIA GPU: {error.what}")
    yield device
    device.close()


def test_without_gpu_or_package_the_error_says_what_is_missing() -> None:
    if Path("/dev/nvidiactl").exists():
        pytest.skip("there is an NVIDIA GPU")
    with pytest.raises(BackendError, match=r"no NVIDIA GPU|neither pycuda nor cuda-bindings") as caught:
        open_cuda()
    assert re.search(r"NVIDIA GPU and its driver|fgnet\[gpu\]", str(caught.value.remedy))


@pytest.mark.skipif(find_spec("cuda") is None or find_spec("cuda.bindings") is None, reason="cuda-bindings is missing")
def test_every_name_that_is_used_exists_in_cuda_bindings() -> None:
    runtime, driver = import_module("cuda.bindings.runtime"), import_module("cuda.bindings.driver")
    text = Path(cuda_bindings_memory.__file__).read_text()
    names = set(re.findall(r"\bcu(?:da)?[A-Z]\w+", text))
    places = (
        runtime,
        driver,
        runtime.cudaMemcpyKind,
        runtime.cudaStreamCaptureMode,
        runtime.cudaDeviceAttr,
        runtime.cudaError_t,
    )
    assert len(names) > 20
    assert [name for name in sorted(names) if not any(hasattr(place, name) for place in places)] == []


def test_architectures_are_named_as_the_libraries_name_them() -> None:
    assert [architecture_of(capability) for capability in ((8, 9), (12, 0))] == ["sm89", "sm120"]


@pytest.mark.gpu
def test_what_is_uploaded_comes_back(cuda: Cuda) -> None:
    with cuda.current():
        stream = cuda.stream()
        there, back = cuda.pinned((4, 1024)), cuda.pinned((4, 1024))
        there[:] = np.random.default_rng(0).integers(0, 256, there.shape, dtype=np.uint8)
        first, second = cuda.allocate(there.nbytes), cuda.allocate(there.nbytes)
        assert first % 256 == second % 256 == 0
        cuda.upload(first, there, stream)
        cuda.copy(second, first, there.nbytes, stream)
        cuda.download(back, second, stream)
        cuda.synchronise(stream)
        np.testing.assert_array_equal(back, there)
        cuda.release(first)


@pytest.mark.gpu
def test_a_recorded_copy_runs_again_on_what_is_there_then(cuda: Cuda) -> None:
    with cuda.current():
        stream = cuda.stream()
        there, back = cuda.pinned((256,)), cuda.pinned((256,))
        address = cuda.allocate(256)
        back[:] = 0
        cuda.begin_capture(stream)
        cuda.upload(address, there, stream)
        cuda.download(back, address, stream)
        graph = cuda.end_capture(stream)
        assert not back.any()
        for value in (1, 2):
            there[:] = value
            cuda.replay(graph, stream)
            cuda.synchronise(stream)
            assert (back == value).all()
        cuda.release_graph(graph)


@pytest.mark.gpu
def test_memory_is_cleared_and_events_tell_how_long_it_took(cuda: Cuda) -> None:
    with cuda.current():
        stream, other, back = cuda.stream(), cuda.stream(), cuda.pinned((1 << 20,))
        address = cuda.allocate(back.size)
        before, after, plain = cuda.event(timing=True), cuda.event(timing=True), cuda.event()
        cuda.synchronise_event(plain)
        back[:] = 1
        cuda.upload(address, back, stream)
        cuda.record_event(before, stream)
        cuda.clear(address, back.size, stream)
        cuda.record_event(after, stream)
        cuda.record_event(plain, stream)
        cuda.wait_event(other, plain)
        cuda.download(back, address, other)
        cuda.synchronise(other)
        assert not back.any()
        milliseconds = cuda.elapsed(before, after)
        assert milliseconds is not None
        assert 0 < milliseconds < 1000
        cuda.release_event(plain)


@pytest.mark.gpu
def test_events_that_have_not_happened_have_no_time(cuda: Cuda) -> None:
    with cuda.current():
        stream = cuda.stream()
        size = min(cuda.free_bytes() // 4, 1 << 32)
        address = cuda.allocate(size)
        before, after = cuda.event(timing=True), cuda.event(timing=True)
        cuda.record_event(before, stream)
        for _ in range(200):
            cuda.clear(address, size, stream)
        cuda.record_event(after, stream)
        assert cuda.elapsed(before, after) is None
        cuda.synchronise_event(after)
        assert (cuda.elapsed(before, after) or 0) > 0


@pytest.mark.gpu
def test_a_kernel_gets_its_arguments(cuda: Cuda) -> None:
    source = """
    extern "C" __global__ void fill(unsigned char *out, int step, float scale, long long at, int columns)
    {
        const int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y;
        if (x < columns)
            out[at + y * columns + x] = (unsigned char)(x * step * scale) + 10 * y;
    }"""
    with cuda.current():
        stream, back = cuda.stream(), cuda.pinned((2, 20))
        address = cuda.allocate(64)
        (fill,) = cuda.kernels(source, ["fill"])
        arguments = (c_uint64(address), c_int32(3), c_float(0.5), c_int64(4), c_int32(20))
        cuda.launch(fill, (2, 2, 1), (16, 1, 1), arguments, stream)
        cuda.download(back, address + 4, stream)
        cuda.synchronise(stream)
        expected = (np.arange(20) * 1.5).astype(np.uint8) + 10 * np.arange(2, dtype=np.uint8)[:, None]
        np.testing.assert_array_equal(back, expected)
        with pytest.raises(BackendError, match="kernels"):
            cuda.kernels("nonsense", [])


@pytest.mark.gpu
def test_more_memory_than_there_is_is_refused_with_figures(cuda: Cuda) -> None:
    with cuda.current():
        free = cuda.free_bytes()
        with pytest.raises(DeviceMemoryError, match=r"MiB free, .* MiB more are needed"):
            cuda.allocate(free * 2)
        cuda.release(cuda.allocate(256))


@pytest.mark.gpu
def test_the_device_tells_what_it_is(cuda: Cuda) -> None:
    assert cuda.device
    assert cuda.capability >= (5, 0)
