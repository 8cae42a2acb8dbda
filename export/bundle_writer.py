"""Checkpoint -> bundle: export, compare with eager PyTorch, and only then put the folder in its place."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fgnet.engine.bundle import GRAPH, MANIFEST, Bundle, BundleManifest, Decoding, load_bundle, sha256
from fgnet.engine.inference import default_stride
from fgnet.engine.onnxruntime_runner import OnnxRuntimeRunner
from fgnet.engine.torch_runner import TorchRunner
from fgnet.export.onnx_graph import write_onnx
from fgnet.export.parity import compare, require
from fgnet.network.checkpoint import load_checkpoint
from fgnet.volumes.errors import BundleError, GeometryError, OutputError
from fgnet.volumes.geometry import Triple, as_triple
from fgnet.volumes.grid import PatchGrid, mirror_pad
from fgnet.volumes.neuropil import NeuropilOptions, make_neuropil
from fgnet.volumes.reading import open_volume, read_gray


@dataclass(frozen=True)
class ExportOptions:
    """What is exported, and what the manifest recommends.

    Attributes:
        name: of the model; the checkpoint's file name by default.
        stride: recommended voxels between patches; half the patch by default.
        keep_checkpoint: whether the checkpoint goes into the bundle, for the eager baseline and for fine-tuning.
        decoding: recommended decoder settings.
        overwrite: whether a bundle that is there is replaced.
    """

    name: str | None = None
    stride: Triple | None = None
    keep_checkpoint: bool = True
    decoding: Decoding = field(default_factory=Decoding)
    overwrite: bool = False


def sample_patches(patch: Triple) -> npt.NDArray[np.uint8]:
    """Two patches (2, z, y, x) of synthetic neuropil, isotropic and serial sections, to compare backends on."""
    volumes = [
        make_neuropil(NeuropilOptions(shape=patch, voxel_size=size, seed=seed)).raw
        for seed, size in enumerate(((10.0, 10.0, 10.0), (40.0, 4.0, 4.0)))
    ]
    return np.stack(volumes)


def volume_patches(address: str, model: Path) -> npt.NDArray[np.uint8]:
    """The first and the last patch (n, z, y, x) of a gray volume, of the size that a checkpoint's network takes.

    Raises:
        AddressError, VolumeError: the volume cannot be read.
        CheckpointError: the checkpoint cannot be used.
    """
    patch = load_checkpoint(model).config.patch
    with open_volume(address) as volume:
        grid = PatchGrid(as_triple(volume.shape, "shape"), patch, patch)
        blocks = [grid[0], grid[len(grid) - 1]] if len(grid) > 1 else [grid[0]]
        return np.stack([mirror_pad(read_gray(volume, block.intersect(volume.box)), patch) for block in blocks])


def export_bundle(
    model: Path, output: Path, options: ExportOptions, patches: npt.NDArray[np.uint8] | None = None
) -> Bundle:
    """Write a bundle.

    The folder appears complete or not at all: it is made beside its place and renamed once parity holds.

    Args:
        model: a checkpoint of fgnet-train.
        output: the bundle's folder.
        options: what to export.
        patches: (n, z, y, x) uint8 to compare on; synthetic neuropil by default.

    Raises:
        CheckpointError: the checkpoint cannot be used.
        OutputError: the folder exists, or cannot be written.
        BackendError: the exported graph does not give eager PyTorch's affinities.
        GeometryError: a stride that leaves gaps.
    """
    checkpoint = load_checkpoint(model)
    network = checkpoint.build()
    patch = checkpoint.config.patch
    stride = options.stride or default_stride(patch)
    PatchGrid(patch, patch, stride)
    _require_free(output, options.overwrite)
    if patches is None:
        patches = sample_patches(patch)
    if patches.shape[1:] != patch:
        raise GeometryError(f"the patches to compare on have shape {patches.shape[1:]}, not {patch}", where=model)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as temporary:
            folder = Path(temporary) / "bundle"
            folder.mkdir()
            write_onnx(network, folder / GRAPH)
            kept = model.name if options.keep_checkpoint else None
            if kept is not None:
                shutil.copyfile(model, folder / kept)
            manifest = BundleManifest(
                name=options.name or model.stem,
                config=checkpoint.config.to_dict(),
                patch=patch,
                stride=stride,
                voxel_sizes=_sizes(checkpoint.provenance),
                files={file.name: sha256(file) for file in sorted(folder.iterdir())},
                checkpoint=kept,
                decoding=options.decoding,
                provenance=_provenance(checkpoint.provenance),
            )
            reference = TorchRunner(network, patch)
            parity = compare(reference, OnnxRuntimeRunner(Bundle(folder, manifest)), patches)
            require(parity, where=model)
            manifest = replace(manifest, parity=parity.to_dict())
            (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
            if output.exists():
                output.rename(Path(temporary) / "replaced")
            folder.rename(output)
    except OSError as error:
        raise OutputError(
            f"the bundle cannot be written ({error.strerror or error})",
            where=output,
            remedy="free space or choose another folder",
        ) from error
    return load_bundle(output)


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
    versions = {name: metadata.version(name) for name in ("fgnet", "torch", "onnx", "onnxruntime")}
    return {"training": training, "versions": versions}
