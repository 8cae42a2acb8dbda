from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="the export needs the extra fgnet[train]")
torch = pytest.importorskip("torch", reason="the export needs the extra fgnet[train]")
pytest.importorskip("sam2", reason="the export needs the extra fgnet[train]")
pytest.importorskip("onnxruntime", reason="graphs are run with the extra fgnet[cpu]")

from fgnet.engine.bundle import MANIFEST, Bundle, Decoding, Graphs, load_bundle, sha256  # noqa: E402
from fgnet.engine.columns import run_block  # noqa: E402
from fgnet.engine.onnxruntime_runner import OnnxRuntimeRunner  # noqa: E402
from fgnet.engine.torch_runner import TorchRunner  # noqa: E402
from fgnet.export import bundle_writer, verification  # noqa: E402
from fgnet.export.bundle_writer import SINGLE, ExportOptions, export_bundle  # noqa: E402
from fgnet.export.recommended_decoding import DecodingWishes  # noqa: E402
from fgnet.network.checkpoint import load_checkpoint, save_checkpoint  # noqa: E402
from fgnet.volumes.errors import BackendError, CheckpointError, GeometryError, OutputError  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_torch_thread")

PATCH = (2, 32, 32)
DECODER = "decoder.onnx"


@pytest.fixture(scope="session")
def exported(small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, list[str]]:
    """A bundle and what was said while it was written; not to be changed."""
    said: list[str] = []
    advice = DecodingWishes("affinity", "mean", 75, 0.25)
    options = ExportOptions("mine", (1, 8, 32), backends=("onnxruntime",), sections=5, single=True, decoding=advice)
    gray = np.random.default_rng(0).integers(0, 256, (3, 40, 32), dtype=np.uint8)
    output = tmp_path_factory.mktemp("deep") / "er" / "small.bundle"
    return export_bundle(small_checkpoint, output, options, gray, say=said.append), said


@pytest.fixture
def bundle(exported: tuple[Bundle, list[str]]) -> Bundle:
    return exported[0]


def listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_the_manifest_says_what_was_exported_and_from_what(bundle: Bundle, small_checkpoint: Path) -> None:
    manifest = load_bundle(bundle.path).manifest
    assert manifest == bundle.manifest
    assert (manifest.name, manifest.patch, manifest.stride) == ("mine", PATCH, (1, 8, 32))
    # No more than a block has.
    assert manifest.sections == 2
    assert manifest.config == load_checkpoint(small_checkpoint).config.to_dict()
    assert manifest.decoding == Decoding("affinity", "mean", 75, 0.25)
    assert manifest.voxel_sizes == ((30.0, 6.0, 6.0),)
    assert (manifest.graphs, manifest.single, manifest.engines) == ((Graphs("fp32", DECODER, None),), SINGLE, ())
    assert listing(bundle.path) == sorted([DECODER, MANIFEST, SINGLE, "small.pt"])
    assert manifest.files == {name: sha256(bundle.path / name) for name in (DECODER, SINGLE, "small.pt")}
    assert bundle.checkpoint.read_bytes() == small_checkpoint.read_bytes()
    assert manifest.provenance["training"] == load_checkpoint(small_checkpoint).provenance
    assert {"fgnet", "torch", "onnx", "onnxruntime"} == manifest.provenance["versions"].keys()


def test_what_is_recommended_and_what_takes_time_is_said(exported: tuple[Bundle, list[str]]) -> None:
    assert exported[1] == [
        "recommended decoding: affinity, mean, threshold 0.25",
        "running eager PyTorch, to compare with",
        "tracing the encoder and the decoder",
        "writing the fp32 graphs",
        "tracing the whole network as one graph",
        "comparing onnxruntime fp32",
    ]


def test_the_parity_in_the_manifest_is_that_of_its_files(bundle: Bundle) -> None:
    (recorded,) = bundle.manifest.parity
    assert recorded["passed"]
    assert (recorded["backend"], recorded["precision"], recorded["device"]) == ("onnxruntime", "fp32", "cpu")
    # Blocks of 2 x 32 x 32 in 3 x 40 x 32.
    assert (recorded["blocks"], recorded["not_finite"]) == (4, 0)
    assert recorded["largest"] < 1e-4
    assert recorded["against"] == "eager"
    gray = np.random.default_rng(5).integers(0, 256, PATCH, dtype=np.uint8)
    eager = TorchRunner(load_checkpoint(bundle.checkpoint).build(), PATCH, device="cpu").run(gray)
    found = run_block(OnnxRuntimeRunner(bundle, threads=1), gray)
    np.testing.assert_allclose(found, eager.astype(np.float64) * 255, rtol=0, atol=0.5 + 255 * 1e-5)


def with_weights(checkpoint: Path, path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A checkpoint whose weights were changed in place."""
    held = load_checkpoint(checkpoint)
    weights = {key: value.clone() for key, value in held.weights.items()}
    change(weights)
    save_checkpoint(path, replace(held, weights=weights))
    return path


def overflow_in_fp16(weights: dict[str, Any]) -> None:
    """Affinities as moderate as before, but what the decoder holds in between is too large for fp16; no weight is."""
    weights["refined.narrows.1.weight"] *= 6e4 / weights["refined.narrows.1.weight"].abs().max()
    weights["refined.narrows.1.bias"].fill_(6e4)
    weights["refined.narrows.0.weight"] /= 6e4


def test_weights_that_are_broken_are_told_and_an_earlier_bundle_is_left(
    bundle: Bundle, small_checkpoint: Path, tmp_path: Path
) -> None:
    earlier = shutil.copytree(bundle.path, tmp_path / "b")
    model = with_weights(small_checkpoint, tmp_path / "m.pt", lambda w: w["refined.head.weight"].fill_(torch.nan))
    with pytest.raises(BackendError, match="eager PyTorch gives affinities that are not finite"):
        export_bundle(model, earlier, ExportOptions(overwrite=True))
    assert load_bundle(earlier).manifest == bundle.manifest
    assert listing(tmp_path) == ["b", *(f"b/{name}" for name in listing(bundle.path)), "m.pt"]


def test_a_precision_that_overflows_writes_nothing_unless_forced_and_is_then_marked(
    small_checkpoint: Path, tmp_path: Path
) -> None:
    model = with_weights(small_checkpoint, tmp_path / "m.pt", overflow_in_fp16)
    options = ExportOptions(precisions=("fp32", "fp16"), backends=("onnxruntime",))
    with pytest.raises(BackendError, match=r"not equal .*: onnxruntime fp16: \d+ numbers are not finite") as caught:
        export_bundle(model, tmp_path / "b", options)
    assert "fp32:" not in str(caught.value)
    assert caught.value.remedy is not None
    assert "--force" in caught.value.remedy
    assert listing(tmp_path) == ["m.pt"]
    forced = export_bundle(model, tmp_path / "b", replace(options, force=True))
    assert [(r["precision"], r["passed"]) for r in forced.manifest.parity] == [("fp32", True), ("fp16", False)]
    assert [r["not_finite"] > 0 for r in forced.manifest.parity] == [False, True]


@pytest.mark.parametrize(
    ("backends", "told"),
    [
        (("torch",), "nothing of --backend torch at fp32"),
        # Not even engines are built, which would take minutes.
        (("tensorrt", "tensorrt-rtx"), "nothing of --backend tensorrt,tensorrt-rtx at fp32"),
    ],
)
def test_what_nothing_here_can_be_compared_with_is_refused(
    small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backends: Any, told: str
) -> None:
    monkeypatch.setattr(verification, "gpu_present", lambda: False)
    with pytest.raises(BackendError, match=f"{told} can be compared") as caught:
        export_bundle(small_checkpoint, tmp_path / "b", ExportOptions(backends=backends))
    assert (caught.value.where, "--force" in str(caught.value.remedy)) == (str(small_checkpoint), True)
    assert listing(tmp_path) == []


def test_engines_for_other_machines_are_built_without_a_comparison(
    small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verification, "gpu_present", lambda: False)
    monkeypatch.setattr(bundle_writer, "build_plans", lambda *_: ())
    said: list[str] = []
    options = ExportOptions(backends=("tensorrt-rtx",), architectures=("sm89",))
    made = export_bundle(small_checkpoint, tmp_path / "b", options, say=said.append)
    assert made.manifest.parity == ()
    assert any("tensorrt-rtx is not compared: it needs a GPU" in line for line in said)


def test_what_was_not_compared_in_the_end_is_refused_too(
    small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each backend that might have been compared did not start.
    monkeypatch.setattr(bundle_writer, "verify", lambda *_: [])
    with pytest.raises(BackendError, match="nothing of every installed backend at fp32 can be compared"):
        export_bundle(small_checkpoint, tmp_path / "b", ExportOptions())
    assert listing(tmp_path) == []


def test_what_was_compared_with_nothing_is_written_by_force(small_checkpoint: Path, tmp_path: Path) -> None:
    forced = export_bundle(small_checkpoint, tmp_path / "b", ExportOptions(backends=("torch",), force=True))
    assert (forced.manifest.parity, [graphs.precision for graphs in forced.manifest.graphs]) == ((), ["fp32"])


def test_an_output_that_exists_is_refused_and_left_alone(
    bundle: Bundle, small_checkpoint: Path, tmp_path: Path
) -> None:
    output = shutil.copytree(bundle.path, tmp_path / "b")
    with pytest.raises(OutputError, match="exists already"):
        export_bundle(small_checkpoint, output, ExportOptions())
    assert load_bundle(output).manifest == bundle.manifest


def test_overwriting_replaces_a_bundle_whole_and_options_have_defaults(
    bundle: Bundle, small_checkpoint: Path, tmp_path: Path
) -> None:
    output = shutil.copytree(bundle.path, tmp_path / "b")
    found = export_bundle(small_checkpoint, output, ExportOptions(keep_checkpoint=False, overwrite=True))
    manifest = found.manifest
    assert (manifest.name, manifest.stride, manifest.sections) == ("small", (1, 16, 16), 1)
    assert (manifest.checkpoint, manifest.single) == (None, None)
    assert {"onnxruntime"} <= {report["backend"] for report in manifest.parity}
    assert listing(tmp_path) == ["b", f"b/{DECODER}", f"b/{MANIFEST}"]


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
    bundle: Bundle, small_checkpoint: Path, tmp_path: Path, make: Callable[[Path, Path], Path]
) -> None:
    kept = make(tmp_path / "b", bundle.path)
    kept.write_text("dear")
    before = listing(tmp_path)
    with pytest.raises(OutputError) as caught:
        export_bundle(small_checkpoint, tmp_path / "b", ExportOptions(overwrite=True))
    assert caught.value.remedy
    assert kept.read_text() == "dear"
    assert listing(tmp_path) == before


def test_an_output_below_a_file_is_refused(small_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        export_bundle(small_checkpoint, tmp_path / "file" / "b", ExportOptions())


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


def test_a_full_disk_leaves_nothing_behind(small_checkpoint: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", FULL_DISK, small_checkpoint, tmp_path / "b", "10000"]
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


@pytest.mark.parametrize("sections", [-1, -5])
def test_calls_of_no_section_are_refused(small_checkpoint: Path, tmp_path: Path, sections: int) -> None:
    with pytest.raises(GeometryError, match=f"--sections: {sections} sections a call .*1 to 2"):
        export_bundle(small_checkpoint, tmp_path / "b", ExportOptions(sections=sections))
    assert listing(tmp_path) == []


@pytest.mark.parametrize("stride", [(3, 16, 16), (1, 33, 16), (0, 16, 16)])
def test_a_recommended_stride_that_leaves_gaps_is_refused(small_checkpoint: Path, tmp_path: Path, stride: Any) -> None:
    with pytest.raises(GeometryError, match="stride"):
        export_bundle(small_checkpoint, tmp_path / "b", ExportOptions(stride=stride))
    assert listing(tmp_path) == []
