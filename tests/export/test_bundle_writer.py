from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="the export needs the extra fgnet[train]")
torch = pytest.importorskip("torch", reason="the export needs the extra fgnet[train]")
pytest.importorskip("sam2", reason="the export needs the extra fgnet[train]")

from fgnet.engine.bundle import GRAPH, MANIFEST, Bundle, Decoding, load_bundle  # noqa: E402
from fgnet.engine.onnxruntime_runner import OnnxRuntimeRunner  # noqa: E402
from fgnet.engine.torch_runner import TorchRunner  # noqa: E402
from fgnet.export import parity  # noqa: E402
from fgnet.export.bundle_writer import ExportOptions, export_bundle, sample_patches, volume_patches  # noqa: E402
from fgnet.network.checkpoint import Checkpoint, load_checkpoint, save_checkpoint  # noqa: E402
from fgnet.network.config import preset  # noqa: E402
from fgnet.network.model import FGNet  # noqa: E402
from fgnet.volumes.errors import BackendError, CheckpointError, FGNetError, GeometryError, OutputError  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_torch_thread")

PATCH = (2, 32, 32)


def small_checkpoint(path: Path, **changes: Any) -> Path:
    """A network that is exported in a moment."""
    torch.manual_seed(0)
    options: dict[str, Any] = {"modules": "without_sam2", "depth": 3, "widths": (4, 6, 8), "patch": PATCH}
    network = FGNet(preset("nano", **options | changes)).train()
    with torch.no_grad():
        network(torch.rand(2, 1, *network.config.patch))
    save_checkpoint(path, Checkpoint(network.config, network.state_dict(), {"voxel_sizes": [[30.0, 6.0, 6.0]]}))
    return path


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_checkpoint(tmp_path_factory.mktemp("small") / "small.pt")


@pytest.fixture(scope="session")
def exported(small: Path) -> Bundle:
    """Not to be changed."""
    options = ExportOptions("mine", (1, 8, 32), decoding=Decoding("affinity", "mean", 75, 0.25))
    return export_bundle(small, small.parent / "deep" / "er" / "small.bundle", options)


def listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_the_manifest_says_what_was_exported_and_from_what(exported: Bundle, small: Path) -> None:
    manifest = load_bundle(exported.path).manifest
    assert manifest == exported.manifest
    assert (manifest.name, manifest.patch, manifest.stride) == ("mine", PATCH, (1, 8, 32))
    assert manifest.config == load_checkpoint(small).config.to_dict()
    assert manifest.decoding == Decoding("affinity", "mean", 75, 0.25)
    assert manifest.voxel_sizes == ((30.0, 6.0, 6.0),)
    assert manifest.files.keys() == {GRAPH, "small.pt"}
    assert listing(exported.path) == sorted([GRAPH, MANIFEST, "small.pt"])
    assert exported.checkpoint.read_bytes() == small.read_bytes()
    assert manifest.provenance["training"] == load_checkpoint(small).provenance
    assert {"fgnet", "torch", "onnx", "onnxruntime"} == manifest.provenance["versions"].keys()


def test_the_parity_in_the_manifest_is_that_of_its_files(exported: Bundle) -> None:
    eager = TorchRunner(load_checkpoint(exported.checkpoint).build(), PATCH)
    again = parity.compare(eager, OnnxRuntimeRunner(exported), sample_patches(PATCH))
    recorded = exported.manifest.parity
    assert recorded["passed"]
    assert (recorded["backend"], recorded["precision"], recorded["patches"]) == ("onnxruntime", "fp32", 2)
    assert max(again.largest, recorded["largest"]) < 1e-5


@pytest.fixture(scope="session")
def graphs(exported: Bundle, tiny_bundle: Path) -> dict[str, Any]:
    return {"without_sam2": onnx.load(str(exported.graph)), "full": onnx.load(str(tiny_bundle / GRAPH))}


both = pytest.mark.parametrize("name", ["without_sam2", "full"])


@both
def test_the_graph_takes_bytes_and_gives_affinities_at_one_static_shape(graphs: dict[str, Any], name: str) -> None:
    graph = graphs[name].graph
    patch = {"without_sam2": PATCH, "full": (4, 64, 64)}[name]
    ends = [
        (value.name, value.type.tensor_type.elem_type, [d.dim_value for d in value.type.tensor_type.shape.dim])
        for value in (*graph.input, *graph.output)
    ]
    assert ends == [
        ("gray", onnx.TensorProto.UINT8, [1, 1, *patch]),
        ("affinities", onnx.TensorProto.FLOAT, [1, 3, *patch]),
    ]
    for value in graph.value_info:
        assert all(d.WhichOneof("value") == "dim_value" for d in value.type.tensor_type.shape.dim), value.name


@both
def test_batch_norms_are_folded_and_nothing_but_the_standard_operators_is_used(
    graphs: dict[str, Any], name: str
) -> None:
    model = graphs[name]
    kinds = Counter(node.op_type for node in model.graph.node)
    assert kinds["Conv"] > 10
    assert not kinds.keys() & {"BatchNormalization", "If", "Loop", "Scan", "Shape", "NonZero"}
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
    assert [(opset.domain, opset.version) for opset in model.opset_import if opset.domain in ("", "ai.onnx")] == [
        ("", 18)
    ]


@both
def test_positions_are_baked_no_constant_is_resized(graphs: dict[str, Any], name: str) -> None:
    graph = graphs[name].graph
    constants = {tensor.name for tensor in graph.initializer}
    made = {output for node in graph.node if node.op_type == "Constant" for output in node.output}
    resized = [node for node in graph.node if node.op_type == "Resize"]
    assert resized
    for node in resized:
        assert node.input[0] not in constants | made
        assert next(a.s for a in node.attribute if a.name == "mode") in (b"linear", b"nearest")


def test_the_weights_of_the_coarse_decoder_are_not_in_the_graph(graphs: dict[str, Any], tiny_checkpoint: Path) -> None:
    def count(name: str) -> int:
        return sum(value.numel() for key, value in weights.items() if key.startswith(name))

    weights = load_checkpoint(tiny_checkpoint).weights
    floats = sum(
        int(np.prod(tensor.dims))
        for tensor in graphs["full"].graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT
    )
    assert not [tensor.name for tensor in graphs["full"].graph.initializer if "coarse" in tensor.name]
    assert count("coarse.") > 0
    # Positions and normalisation add some constants of their own, fewer than the decoder had.
    assert floats < sum(value.numel() for value in weights.values()) - count("coarse.") / 2


@both
def test_the_file_names_no_folder_and_no_source_of_its_maker(graphs: dict[str, Any], name: str) -> None:
    model = graphs[name]
    content = model.SerializeToString()
    root = str(Path(__file__).parents[2])
    for text in (root, sys.prefix, str(Path.home()), "site-packages", ".py", "Traceback"):
        assert text.encode() not in content, text
    assert model.doc_string == model.graph.doc_string == ""
    assert not model.metadata_props
    assert not model.graph.metadata_props
    for node in model.graph.node:
        assert not node.doc_string
        assert not node.metadata_props
    for value in (*model.graph.initializer, *model.graph.value_info, *model.graph.input, *model.graph.output):
        assert not value.doc_string
        assert not value.metadata_props


@pytest.mark.parametrize(
    "changes",
    [
        {"modules": "without_fge", "patch": (2, 32, 64)},
        {
            "modules": "full",
            "guidance": "cross_attention",
            "depth": 5,
            "widths": (4, 6, 8, 8, 8),
            "finest_depth_kernel": 3,
            "context_sections": 0,
        },
    ],
    ids=str,
)
def test_ablations_run_in_onnxruntime_with_the_affinities_of_eager_pytorch(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    bundle = export_bundle(small_checkpoint(tmp_path / "m.pt", **changes), tmp_path / "b", ExportOptions())
    patch = np.random.default_rng(5).integers(0, 256, (1, *bundle.manifest.patch), dtype=np.uint8)
    eager = TorchRunner(load_checkpoint(bundle.checkpoint).build(), bundle.manifest.patch)
    np.testing.assert_allclose(OnnxRuntimeRunner(bundle).run(patch), eager.run(patch), rtol=0, atol=1e-5)


def test_weights_that_overflow_fail_the_comparison_and_leave_an_earlier_bundle(
    exported: Bundle, small: Path, tmp_path: Path
) -> None:
    earlier = shutil.copytree(exported.path, tmp_path / "b")
    checkpoint = load_checkpoint(small)
    weights = {
        key: value * torch.nan if key.startswith("refined.head") else value for key, value in checkpoint.weights.items()
    }
    save_checkpoint(tmp_path / "m.pt", replace(checkpoint, weights=weights))
    with pytest.raises(BackendError, match="values not finite"):
        export_bundle(tmp_path / "m.pt", earlier, ExportOptions(overwrite=True))
    assert load_bundle(earlier).manifest == exported.manifest
    assert listing(tmp_path) == ["b", *(f"b/{name}" for name in listing(exported.path)), "m.pt"]


def test_a_difference_beyond_the_tolerance_writes_nothing(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(parity.LARGEST_DIFFERENCE, "fp32", -1.0)
    with pytest.raises(BackendError, match="differs from eager PyTorch"):
        export_bundle(small, tmp_path / "b", ExportOptions())
    assert listing(tmp_path) == []


def test_an_output_that_exists_is_refused_and_left_alone(exported: Bundle, small: Path, tmp_path: Path) -> None:
    output = shutil.copytree(exported.path, tmp_path / "b")
    with pytest.raises(OutputError, match="exists already"):
        export_bundle(small, output, ExportOptions())
    assert load_bundle(output).manifest == exported.manifest


def test_overwriting_replaces_a_bundle_whole_and_options_have_defaults(
    exported: Bundle, small: Path, tmp_path: Path
) -> None:
    output = shutil.copytree(exported.path, tmp_path / "b")
    bundle = export_bundle(small, output, ExportOptions(keep_checkpoint=False, overwrite=True))
    assert (bundle.manifest.name, bundle.manifest.stride, bundle.manifest.checkpoint) == ("small", (1, 16, 16), None)
    assert listing(tmp_path) == ["b", f"b/{MANIFEST}", f"b/{GRAPH}"]


def _folder(path: Path, bundle: Path) -> Path:
    path.mkdir()
    return path / "notes.txt"


def _file(path: Path, bundle: Path) -> Path:
    return path


def _page_with_a_manifest(path: Path, bundle: Path) -> Path:
    path.mkdir()
    (path / MANIFEST).write_text(json.dumps({"name": "a web page", "files": {}}))
    return path / "index.html"


def _bundle_with_notes(path: Path, bundle: Path) -> Path:
    shutil.copytree(bundle, path)
    return path / "notes.txt"


def _bundle_with_a_damaged_manifest(path: Path, bundle: Path) -> Path:
    shutil.copytree(bundle, path)
    return path / MANIFEST


@pytest.mark.parametrize(
    "make", [_folder, _file, _page_with_a_manifest, _bundle_with_notes, _bundle_with_a_damaged_manifest]
)
def test_overwriting_never_deletes_what_is_no_bundle(
    exported: Bundle, small: Path, tmp_path: Path, make: Callable[[Path, Path], Path]
) -> None:
    kept = make(tmp_path / "b", exported.path)
    kept.write_text("dear")
    before = listing(tmp_path)
    with pytest.raises(OutputError) as caught:
        export_bundle(small, tmp_path / "b", ExportOptions(overwrite=True))
    assert caught.value.remedy
    assert kept.read_text() == "dear"
    assert listing(tmp_path) == before


def test_an_output_below_a_file_is_refused(small: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        export_bundle(small, tmp_path / "file" / "b", ExportOptions())


FULL_DISK = """
import resource, sys
from pathlib import Path
from fgnet.export.bundle_writer import ExportOptions, export_bundle
from fgnet.volumes.errors import OutputError
model, output, limit = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    export_bundle(model, output, ExportOptions())
except OutputError as error:
    print(error)
"""


def test_a_full_disk_leaves_nothing_behind(small: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", FULL_DISK, small, tmp_path / "b", str(small.stat().st_size - 1)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    assert "the bundle cannot be written (File too large)" in done.stdout
    assert listing(tmp_path) == []


class Dangerous:
    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.witness,)


@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_a_checkpoint_that_needs_unpickling_is_refused_and_not_run(tmp_path: Path, writer: str) -> None:
    model, witness = tmp_path / "m.pt", tmp_path / "witness"
    content = {"format": "fgnet-checkpoint", "version": 1, "config": Dangerous(witness), "weights": {}}
    if writer == "torch":
        torch.save(content, model)
    else:
        model.write_bytes(pickle.dumps(content))
    with pytest.raises(CheckpointError):
        export_bundle(model, tmp_path / "b", ExportOptions())
    assert listing(tmp_path) == ["m.pt"]


@pytest.mark.parametrize("stride", [(3, 16, 16), (1, 33, 16), (0, 16, 16)])
def test_a_recommended_stride_that_leaves_gaps_is_refused(small: Path, tmp_path: Path, stride: Any) -> None:
    with pytest.raises(GeometryError, match="stride"):
        export_bundle(small, tmp_path / "b", ExportOptions(stride=stride))
    assert listing(tmp_path) == []


def test_patches_of_another_size_are_refused(small: Path, tmp_path: Path) -> None:
    with pytest.raises(GeometryError, match="patches to compare on"):
        export_bundle(small, tmp_path / "b", ExportOptions(), np.zeros((1, 2, 32, 16), np.uint8))


def test_patches_of_a_volume_are_its_first_and_its_last(small: Path, shared_data: Callable[[str], Path]) -> None:
    import h5py

    file = shared_data("gala_fib_train.h5")
    with h5py.File(file) as volumes:
        gray = volumes["raw"][:]
    patches = volume_patches(f"{file}:raw", small)
    np.testing.assert_array_equal(patches, np.stack([gray[:2, :32, :32], gray[-2:, -32:, -32:]]))


def test_a_volume_smaller_than_a_patch_is_mirrored(small: Path, tmp_path: Path) -> None:
    import zarr

    gray = np.random.default_rng(0).integers(0, 256, (1, 20, 32), dtype=np.uint8)
    zarr.create_array(str(tmp_path / "v.zarr"), data=gray)
    (patch,) = volume_patches(str(tmp_path / "v.zarr"), small)
    np.testing.assert_array_equal(patch[0, 20:], gray[0, 18:6:-1])
    np.testing.assert_array_equal(patch[0], patch[1])


def test_a_missing_parity_volume_is_an_error_of_ours(small: Path, tmp_path: Path) -> None:
    with pytest.raises(FGNetError, match="no such file"):
        volume_patches(str(tmp_path / "none.zarr"), small)
