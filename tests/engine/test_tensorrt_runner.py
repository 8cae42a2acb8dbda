"""The runner, on a GPU where there is one, and everywhere with ONNX Runtime and host memory in the GPU's place.

In the latter case the plans are still built and cached for real; only what runs them is stood in for.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from fgnet.engine import tensorrt_runner
from fgnet.engine.backends import ready
from fgnet.engine.bundle import Bundle, BundleManifest, Graphs, Precision, load_bundle, sha256
from fgnet.engine.columns import Column, load_sections, run_block
from fgnet.engine.cuda_memory import open_cuda
from fgnet.engine.device import Buffer
from fgnet.engine.tensorrt_engine import TensorSpec
from fgnet.engine.tensorrt_runner import TensorRTRunner, gray_bytes
from fgnet.volumes.errors import BackendError

PATCH = (4, 64, 64)
DTYPES: dict[str, np.dtype[Any]] = {
    "UINT8": np.dtype(np.uint8),
    "FLOAT": np.dtype(np.float32),
    "HALF": np.dtype(np.float16),
}
KINDS = {"tensor(uint8)": "UINT8", "tensor(float)": "FLOAT", "tensor(float16)": "HALF"}

Open = Callable[..., TensorRTRunner]
Block = npt.NDArray[np.uint8]


def _sessions(bundle: Bundle, graphs: Graphs) -> list[Any]:
    onnxruntime = pytest.importorskip("onnxruntime")
    return [
        onnxruntime.InferenceSession(str(bundle.path / file), providers=["CPUExecutionProvider"])
        for file in graphs.files
    ]


def _expected(bundle: Bundle, graphs: Graphs, block: Block) -> Block:
    *encoder, decoder = _sessions(bundle, graphs)
    values: dict[str, Any] = {"gray": block}
    for session in encoder:
        calls = [
            session.run(None, {"gray": block[first : first + bundle.manifest.sections]})
            for first in range(0, len(block), bundle.manifest.sections)
        ]
        for i, output in enumerate(session.get_outputs()):
            values[output.name] = np.concatenate([call[i] for call in calls])
    (affinities,) = decoder.run(None, {value.name: values[value.name] for value in decoder.get_inputs()})
    result: Block = affinities
    return result


class SessionEngine:
    """An engine's place, filled by ONNX Runtime at addresses in host memory."""

    def __init__(self, session: Any, memory: Any) -> None:
        self.session, self.memory = session, memory
        self.inputs, self.outputs = (
            {v.name: TensorSpec(tuple(v.shape), KINDS[v.type], DTYPES[KINDS[v.type]].itemsize) for v in values}
            for values in (session.get_inputs(), session.get_outputs())
        )
        self.precisions: dict[str, int] = {}
        self.can_be_recorded = True

    def run(self, addresses: dict[str, int], stream: int) -> None:
        assert set(addresses) == {*self.inputs, *self.outputs}

        def array(name: str, spec: TensorSpec) -> npt.NDArray[Any]:
            raw = (ctypes.c_uint8 * spec.nbytes).from_address(addresses[name])
            values: npt.NDArray[Any] = np.frombuffer(memoryview(raw), DTYPES[spec.kind])
            return values.reshape(spec.shape)

        def work() -> None:
            results = self.session.run(list(self.outputs), {n: array(n, spec) for n, spec in self.inputs.items()})
            for (name, spec), values in zip(self.outputs.items(), results, strict=True):
                array(name, spec)[...] = values

        self.memory.queue(work)

    def capturable(self, stream: int) -> bool:
        return self.can_be_recorded

    def close(self) -> None:
        pass


@pytest.fixture
def bundle(make_graphs: Callable[..., tuple[Path, Path]], tmp_path: Path) -> Bundle:
    graphs, files = [], {}
    precisions: tuple[Precision, ...] = ("fp16", "fp32")
    for precision in precisions:
        for path in make_graphs(precision):
            target = tmp_path / f"{precision}.{path.name}"
            target.write_bytes(path.read_bytes())
            files[target.name] = sha256(target)
        graphs.append(Graphs(precision, f"{precision}.decoder.onnx", f"{precision}.encoder.onnx"))
    manifest = BundleManifest("small", {}, PATCH, (2, 32, 32), (), files, 2, tuple(graphs))
    return Bundle(tmp_path, manifest)


@pytest.fixture(params=["host", pytest.param("gpu", marks=pytest.mark.gpu)])
def open_runner(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, host_memory: Any
) -> Iterator[Open]:
    """Opens runners, with a cache folder of their own, and closes them."""
    opened: list[TensorRTRunner] = []
    backend: Any = "tensorrt-rtx"
    if request.param == "gpu":
        try:
            open_cuda().close()
        except BackendError as error:
            pytest.skip(f"needs an NVIDIA GPU: {error.what}")
        backend = "tensorrt" if find_spec("tensorrt") is not None else backend
        if not ready(backend, "cuda"):
            pytest.skip("needs TensorRT, or a GPU that TensorRT for RTX builds for")
    else:
        pytest.importorskip(
            "tensorrt_rtx_bindings", reason="engines are built with tensorrt-rtx-cu13-bindings and -libs"
        )

    def open_(bundle: Bundle, *, memory: int = 1 << 24, **options: Any) -> TensorRTRunner:
        if request.param == "host":
            device = host_memory(memory)
            sessions = iter(_sessions(bundle, bundle.graphs(options.get("precision"))))
            monkeypatch.setattr(tensorrt_runner, "open_cuda", lambda: device)
            monkeypatch.setattr(tensorrt_runner, "LoadedEngine", lambda *_, **__: SessionEngine(next(sessions), device))
        runner = TensorRTRunner(bundle, **{"backend": backend, "folder": tmp_path / "engines", **options})
        opened.append(runner)
        return runner

    yield open_
    for runner in opened:
        runner.close()


def _block(seed: int = 0) -> Block:
    return np.random.default_rng(seed).integers(0, 256, PATCH, dtype=np.uint8)


def _upload(runner: TensorRTRunner, gray: Block) -> Buffer:
    """Gray on the device, for what is queued on the runner's stream."""
    device, staging = runner.device, runner.device.staging(gray.shape)
    buffer, done = device.empty(gray.shape), device.event()
    staging[:] = gray
    device.upload(buffer, staging, runner.stream)
    device.record(done, runner.stream)
    device.synchronise(done)
    return buffer


def _fill(runner: TensorRTRunner, volume: Block) -> None:
    """Load and encode sections into the slots from 0 on, two at a time."""
    for slot in range(0, len(volume), 2):
        load_sections(runner, _upload(runner, volume[slot : slot + 2]), slot)


def _decode(runner: TensorRTRunner, slot: int) -> Block:
    device = runner.device
    buffer, back, done = device.empty((3, *PATCH)), device.staging((3, *PATCH)), device.event()
    device.call(runner.stream, lambda: runner.decode(slot, buffer), "decode")
    device.download(back, buffer, runner.stream)
    device.record(done, runner.stream)
    device.synchronise(done)
    return back


@pytest.mark.parametrize(("precision", "levels"), [("fp32", 1), ("fp16", 3)])
def test_a_block_comes_out_as_onnx_runtime_computes_it(
    open_runner: Open, bundle: Bundle, precision: Precision, levels: int
) -> None:
    runner = open_runner(bundle, precision=precision)
    assert (runner.patch, runner.sections, runner.precision) == (PATCH, 2, precision)
    expected = _expected(bundle, bundle.graphs(precision), _block())
    assert expected.std() > 10
    for _ in range(3):  # plainly, recorded, and replayed
        np.testing.assert_allclose(run_block(runner, _block()).astype(int), expected, atol=levels)
    assert runner.describe()["engines"] == {"encoder": "built", "decoder": "built"}


def test_the_graphs_of_an_exported_bundle_run_alike(open_runner: Open, tiny_bundle: Path) -> None:
    bundle = load_bundle(tiny_bundle)
    block = np.random.default_rng(0).integers(0, 256, bundle.manifest.patch, dtype=np.uint8)
    for graphs in bundle.manifest.graphs:
        if graphs.precision in ("fp32", "fp16"):
            expected = _expected(bundle, graphs, block)
            found = run_block(open_runner(bundle, precision=graphs.precision, memory=1 << 28), block)
            np.testing.assert_allclose(found.astype(int), expected, atol=2 if graphs.precision == "fp32" else 12)


def test_sections_encoded_once_serve_several_blocks(open_runner: Open, bundle: Bundle) -> None:
    runner = open_runner(bundle, precision="fp32", slots=8)
    assert runner.slots == 8
    volume = np.concatenate([_block(1), _block(2)])
    _fill(runner, volume)
    for slot in (0, 2, 4, 2):
        expected = _expected(bundle, bundle.graphs("fp32"), volume[slot : slot + 4])
        np.testing.assert_allclose(_decode(runner, slot).astype(int), expected, atol=1)


def test_gray_and_features_that_were_moved_are_read_where_they_went(open_runner: Open, bundle: Bundle) -> None:
    runner = open_runner(bundle, precision="fp32", slots=8)
    volume = np.concatenate([_block(1), _block(2)])
    _fill(runner, volume)
    runner.device.call(runner.stream, lambda: runner.move(3, 1, 5), "encode")
    expected = _expected(bundle, bundle.graphs("fp32"), volume[4:8])
    np.testing.assert_allclose(_decode(runner, 2).astype(int), expected, atol=1)


def test_a_column_of_blocks_reuses_sections_and_times_its_stages(open_runner: Open, bundle: Bundle) -> None:
    runner = open_runner(bundle, precision="fp32")
    volume = np.concatenate([_block(seed) for seed in range(4)])
    column = Column(runner, len(volume), lambda first, count: volume[first : first + count])
    for start in range(0, 13, 2):
        expected = _expected(bundle, bundle.graphs("fp32"), volume[start : start + 4])
        np.testing.assert_allclose(column.affinities(start).astype(int), expected, atol=1)
    busy = runner.device.busy()
    assert all(busy[stage] > 0 for stage in ("upload", "encode", "decode", "download"))


def test_a_decoder_that_reads_no_gray_is_given_none(open_runner: Open, bundle: Bundle, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    graphs = bundle.graphs("fp32")
    model = onnx.load(bundle.path / graphs.decoder)
    # The image becomes a constant, so that gray is no input of the graph any more.
    nodes = [node for node in model.graph.node if node.name not in ("widen", "divide", "add_channel")]
    image = onnx.helper.make_tensor("image", onnx.TensorProto.FLOAT, (1, 1, 1, 1), [0.5])
    kept = [value for value in model.graph.input if value.name != "gray"]
    for field, values in (("node", nodes), ("input", kept)):
        model.graph.ClearField(field)
        getattr(model.graph, field).extend(values)
    model.graph.initializer.append(image)
    onnx.save(model, bundle.path / "blind.onnx")
    files = {**bundle.manifest.files, "blind.onnx": sha256(bundle.path / "blind.onnx")}
    blind = Graphs("fp32", "blind.onnx", graphs.encoder)
    bundle = replace(bundle, manifest=replace(bundle.manifest, files=files, graphs=(blind,)))
    expected = _expected(bundle, blind, _block())
    assert expected.std() > 10
    np.testing.assert_allclose(run_block(open_runner(bundle), _block()).astype(int), expected, atol=1)


def test_engines_are_built_once_and_said_to_be(open_runner: Open, bundle: Bundle) -> None:
    said: list[str] = []
    open_runner(bundle, say=said.append)
    assert [line.split(":")[0] for line in said] == ["fp16.encoder.onnx", "fp16.decoder.onnx"]
    said.clear()
    again = open_runner(bundle, say=said.append)
    assert said == []
    assert again.describe()["engines"] == {"encoder": "cache", "decoder": "cache"}


def test_a_cached_engine_that_was_damaged_is_built_again(open_runner: Open, bundle: Bundle, tmp_path: Path) -> None:
    open_runner(bundle).close()
    for plan in (tmp_path / "engines").glob("*.plan"):
        plan.write_bytes(plan.read_bytes()[: 1 << 12])
    said: list[str] = []
    runner = open_runner(bundle, say=said.append)
    assert runner.describe()["engines"] == {"encoder": "built", "decoder": "built"}
    assert sum("altered or truncated" in line for line in said) == 2


def test_a_network_without_encoder_runs_on_gray_alone(open_runner: Open, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    node, types = onnx.helper.make_node, onnx.TensorProto
    nodes = [
        node("Cast", ["gray"], ["wide"], to=types.FLOAT),
        node("Unsqueeze", ["wide", "axis"], ["image"]),
        node("Conv", ["image", "kernel"], ["maps"], kernel_shape=[1, 1]),
        node("Transpose", ["maps"], ["first"], perm=[1, 0, 2, 3]),
        node("Cast", ["first"], ["affinities"], to=types.UINT8),
    ]
    constants = [
        onnx.helper.make_tensor("axis", types.INT64, (1,), [1]),
        onnx.helper.make_tensor("kernel", types.FLOAT, (3, 1, 1, 1), [1.0, 0.5, 0.25]),
    ]
    inputs = [onnx.helper.make_tensor_value_info("gray", types.UINT8, PATCH)]
    outputs = [onnx.helper.make_tensor_value_info("affinities", types.UINT8, (3, *PATCH))]
    graph = onnx.helper.make_graph(nodes, "decoder", inputs, outputs, constants)
    file = tmp_path / "decoder.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10), file)
    graphs = (Graphs("fp32", file.name, None),)
    manifest = BundleManifest("flat", {}, PATCH, (2, 32, 32), (), {file.name: sha256(file)}, 1, graphs)
    runner = open_runner(Bundle(tmp_path, manifest))
    assert runner.sections == 0
    np.testing.assert_array_equal(run_block(runner, _block())[0], _block())


def test_graphs_of_another_patch_than_the_manifests_are_refused(open_runner: Open, bundle: Bundle) -> None:
    other = replace(bundle, manifest=replace(bundle.manifest, patch=(8, 64, 64)))
    with pytest.raises(BackendError, match=r"affinities is .*\(3, 4, 64, 64\).*\(3, 8, 64, 64\)"):
        open_runner(other)


@pytest.mark.parametrize("open_runner", ["host"], indirect=True)
def test_work_at_the_same_slot_is_recorded_at_its_second_run(open_runner: Open, bundle: Bundle) -> None:
    runner = open_runner(bundle)
    device: Any = runner._cuda
    column = Column(runner, 4, lambda first, count: _block()[first : first + count])
    column.affinities(0)
    assert device.replayed == 0
    for count in (3, 6):
        for work in (lambda: runner.encode(0), lambda: runner.encode(2), lambda: runner.decode(0, column._affinities)):
            runner.device.call(runner.stream, work, "decode")
        assert device.replayed == count
    assert runner.describe()["cuda_graphs"] is True


@pytest.mark.parametrize("open_runner", ["host"], indirect=True)
def test_a_recording_is_replayed_for_its_own_target_only(open_runner: Open, bundle: Bundle) -> None:
    runner = open_runner(bundle)
    device: Any = runner._cuda
    _fill(runner, _block())
    targets = [runner.device.empty((3, *PATCH)) for _ in range(2)]
    for replayed, target in ((0, 0), (0, 1), (1, 0), (2, 1)):
        before = targets[1 - target].nbytes and device.held[targets[1 - target].address][:]
        runner.device.call(runner.stream, lambda t=target: runner.decode(0, targets[t]), "decode")  # type: ignore[misc]
        assert device.held[targets[1 - target].address][:] == before
        assert device.replayed == replayed
    first, second = (device.held[target.address][: target.nbytes] for target in targets)
    assert first == second


@pytest.mark.parametrize("open_runner", ["host"], indirect=True)
def test_nothing_waits_for_the_device(open_runner: Open, bundle: Bundle) -> None:
    runner = open_runner(bundle)
    device: Any = runner._cuda
    gray, target = runner.device.empty((2, *PATCH[1:])), runner.device.empty((3, *PATCH))
    before = device.synchronised
    for _ in range(3):
        runner.device.call(runner.stream, lambda: runner.load(gray, 2), "upload")
        runner.device.call(runner.stream, lambda: runner.encode(2), "encode")
        runner.device.call(runner.stream, lambda: runner.decode(0, target), "decode")
        runner.device.call(runner.stream, lambda: runner.move(2, 0, 4), "encode")
    assert device.synchronised == before


@pytest.mark.parametrize("open_runner", ["host"], indirect=True)
def test_blocks_on_their_own_take_no_more_memory_each(open_runner: Open, bundle: Bundle) -> None:
    runner = open_runner(bundle)
    device: Any = runner._cuda
    run_block(runner, _block())
    held, events = len(device.held), len(device.events)
    for _ in range(5):
        run_block(runner, _block())
    assert (len(device.held), len(device.events)) == (held, events)


def test_a_runner_is_closed_once_whatever_is_called(open_runner: Open, bundle: Bundle) -> None:
    runner = open_runner(bundle)
    runner.close()
    runner.close()
    assert runner.describe()["slots"] == runner.slots


@pytest.mark.parametrize("open_runner", ["host"], indirect=True)
@pytest.mark.parametrize("refusal", ["engine", "recording"])
def test_what_cannot_be_recorded_is_run_call_by_call(open_runner: Open, bundle: Bundle, refusal: str) -> None:
    runner = open_runner(bundle)
    device: Any = runner._cuda
    device.records = refusal == "engine"
    for engine in runner._engines.values():
        engine.can_be_recorded = refusal != "engine"  # type: ignore[attr-defined]
    first = run_block(runner, _block()).copy()
    for _ in range(3):
        np.testing.assert_array_equal(run_block(runner, _block()), first)
    assert device.replayed == 0
    assert runner.describe()["cuda_graphs"] is False


@pytest.mark.parametrize("open_runner", ["host"], indirect=True)
def test_a_small_gpu_holds_fewer_slots_and_a_smaller_one_is_refused(open_runner: Open, bundle: Bundle) -> None:
    section = 64 * 64 + 8 * 16 * 16 * 2
    said: list[str] = []
    runner = open_runner(bundle, memory=12 * section, slots=100, say=said.append)
    assert 6 <= runner.slots <= 12
    assert f"gray and features of {runner.slots} sections, not of 100" in said[-1]
    with pytest.raises(BackendError, match="6 sections that a block needs"):
        open_runner(bundle, memory=5 * section)


def test_sections_whose_gray_cannot_be_addressed_are_refused() -> None:
    with pytest.raises(BackendError, match=r"takes 600 bytes, which is no multiple of 256"):
        gray_bytes((4, 20, 30), "somewhere")
    assert gray_bytes((4, 16, 16), "somewhere") == 256


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
def test_without_gpu_or_library_the_error_names_what_is_missing(bundle: Bundle, backend: Any) -> None:
    if Path("/dev/nvidiactl").exists():
        pytest.skip("there is an NVIDIA GPU")
    with pytest.raises(BackendError, match=r"fgnet\[gpu\]|needs an NVIDIA GPU"):
        TensorRTRunner(bundle, backend=backend)
