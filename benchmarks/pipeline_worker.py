"""A process that goes a way of PyTorch's users from a volume to its segmentation, with all of it in memory.

`python -m fgnet.benchmarks.pipeline_worker`: the order comes as JSON on stdin, figures go into the file that it names.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import zarr

from fgnet.engine.bundle import MANIFEST, Bundle, BundleManifest
from fgnet.engine.process_memory import peak_memory
from fgnet.postproc.blending import make_weights
from fgnet.postproc.waterz_decoder import WaterzOptions, compact_ids, decode_waterz, remove_small
from fgnet.volumes.errors import BackendError, FGNetError
from fgnet.volumes.geometry import Triple
from fgnet.volumes.grid import PatchGrid, mirror_pad
from fgnet.volumes.kept_memory import keep_memory
from fgnet.volumes.reading import open_volume, read_gray
from fgnet.volumes.writing import CHUNKS

if TYPE_CHECKING:
    from torch import Tensor

    from fgnet.engine.torch_runner import EagerNetwork

Gray = npt.NDArray[np.uint8]
Affinities = npt.NDArray[np.float32]


def main() -> None:
    """Take the order, and follow it."""
    order = json.load(sys.stdin)
    try:
        if order["keeps_memory"] and not keep_memory():
            raise BackendError("this system's C library cannot be told to keep memory", where="mallopt")
        figures = _segment(order)
    except FGNetError as error:
        sys.exit(f"error: {error}")
    Path(order["figures"]).write_text(json.dumps(figures), encoding="utf-8")


class Clock:
    """Seconds of stages, which may come again and again."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(("read", "inference", "blending", "decode", "write"), 0.0)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add what happens in a `with` statement to a stage."""
        began = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - began


class Eager:
    """A network in eager PyTorch, fp32.

    Args:
        network: to be run.
        patch: (z, y, x) voxels of a block.
        device: cpu or cuda.
        clock: whose stage "inference" is its time.
    """

    def __init__(self, network: EagerNetwork, patch: Triple, device: str, clock: Clock) -> None:
        import torch

        if device == "cuda" and not torch.cuda.is_available():
            raise BackendError("PyTorch finds no GPU", where="backend torch", remedy="choose --device cpu")
        self._torch, self.patch, self.device, self.clock = torch, patch, device, clock
        placed: EagerNetwork = network.eval().to(device)
        self._infer = placed.infer

    def tensor(self, gray: Gray) -> Tensor:
        """Gray (z, y, x) uint8 -> (1, 1, z, y, x) float32 in [0, 1], on the device."""
        return self._torch.from_numpy(gray[None, None]).to(self.device).float() / 255

    def predict(self, block: Tensor) -> Tensor:
        """Gray (1, 1, z, y, x) -> affinities (1, 3, z, y, x) float32 in [0, 1], which are there when it returns."""
        with self.clock.stage("inference"), self._torch.inference_mode():
            affinities = self._torch.sigmoid(self._infer(block))
            if self.device == "cuda":
                self._torch.cuda.synchronize()
            return affinities


def paper_affinities(gray: Gray, eager: Eager) -> Affinities:
    """Affinities (3, z, y, x) in [0, 1] as the paper makes them: a block every half patch on each axis, blended.

    The Gaussian weights are those of fgnet-run, and so is the grid: the last block of an axis ends with the volume, and
    a volume smaller than a block is mirrored.

    Source: arXiv 2511.13063 (blocks of 16 x 256 x 256 every 8 x 128 x 128 voxels).
    """
    patch = eager.patch
    z, y, x = (max(1, extent // 2) for extent in patch)
    grid = PatchGrid((gray.shape[0], gray.shape[1], gray.shape[2]), patch, (z, y, x))
    with eager.clock.stage("blending"):
        padded = mirror_pad(gray, grid.padded)
        weights = make_weights("gaussian", patch).dense()
        sums, totals = np.zeros((3, *grid.padded), np.float32), np.zeros(grid.padded, np.float32)
    for box in grid:
        with eager.clock.stage("blending"):
            block = eager.tensor(padded[box.slices])
        affinities = eager.predict(block)
        with eager.clock.stage("blending"):
            sums[(slice(None), *box.slices)] += affinities[0].cpu().numpy() * weights
            totals[box.slices] += weights
    with eager.clock.stage("blending"):
        sums /= totals
        return np.ascontiguousarray(sums[:, : gray.shape[0], : gray.shape[1], : gray.shape[2]])


def monai_affinities(gray: Gray, eager: Eager) -> Affinities:
    """Affinities (3, z, y, x) in [0, 1] by MONAI's sliding window; what it takes beside the network is blending.

    As it comes: the standard deviation of its Gaussian is an eighth of the patch (ours: a tenth), and a volume smaller
    than a block is padded with zeros on both sides.
    """
    import torch
    from monai.inferers.utils import sliding_window_inference

    began, before = time.perf_counter(), eager.clock.seconds["inference"]
    with torch.inference_mode():
        stack = eager.tensor(gray)
        blended = sliding_window_inference(stack, eager.patch, 1, eager.predict, overlap=0.5, mode="gaussian")
    affinities: Affinities = np.ascontiguousarray(blended[0].cpu().numpy())
    whole = time.perf_counter() - began
    eager.clock.seconds["blending"] += whole - (eager.clock.seconds["inference"] - before)
    return affinities


def _segment(order: dict[str, Any]) -> dict[str, Any]:
    """From the volume's first byte read to the last label written."""
    import torch

    from fgnet.network.checkpoint import load_checkpoint

    if order["kind"] == "monai":
        # Where it takes seconds to import, they are no part of blending.
        import monai.inferers  # noqa: F401
    if order["threads"] is not None:
        torch.set_num_threads(order["threads"])
    path = Path(order["bundle"])
    # Who gave the order has checked the files against their hashes.
    bundle = Bundle(path, BundleManifest.from_json((path / MANIFEST).read_text(encoding="utf-8"), path))
    clock = Clock()
    network = load_checkpoint(bundle.checkpoint).build()
    eager = Eager(network, bundle.manifest.patch, order["device"], clock)
    with clock.stage("read"), open_volume(order["volume"], holds="gray") as volume:
        gray = read_gray(volume, volume.box)
    affinities = paper_affinities(gray, eager) if order["kind"] == "paper" else monai_affinities(gray, eager)
    with clock.stage("decode"):
        (labels,) = decode_waterz(affinities, [order["threshold"]], WaterzOptions(**order["waterz"]))
        if order["min_size"] > 1:
            labels = remove_small(labels, order["min_size"])
        labels = compact_ids(labels)
    with clock.stage("write"):
        chunks = tuple(min(pair) for pair in zip(CHUNKS, labels.shape, strict=True))
        zarr.create_array(order["output"], shape=labels.shape, chunks=chunks, dtype="uint64")[:] = labels
    return {
        "stages": clock.seconds,
        "segments": int(labels.max()),
        "peak_memory_bytes": peak_memory(),
        "backend": f"torch {torch.__version__}",
        "precision": "fp32",
        "device": "cpu" if order["device"] == "cpu" else torch.cuda.get_device_name(),
        "threads": torch.get_num_threads() if order["device"] == "cpu" else None,
    }


if __name__ == "__main__":
    main()
