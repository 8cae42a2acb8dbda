"""Checkpoint -> bundle: export, compare with eager PyTorch, and only then put the folder in its place."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fgnet.engine.backends import Backend
from fgnet.engine.bundle import MANIFEST, Bundle, BundleManifest, Precision, load_bundle, sha256
from fgnet.engine.gray_reader import GraySource
from fgnet.engine.run_plan import default_stride
from fgnet.export.engine_plans import build_plans
from fgnet.export.onnx_graph import save, single_graph
from fgnet.export.parity import require
from fgnet.export.precision_graphs import write_graphs
from fgnet.export.recommended_decoding import DecodingWishes, described
from fgnet.export.verification import choices, reference_of, verify
from fgnet.network.checkpoint import load_checkpoint
from fgnet.volumes.durability import put_in_place
from fgnet.volumes.errors import BackendError, BundleError, CheckpointError, GeometryError, OutputError
from fgnet.volumes.geometry import Triple
from fgnet.volumes.grid import PatchGrid

SINGLE = "model.onnx"

_REMEDY = "nothing was written; leave that precision or backend out, or pass --force to write it as failed"

Say = Callable[[str], None]


@dataclass(frozen=True)
class ExportOptions:
    """What is exported, and what the manifest recommends.

    Attributes:
        name: of the model; the checkpoint's file name by default.
        stride: recommended voxels between patches; half the patch by default.
        precisions: of the graphs, the first one the default of the bundle.
        backends: compared with eager PyTorch, and built for where they are TensorRT's; every installed one by default.
        sections: that one call of the encoder takes; the stride's z by default.
        single: whether the whole network goes into the bundle as one plain fp32 graph too.
        architectures: GPUs to build TensorRT engines for, such as "sm89"; the one present by default.
        calibration: where gray comes from that int8's scales are taken from.
        keep_checkpoint: whether the checkpoint goes into the bundle, for the eager baseline and for fine-tuning.
        decoding: what is said about the recommended decoder settings; the rest is as the checkpoint was validated.
        force: whether what is not equal to eager PyTorch is written all the same, marked as failed, or where nothing
            can be compared here.
        overwrite: whether a bundle that is there is replaced.
    """

    name: str | None = None
    stride: Triple | None = None
    precisions: tuple[Precision, ...] = ("fp32",)
    backends: tuple[Backend, ...] | None = None
    sections: int | None = None
    single: bool = False
    architectures: tuple[str, ...] = ()
    calibration: GraySource | None = None
    keep_checkpoint: bool = True
    decoding: DecodingWishes = field(default_factory=DecodingWishes)
    force: bool = False
    overwrite: bool = False


def export_bundle(
    model: Path,
    output: Path,
    options: ExportOptions,
    gray: npt.NDArray[np.uint8] | None = None,
    labels: npt.NDArray[Any] | None = None,
    say: Say = lambda _: None,
) -> Bundle:
    """Write a bundle.

    The folder appears complete or not at all: it is made beside its place and renamed once parity holds.

    Args:
        model: a checkpoint of fgnet-train.
        output: the bundle's folder.
        options: what to export.
        gray: (z, y, x) uint8 to compare on; synthetic neuropil by default.
        labels: true labels of gray, if they are known.
        say: told what is being done.

    Raises:
        CheckpointError: the checkpoint cannot be used.
        OutputError: the folder exists, or cannot be written.
        BackendError: a backend does not give eager PyTorch's affinities, or does not take the graphs, or none that was
            asked for runs here.
        DecodingError: decoder settings that no decoder takes.
        GeometryError: a stride that leaves gaps, or sections that do not fit a patch.
    """
    checkpoint = load_checkpoint(model)
    if checkpoint.training is not None:
        raise CheckpointError(
            "the state of a run: weights of its last step, which nobody validated, and what resuming needs",
            where=model,
            remedy="give the model.pt beside it",
        )
    decoding = options.decoding.settled(checkpoint.provenance)
    network = checkpoint.build()
    patch = checkpoint.config.patch
    stride = options.stride or default_stride(patch)
    PatchGrid(patch, patch, stride)
    sections = min(options.sections or stride[0], patch[0])
    if sections < 1:
        raise GeometryError(f"{sections} sections a call", where="--sections", remedy=f"give 1 to {patch[0]}")
    _require_free(output, options.overwrite)
    say(f"recommended decoding: {described(decoding)}")
    # Before the minutes of tracing, and so that broken weights are told from broken graphs.
    say("running eager PyTorch, to compare with")
    reference = reference_of(network, patch, stride, decoding, gray, labels)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as temporary:
            folder = Path(temporary) / "bundle"
            folder.mkdir()
            graphs = write_graphs(network, folder, sections, options.precisions, options.calibration, say)
            if options.single:
                say("tracing the whole network as one graph")
                save(single_graph(network), folder / SINGLE)
            kept = model.name if options.keep_checkpoint else None
            if kept is not None:
                shutil.copyfile(model, folder / kept)
            manifest = BundleManifest(
                name=options.name or model.stem,
                config=checkpoint.config.to_dict(),
                patch=patch,
                stride=stride,
                voxel_sizes=_sizes(checkpoint.provenance),
                files=_hashes(folder),
                sections=sections,
                graphs=graphs,
                single=SINGLE if options.single else None,
                checkpoint=kept,
                decoding=decoding,
                provenance=_provenance(checkpoint.provenance),
            )
            if not options.force:
                # Before engines are built, which takes minutes.
                _require_compared(choices(Bundle(folder, manifest), options.backends, lambda _: None), model, options)
            engines = build_plans(Bundle(folder, manifest), options.backends, options.architectures, say)
            manifest = replace(manifest, engines=engines, files=_hashes(folder))
            reports = verify(Bundle(folder, manifest), network, reference, options.backends, say, time.perf_counter)
            if not options.force:
                required = [one for one in reports if one.precision in options.precisions]
                _require_compared(required, model, options)
                require(required, model, _REMEDY)
            manifest = replace(manifest, parity=tuple(report.to_dict() for report in reports))
            (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
            put_in_place(folder, output, Path(temporary) / "replaced")
    except OSError as error:
        raise OutputError(
            f"the bundle cannot be written ({error.strerror or error})",
            where=output,
            remedy="free space or choose another folder",
        ) from error
    return load_bundle(output)


def _hashes(folder: Path) -> dict[str, str]:
    return {file.name: sha256(file) for file in sorted(folder.iterdir())}


def _require_compared(compared: Sequence[object], model: Path, options: ExportOptions) -> None:
    # Who names architectures builds engines for other machines, on which `--verify` compares them.
    if not compared and not options.architectures:
        asked = f"--backend {','.join(options.backends)}" if options.backends else "every installed backend"
        raise BackendError(
            f"nothing of {asked} at {', '.join(options.precisions)} can be compared with eager PyTorch here",
            where=model,
            remedy="nothing was written; add a --backend that runs here, or pass --force to write it uncompared",
        )


def _require_free(output: Path, overwrite: bool) -> None:
    if not output.exists():
        return
    if not overwrite:
        raise OutputError("exists already", where=output, remedy="choose another folder, or pass --overwrite")
    try:
        manifest = BundleManifest.from_json((output / MANIFEST).read_text(encoding="utf-8"), output / MANIFEST)
    except (OSError, UnicodeDecodeError, BundleError) as error:
        raise OutputError(
            "exists and is no bundle; it was not touched", where=output, remedy="choose another folder"
        ) from error
    if others := sorted({file.name for file in output.iterdir()} - {MANIFEST, *manifest.files}):
        raise OutputError(
            f"overwriting would delete what else it holds: {', '.join(others)}",
            where=output,
            remedy="choose another folder, or take them out first",
        )


def _sizes(provenance: dict[str, Any]) -> tuple[tuple[float, float, float], ...]:
    return tuple((float(z), float(y), float(x)) for z, y, x in provenance.get("voxel_sizes", []))


def _provenance(training: dict[str, Any]) -> dict[str, Any]:
    versions = {}
    for name in ("fgnet", "torch", "onnx", "onnxruntime", "onnxruntime-gpu"):
        # Of the last two, one is enough.
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return {"training": training, "versions": versions}
