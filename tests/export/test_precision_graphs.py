"""One network's graphs at all precisions, as files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

onnx = pytest.importorskip("onnx", reason="the export needs the extra fgnet[train]")
pytest.importorskip("torch", reason="the export needs the extra fgnet[train]")
pytest.importorskip("sam2", reason="the export needs the extra fgnet[train]")
pytest.importorskip("onnxruntime", reason="running graphs needs the extra fgnet[cpu]")

from onnx import TensorProto  # noqa: E402

from fgnet.engine.bundle import Bundle, Graphs  # noqa: E402
from fgnet.engine.columns import run_block  # noqa: E402
from fgnet.engine.gray_reader import ArraySource  # noqa: E402
from fgnet.engine.onnxruntime_runner import OnnxRuntimeRunner  # noqa: E402
from fgnet.engine.torch_runner import TorchRunner  # noqa: E402
from fgnet.export import onnx_graph  # noqa: E402
from fgnet.export.precision_graphs import CALIBRATION_BLOCKS, write_graphs  # noqa: E402
from fgnet.network.checkpoint import load_checkpoint  # noqa: E402
from fgnet.volumes.errors import BackendError  # noqa: E402
from fgnet.volumes.geometry import Box  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_torch_thread")

Every = tuple[Bundle, list[str]]
# What travels between the graphs is stored in what they compute in; int8 is within the graphs only.
FEATURES = {
    "fp32": TensorProto.FLOAT,
    "fp16": TensorProto.FLOAT16,
    "bf16": TensorProto.BFLOAT16,
    "int8": TensorProto.FLOAT,
}


def test_each_precision_is_written_once_in_the_order_asked_for(every_precision: Every) -> None:
    bundle, said = every_precision
    names = {"fp32": ("encoder.onnx", "decoder.onnx")}
    names |= {half: (f"encoder.{half}.onnx", f"decoder.{half}.onnx") for half in ("fp16", "int8", "bf16")}
    assert [(g.precision, g.files) for g in bundle.manifest.graphs] == [
        (half, names[half]) for half in ("fp16", "fp32", "int8", "bf16")
    ]
    assert {file.name for file in bundle.path.glob("*.onnx*")} == {name for both in names.values() for name in both}
    assert said == [
        "tracing the encoder and the decoder",
        *(f"writing the {half} graphs" for half in ("fp16", "fp32", "int8", "bf16")),
    ]


@pytest.mark.parametrize("precision", FEATURES)
def test_bytes_go_in_and_come_out_and_features_are_of_the_precision(every_precision: Every, precision: Any) -> None:
    bundle = every_precision[0]
    encoder, decoder = (onnx.load(str(bundle.path / name)).graph for name in bundle.graphs(precision).files)
    for graph in (encoder, decoder):
        types = {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.output)}
        assert types.pop("gray") == TensorProto.UINT8
        assert types.pop("affinities", TensorProto.UINT8) == TensorProto.UINT8
        assert set(types.values()) == {FEATURES[precision]}


def test_the_files_shrink_with_the_precision(every_precision: Every) -> None:
    bundle = every_precision[0]

    def size(precision: Any) -> int:
        return sum((bundle.path / name).stat().st_size for name in bundle.graphs(precision).files)

    assert size("int8") < size("fp16") < 0.6 * size("fp32")
    assert abs(size("bf16") - size("fp16")) < 0.02 * size("fp32")


@pytest.mark.parametrize(("precision", "mean"), [("fp32", 2e-3), ("fp16", 3e-3), ("int8", 3e-2)])
def test_the_affinities_are_those_of_eager_pytorch(every_precision: Every, precision: Any, mean: float) -> None:
    bundle = every_precision[0]
    patch = bundle.manifest.patch
    gray = np.random.default_rng(1).integers(0, 256, patch, dtype=np.uint8)
    expected = TorchRunner(load_checkpoint(bundle.checkpoint).build(), patch, device="cpu").run(gray)
    found = run_block(OnnxRuntimeRunner(bundle, precision=precision, threads=1), gray) / 255
    assert expected.std() > 10 * mean
    assert np.abs(found - expected).mean() < mean


def small_network(small_checkpoint: Path) -> Any:
    return load_checkpoint(small_checkpoint).build()


def test_int8_without_tissue_is_refused_before_anything_is_traced(small_checkpoint: Path, tmp_path: Path) -> None:
    said: list[str] = []
    with pytest.raises(BackendError, match=r"--precision int8: int8 takes its scales from real tissue .*--calibration"):
        write_graphs(small_network(small_checkpoint), tmp_path, 1, ["fp32", "int8"], None, said.append)
    assert not said
    assert not list(tmp_path.iterdir())


def test_a_network_without_encoder_has_decoders_only_and_too_few_patches_are_refused(
    small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Weights outside the graphs, as in the largest networks: each precision is still made of the traced one.
    monkeypatch.setattr(onnx_graph, "LARGEST_FILE", 4096)
    network = small_network(small_checkpoint)
    gray = np.random.default_rng(0).integers(0, 256, (4, 32, 64), dtype=np.uint8)
    graphs = write_graphs(network, tmp_path, 1, ["fp32", "fp16", "int8"], ArraySource(gray), lambda _: None)
    assert graphs == (
        Graphs("fp32", "decoder.onnx", None),
        Graphs("fp16", "decoder.fp16.onnx", None),
        Graphs("int8", "decoder.int8.onnx", None),
    )
    assert {"decoder.onnx.data", "decoder.fp16.onnx.data"} <= {file.name for file in tmp_path.iterdir()}
    for entry in graphs:
        onnx.checker.check_model(str(tmp_path / entry.decoder), full_check=True)
        held = onnx.load(str(tmp_path / entry.decoder)).graph.initializer
        assert sum(np.prod(tensor.dims) for tensor in held) > 1000
    with pytest.raises(BackendError, match="at least 4 calibration patches, 3 were given"):
        write_graphs(network, tmp_path, 1, ["int8"], ArraySource(gray[:, :, :32].repeat(2, 0)[:6]), lambda _: None)


def test_a_calibration_volume_smaller_than_a_patch_is_mirrored() -> None:
    from fgnet.export.precision_graphs import _calibration_blocks

    gray = np.random.default_rng(0).integers(0, 256, (2, 20, 32), dtype=np.uint8)
    (block,) = _calibration_blocks(ArraySource(gray), (2, 32, 32))
    np.testing.assert_array_equal(block[:, :20], gray)
    np.testing.assert_array_equal(block[:, 20:], gray[:, 18:6:-1])


def test_scales_come_from_blocks_spread_over_the_whole_volume() -> None:
    from fgnet.export.precision_graphs import _calibration_blocks

    gray = np.zeros((20, 64, 64), np.uint8)
    gray += np.arange(20, dtype=np.uint8)[:, None, None]
    blocks = _calibration_blocks(ArraySource(gray), (2, 32, 32))
    assert len(blocks) == CALIBRATION_BLOCKS
    assert all(block.shape == (2, 32, 32) and block.flags.c_contiguous for block in blocks)
    assert (blocks[0][0, 0, 0], blocks[-1][-1, 0, 0]) == (0, 19)


class _LargeSource:
    """Gray of a volume that no memory holds, and how many voxels of it were asked for."""

    shape, chunk_depth = (100_000, 100_000, 100_000), None
    read = 0

    def gray(self, box: Box) -> NDArray[np.uint8]:
        self.read += box.size
        return np.zeros(box.shape, np.uint8)


def test_only_the_blocks_that_are_used_are_read() -> None:
    from fgnet.export.precision_graphs import _calibration_blocks

    source = _LargeSource()
    assert len(_calibration_blocks(source, (2, 32, 32))) == CALIBRATION_BLOCKS
    assert source.read == CALIBRATION_BLOCKS * 2 * 32 * 32
