"""For tests of what runs on GPUs: two small ONNX graphs of any precision, memory that stands for a GPU's; the host."""

from __future__ import annotations

import ctypes
import itertools
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from fgnet.engine.cuda_memory import Argument, not_enough, packed
from fgnet.engine.host_device import HostDevice
from fgnet.volumes.errors import BackendError
from fgnet.volumes.geometry import Triple

PATCH = (4, 64, 64)
SECTIONS = 2
CHANNELS = 8

MakeGraphs = Callable[..., tuple[Path, Path]]


@pytest.fixture(scope="session")
def make_graphs(tmp_path_factory: pytest.TempPathFactory) -> MakeGraphs:
    """(precision, product=precision) -> encoder.onnx and decoder.onnx for patches of 4 x 64 x 64, two sections a call.

    `product` is what the encoder's matrix product computes in.
    """
    onnx = pytest.importorskip("onnx", reason="graphs are made with the extra fgnet[train]")
    helper, types = onnx.helper, onnx.TensorProto
    elements = {"fp32": types.FLOAT, "fp16": types.FLOAT16, "bf16": types.BFLOAT16}
    random = np.random.default_rng(0)

    def weight(name: str, shape: tuple[int, ...], element: int) -> Any:
        values = random.normal(size=shape).astype(np.float32) / np.sqrt(np.prod(shape[1:]))
        return helper.make_tensor(name, element, shape, values.ravel())

    def save(path: Path, nodes: list[Any], inputs: list[Any], outputs: list[Any], constants: list[Any]) -> Path:
        graph = helper.make_graph(nodes, path.stem, inputs, outputs, constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, path)
        return path

    def encoder(path: Path, element: int, product: int) -> Path:
        node = helper.make_node
        nodes = [
            node("Cast", ["gray"], ["wide"], "widen", to=types.FLOAT),
            node("Div", ["wide", "scale"], ["scaled"], "divide"),
            node("Cast", ["scaled"], ["narrow"], "narrow", to=element),
            node("Unsqueeze", ["narrow", "one"], ["image"], "add_channel"),
            node("Conv", ["image", "kernel"], ["maps"], "embed", strides=[4, 4], kernel_shape=[4, 4]),
            node("Transpose", ["maps"], ["tokens"], "to_tokens", perm=[0, 2, 3, 1]),
            node("Cast", ["tokens"], ["cast_tokens"], "cast_in", to=product),
            node("MatMul", ["cast_tokens", "matrix"], ["mixed"], "mix"),
            node("Cast", ["mixed"], ["cast_mixed"], "cast_out", to=element),
            node("Transpose", ["cast_mixed"], ["features_1"], "to_maps", perm=[0, 3, 1, 2]),
        ]
        constants = [
            helper.make_tensor("scale", types.FLOAT, (), [255.0]),
            helper.make_tensor("one", types.INT64, (1,), [1]),
            weight("kernel", (CHANNELS, 1, 4, 4), element),
            weight("matrix", (CHANNELS, CHANNELS), product),
        ]
        gray = helper.make_tensor_value_info("gray", types.UINT8, (SECTIONS, *PATCH[1:]))
        features = helper.make_tensor_value_info("features_1", element, (SECTIONS, CHANNELS, 16, 16))
        return save(path, nodes, [gray], [features], constants)

    def decoder(path: Path, element: int) -> Path:
        node = helper.make_node
        nodes = [
            node("Cast", ["gray"], ["wide"], "widen", to=types.FLOAT),
            node("Div", ["wide", "scale"], ["scaled"], "divide"),
            node("Unsqueeze", ["scaled", "one"], ["image"], "add_channel"),
            node("Conv", ["features_1", "kernel"], ["maps"], "project", kernel_shape=[1, 1]),
            node("Cast", ["maps"], ["wide_maps"], "widen_maps", to=types.FLOAT),
            node("DepthToSpace", ["wide_maps"], ["planes"], "spread", blocksize=4),
            node("Add", ["planes", "image"], ["logits"], "add"),
            node("Sigmoid", ["logits"], ["chances"], "sigmoid"),
            node("Mul", ["chances", "scale"], ["grades"], "multiply"),
            node("Round", ["grades"], ["rounded"], "round"),
            node("Transpose", ["rounded"], ["channels_first"], "transpose", perm=[1, 0, 2, 3]),
            node("Cast", ["channels_first"], ["affinities"], "to_bytes", to=types.UINT8),
        ]
        constants = [
            helper.make_tensor("scale", types.FLOAT, (), [255.0]),
            helper.make_tensor("one", types.INT64, (1,), [1]),
            weight("kernel", (48, CHANNELS, 1, 1), element),
        ]
        gray = helper.make_tensor_value_info("gray", types.UINT8, PATCH)
        features = helper.make_tensor_value_info("features_1", element, (PATCH[0], CHANNELS, 16, 16))
        affinities = helper.make_tensor_value_info("affinities", types.UINT8, (3, *PATCH))
        return save(path, nodes, [gray, features], [affinities], constants)

    def make(precision: str, product: str | None = None) -> tuple[Path, Path]:
        folder = tmp_path_factory.mktemp(precision)
        element, inner = elements[precision], elements[product or precision]
        return encoder(folder / "encoder.onnx", element, inner), decoder(folder / "decoder.onnx", element)

    return make


@cache
def kernels_on_host(source: str) -> Any:
    """CUDA C as a library for the CPU; skips the test where there is no C++ compiler."""
    compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    if compiler is None:
        pytest.skip("a C++ compiler is needed to run CUDA kernels on the CPU")
    with tempfile.TemporaryDirectory() as folder:
        file, library = Path(folder, "kernels.cu"), Path(folder, "kernels.so")
        file.write_text(source)
        options = ["-std=c++17", "-O1", "-ffp-contract=off", "-shared", "-fPIC", f'-DKERNELS="{file}"']
        shim = Path(__file__).parent / "cuda_on_host.cpp"
        subprocess.run([compiler, *options, str(shim), "-o", str(library)], check=True)
        return ctypes.CDLL(str(library))


class HostMemory:
    """What the engine asks of CUDA, done in host memory, at once, or when a recording of it is replayed.

    Every piece of work takes a millisecond of its own clock. Memory is full of nonsense until something is written.

    Args:
        size: bytes that can be allocated.

    Attributes:
        late: events that are recorded while this is set have not happened until `catch_up` is called.
        broken: waiting and closing fail.
    """

    name = "host"
    device = "a device of the tests"
    capability = (8, 9)

    def __init__(self, size: int) -> None:
        self.size = size
        self.held: dict[int, Any] = {}
        self.recording: list[Callable[[], object]] | None = None
        self.records = True
        self.replayed = 0
        self.handles = itertools.count(7)
        self.milliseconds = 0
        self.late = False
        self.events: dict[int, int | None] = {}
        self.unhappened: set[int] = set()
        self.waits: list[tuple[int, int]] = []
        self.synchronised = 0
        self.closed = 0
        self.broken = False

    def queue(self, work: Callable[[], object]) -> None:
        if self.recording is None:
            self.milliseconds += 1
            work()
        else:
            self.recording.append(work)

    def current(self) -> AbstractContextManager[None]:
        return nullcontext()

    def free_bytes(self) -> int:
        return self.size - sum(len(buffer) for buffer in self.held.values())

    def allocate(self, size: int) -> int:
        if size > self.free_bytes():
            raise not_enough(size, self.free_bytes())
        buffer = (ctypes.c_uint8 * size)()
        ctypes.memset(buffer, 0xA5, size)
        self.held[ctypes.addressof(buffer)] = buffer
        return ctypes.addressof(buffer)

    def release(self, address: int) -> None:
        del self.held[address]

    def pinned(self, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
        return np.zeros(shape, np.uint8)

    def stream(self) -> int:
        return next(self.handles)

    def upload(self, target: int, source: npt.NDArray[np.uint8], stream: int) -> None:
        self.queue(lambda: ctypes.memmove(target, source.ctypes.data, source.nbytes))

    def download(self, target: npt.NDArray[np.uint8], source: int, stream: int) -> None:
        self.queue(lambda: ctypes.memmove(target.ctypes.data, source, target.nbytes))

    def copy(self, target: int, source: int, size: int, stream: int) -> None:
        assert abs(target - source) >= size, "copies within device memory must not overlap"
        self.queue(lambda: ctypes.memmove(target, source, size))

    def clear(self, address: int, size: int, stream: int) -> None:
        self.queue(lambda: ctypes.memset(address, 0, size))

    def synchronise(self, stream: int) -> None:
        assert self.recording is None, "a stream that is recorded cannot be waited for"
        self.synchronised += 1
        if self.broken:
            raise BackendError("the GPU fell off the bus", where="CUDA")

    def event(self, *, timing: bool = False) -> int:
        event = next(self.handles)
        self.events[event] = None
        return event

    def record_event(self, event: int, stream: int) -> None:
        assert event in self.events
        self.events[event] = self.milliseconds
        if self.late:
            self.unhappened.add(event)

    def wait_event(self, stream: int, event: int) -> None:
        assert event in self.events
        self.waits.append((stream, event))

    def synchronise_event(self, event: int) -> None:
        assert event in self.events
        self.synchronised += 1

    def elapsed(self, first: int, second: int) -> float | None:
        if {first, second} & self.unhappened:
            return None
        began, ended = self.events[first], self.events[second]
        assert began is not None
        assert ended is not None
        return float(ended - began)

    def release_event(self, event: int) -> None:
        del self.events[event]

    def catch_up(self) -> None:
        self.late = False
        self.unhappened.clear()

    def kernels(self, source: str, names: Sequence[str]) -> list[Any]:
        return [(kernels_on_host(source), name) for name in names]

    def launch(self, kernel: Any, grid: Triple, block: Triple, arguments: Sequence[Argument], stream: int) -> None:
        library, name = kernel
        sizes = [(ctypes.c_uint * 3)(*size) for size in (grid, block)]
        assert max(grid[1:]) <= 65535
        assert np.prod(block) <= 1024

        def work() -> None:
            assert library.launch(name.encode(), *sizes, packed(arguments)), f"there is no kernel {name}"

        self.queue(work)

    def begin_capture(self, stream: int) -> None:
        self.recording = []

    def end_capture(self, stream: int) -> Any:
        recorded, self.recording = self.recording, None
        if not self.records:
            raise BackendError("something cannot be recorded", where="CUDA")
        return recorded

    def replay(self, graph: Any, stream: int) -> None:
        self.replayed += 1
        for work in graph:
            work()

    def release_graph(self, graph: Any) -> None:
        graph.clear()

    def close(self) -> None:
        self.closed += 1
        self.held.clear()
        self.events.clear()
        if self.broken:
            raise BackendError("the GPU gives nothing back", where="CUDA")


@pytest.fixture(scope="session")
def host_memory() -> type[HostMemory]:
    """The class, for tests that make devices of their own."""
    return HostMemory


@pytest.fixture
def device() -> Iterator[HostDevice]:
    """The host as a device; tests of others have their own."""
    device = HostDevice()
    yield device
    device.close()
