"""ONNX Runtime's GPU runner: on a GPU where there is one, and everywhere on the CPU provider at host addresses.

In the latter case all bindings and addresses are real; only where they lie is stood in for.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from fgnet.engine import onnxruntime_cuda_runner
from fgnet.engine.bundle import MANIFEST, Bundle, load_bundle, sha256
from fgnet.engine.columns import Column, run_block
from fgnet.engine.cuda_memory import open_cuda
from fgnet.engine.onnxruntime_cuda_runner import OnnxRuntimeCudaRunner
from fgnet.engine.onnxruntime_runner import OnnxRuntimeRunner
from fgnet.engine.onnxruntime_session import import_onnxruntime, open_session
from fgnet.engine.runner import Runner
from fgnet.volumes.errors import BackendError

Open = Callable[..., OnnxRuntimeCudaRunner]


class HostBinding:
    """A binding whose addresses on the GPU are those of the host."""

    def __init__(self, binding: Any) -> None:
        self.binding = binding

    def bind_input(self, name: str, device: str, *rest: Any) -> None:
        assert device == "cuda"
        self.binding.bind_input(name, "cpu", *rest)

    def bind_output(self, name: str, device: str, *rest: Any) -> None:
        assert device == "cuda"
        self.binding.bind_output(name, "cpu", *rest)


class HostSession:
    """A session on the CPU that takes such bindings."""

    def __init__(self, session: Any, memory: Any, providers: Any) -> None:
        self.session, self.memory, self.providers = session, memory, providers
        self.options: list[Any] = []

    def get_inputs(self) -> Any:
        return self.session.get_inputs()

    def get_outputs(self) -> Any:
        return self.session.get_outputs()

    def io_binding(self) -> HostBinding:
        return HostBinding(self.session.io_binding())

    def run_with_iobinding(self, binding: HostBinding, options: Any) -> None:
        self.options.append(options)
        self.memory.queue(lambda: self.session.run_with_iobinding(binding.binding, options))


@pytest.fixture(params=["host", pytest.param("gpu", marks=pytest.mark.gpu)])
def open_runner(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, host_memory: Any
) -> Iterator[Open]:
    """Opens runners, and closes them."""
    pytest.importorskip("onnxruntime")
    opened: list[OnnxRuntimeCudaRunner] = []
    if request.param == "gpu":
        try:
            open_cuda().close()
        except BackendError as error:
            pytest.skip(f"needs an NVIDIA GPU: {error.what}")
        if "CUDAExecutionProvider" not in import_onnxruntime().get_available_providers():
            pytest.skip("needs onnxruntime-gpu in place of onnxruntime")

    def open_(bundle: Bundle, *, memory: int = 1 << 26, **options: Any) -> OnnxRuntimeCudaRunner:
        if request.param == "host":
            device = host_memory(memory)
            monkeypatch.setattr(onnxruntime_cuda_runner, "open_cuda", lambda: device)
            monkeypatch.setattr(
                onnxruntime_cuda_runner,
                "open_session",
                lambda path, providers, threads: HostSession(
                    open_session(path, ["CPUExecutionProvider"], threads), device, providers
                ),
            )
        runner = OnnxRuntimeCudaRunner(bundle, **{"precision": "fp32", **options})
        opened.append(runner)
        return runner

    yield open_
    for runner in opened:
        runner.close()


def _noise(depth: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (depth, 64, 64), dtype=np.uint8)


def test_blocks_of_a_column_come_out_as_on_the_cpu(open_runner: Open, tiny_bundle: Path) -> None:
    bundle, volume = load_bundle(tiny_bundle), _noise(12)
    runner, plain = open_runner(bundle), OnnxRuntimeRunner(bundle, precision="fp32", threads=1)
    contract: Runner = runner
    columns = [
        Column(each, len(volume), lambda first, count: volume[first : first + count]) for each in (contract, plain)
    ]
    for start in range(0, 9, 2):
        found, expected = (column.affinities(start).astype(int) for column in columns)
        assert expected.std() > 10
        np.testing.assert_allclose(found, expected, atol=2)
    assert all(runner.device.busy()[stage] > 0 for stage in ("upload", "encode", "decode", "download"))
    plain.close()


@pytest.mark.parametrize("slots", [1, 7, 30])
def test_any_number_of_slots_that_a_block_needs_will_do(open_runner: Open, tiny_bundle: Path, slots: int) -> None:
    bundle, volume = load_bundle(tiny_bundle), _noise(16)
    runner = open_runner(bundle, slots=slots)
    assert runner.slots == max(slots, 6)
    column = Column(runner, len(volume), lambda first, count: volume[first : first + count])
    for start in (0, 1, 3, 4, 7, 12):
        alone = run_block(open_runner(bundle), volume[start : start + 4])
        np.testing.assert_allclose(column.affinities(start).astype(int), alone.astype(int), atol=2)


@pytest.mark.parametrize("open_runner", ["host"], indirect=True)
def test_runs_wait_for_nothing_and_say_so_to_onnxruntime(open_runner: Open, tiny_bundle: Path) -> None:
    runner = open_runner(load_bundle(tiny_bundle))
    memory: Any = runner.device.cuda
    gray, target = runner.device.empty((2, 64, 64)), runner.device.empty((3, 4, 64, 64))
    before = memory.synchronised
    runner.device.call(runner.stream, lambda: runner.load(gray, 0), "upload")
    runner.device.call(runner.stream, lambda: runner.encode(0), "encode")
    runner.device.call(runner.stream, lambda: runner.decode(0, target), "decode")
    assert memory.synchronised == before
    for session in (runner._encoder, runner._decoder):
        (options,) = session.options
        assert options.get_run_config_entry("disable_synchronize_execution_providers") == "1"


@pytest.mark.parametrize("open_runner", ["host"], indirect=True)
def test_a_gpu_that_is_too_small_is_refused_and_given_back(open_runner: Open, tiny_bundle: Path) -> None:
    with pytest.raises(BackendError, match="6 sections that a block needs"):
        open_runner(load_bundle(tiny_bundle), memory=1 << 12)
    device: Any = vars(onnxruntime_cuda_runner)["open_cuda"]()
    assert device.closed == 1


def test_a_runner_is_closed_once_whatever_is_called(open_runner: Open, tiny_bundle: Path) -> None:
    runner = open_runner(load_bundle(tiny_bundle))
    runner.close()
    runner.close()
    assert runner.describe()["slots"] == runner.slots


def test_execution_providers_are_given_switches_as_each_reads_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FGNET_CACHE", str(tmp_path))
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    (name, cuda), *none = onnxruntime_cuda_runner._providers("cuda", 17, "0" * 64, "fp32")
    assert (name, none) == ("CUDAExecutionProvider", [])
    assert cuda == {"device_id": "0", "user_compute_stream": "17", "use_tf32": "0"}
    (name, tensorrt), behind = onnxruntime_cuda_runner._providers("tensorrt", 17, "0" * 64, "fp32")
    assert (name, behind) == ("TensorrtExecutionProvider", ("CUDAExecutionProvider", cuda))
    # ONNX Runtime reads no other words for TensorRT's switches, and falls back to another provider for them.
    assert {value for key, value in tensorrt.items() if key.endswith("_enable")} == {"True"}
    assert Path(tensorrt["trt_engine_cache_path"]).is_dir()


def test_fp32_is_not_rounded_and_halves_keep_their_tensor_cores(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FGNET_CACHE", str(tmp_path))
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    options = {
        precision: onnxruntime_cuda_runner._providers("cuda", 17, "0" * 64, precision)[0][1]
        for precision in ("fp32", "int8", "fp16", "bf16")
    }
    assert {precision for precision, given in options.items() if given.get("use_tf32") == "0"} == {"fp32", "int8"}
    # TensorRT's provider has no such switch. Who sets the environment is obeyed, and gets engines of its own.
    rounded = onnxruntime_cuda_runner._providers("tensorrt", 17, "0" * 64, "fp32")[0][1]
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE")
    exact = onnxruntime_cuda_runner._providers("tensorrt", 17, "0" * 64, "fp32")[0][1]
    assert os.environ["NVIDIA_TF32_OVERRIDE"] == "0"
    assert rounded["trt_engine_cache_path"] != exact["trt_engine_cache_path"]


@pytest.mark.parametrize("open_runner", ["host"], indirect=True)
@pytest.mark.parametrize("step", ["encode", "decode"])
def test_what_fails_at_a_call_is_an_error_in_one_line(open_runner: Open, tiny_bundle: Path, step: str) -> None:
    """ONNX Runtime takes the memory of activations at the first call."""
    runner = open_runner(load_bundle(tiny_bundle))

    def fail(*_: object) -> None:
        raise RuntimeError("BFCArena cannot give 2048 bytes\nand a trace")

    for session in (runner._encoder, runner._decoder):
        session.run_with_iobinding = fail
    target = runner.device.empty((3, 4, 64, 64))
    with pytest.raises(BackendError, match=r"^backend onnxruntime: .*\(see that the GPU's memory is free") as caught:
        runner.encode(0) if step == "encode" else runner.decode(0, target)
    assert "BFCArena" in str(caught.value)
    assert "\n" not in str(caught.value)


def _of_other_weights(bundle: Path, folder: Path) -> Bundle:
    """A copy of a bundle whose graphs have the same nodes and names, and weights that are twice as large."""
    onnx = pytest.importorskip("onnx", reason="other weights are written with onnx, of the extra fgnet[train]")
    shutil.copytree(bundle, folder)
    manifest = load_bundle(folder).manifest
    for name in manifest.graphs[0].files:
        model = onnx.load(folder / name)
        for weights in model.graph.initializer:
            values = onnx.numpy_helper.to_array(weights)
            if values.ndim > 1 and values.dtype == np.float32:  # vectors may be sizes
                weights.CopyFrom(onnx.numpy_helper.from_array(2 * values, weights.name))
        onnx.save(model, folder / name)
    files = {name: sha256(folder / name) for name in manifest.files}
    (folder / MANIFEST).write_text(replace(manifest, files=files).to_json())
    return load_bundle(folder)


@pytest.mark.parametrize("open_runner", ["host"], indirect=True)
def test_every_graph_keeps_its_tensorrt_engines_to_itself(
    open_runner: Open, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FGNET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    said: list[str] = []

    def options(bundle: Bundle) -> list[dict[str, str]]:
        runner = open_runner(bundle, provider="tensorrt", say=said.append)
        return [session.providers[0][1] for session in (runner._encoder, runner._decoder)]

    first = options(load_bundle(tiny_bundle))
    assert len(said) == 1
    assert "minutes" in said[0]
    assert options(load_bundle(tiny_bundle)) == first
    other = options(_of_other_weights(tiny_bundle, tmp_path / "fine-tuned.bundle"))
    # ONNX Runtime would take the one's engine for the other's: it looks at names and nodes alone.
    assert len({each["trt_engine_cache_path"] for each in first + other}) == 4
    assert len({each["trt_timing_cache_path"] for each in first + other}) == 1
