"""The comparison with eager PyTorch on the command line of fgnet-export: on what, and how it is told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import typer

from fgnet.cli.console import optional_packages, print_json, print_renderable, say

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from fgnet.engine.backends import Backend
    from fgnet.engine.bundle import Bundle
    from fgnet.export.parity import Parity
    from fgnet.volumes.geometry import Box

_PARITY_CROP = (24, 256, 384)


def parity_crop(
    volume: str | None, labels: str | None, roi: str | None
) -> tuple[npt.NDArray[np.uint8] | None, npt.NDArray[Any] | None]:
    """Reads gray (z, y, x) uint8 to compare on, and its true labels, as far as their addresses are given.

    Args:
        volume: address of gray.
        labels: address of labels of the same shape.
        roi: region of both, in voxels; the middle, as much of it as eager PyTorch runs in minutes, by default.

    Raises:
        AddressError, VolumeError, GeometryError: what the files or the region are refused for.
    """
    from fgnet.volumes.geometry import parse_roi
    from fgnet.volumes.reading import open_volume, read_gray, read_labels

    if volume is None:
        if labels is not None or roi is not None:
            raise typer.BadParameter("they belong to --parity-volume", param_hint="--parity-labels, --parity-roi")
        return None, None
    with open_volume(volume, holds="gray") as opened:
        shape = opened.box.shape
        box = parse_roi(roi, shape) if roi else _middle(opened.box)
        gray = read_gray(opened, box)
    if labels is None:
        return gray, None
    with open_volume(labels, holds="labels") as opened:
        if opened.box.shape != shape:
            raise typer.BadParameter(f"shape {opened.box.shape}, the gray's is {shape}", param_hint="--parity-labels")
        return gray, read_labels(opened, box)


def _middle(whole: Box) -> Box:
    """As much of the middle of a volume as eager PyTorch runs in minutes."""
    from fgnet.volumes.geometry import Box, as_triple

    start = [max(0, (extent - most) // 2) for extent, most in zip(whole.shape, _PARITY_CROP, strict=True)]
    stop = [min(extent, at + most) for extent, at, most in zip(whole.shape, start, _PARITY_CROP, strict=True)]
    return Box(as_triple(start, "start"), as_triple(stop, "stop"))


def verify_bundle(
    bundle: Bundle,
    backends: tuple[str, ...] | None,
    gray: npt.NDArray[np.uint8] | None,
    labels: npt.NDArray[Any] | None,
    *,
    as_json: bool,
) -> None:
    """Compares a bundle's backends with eager PyTorch on this machine, and prints how far they are apart.

    Args:
        bundle: with its checkpoint.
        backends: to compare; every installed one by default.
        gray: (z, y, x) uint8 to compare on; synthetic neuropil by default.
        labels: its true labels, if they are known.
        as_json: whether one JSON object is printed.

    Raises:
        BackendError: one does not give eager PyTorch's affinities at a precision of the bundle's graphs, or nothing was
            compared.
    """
    import time

    with optional_packages("train"):
        from fgnet.export.verification import reference_of
        from fgnet.export.verification import verify as compare_all
        from fgnet.network.checkpoint import load_checkpoint
    from fgnet.export.parity import require
    from fgnet.volumes.errors import BackendError

    manifest = bundle.manifest
    network = load_checkpoint(bundle.checkpoint).build()
    say("running eager PyTorch, to compare with")
    reference = reference_of(network, manifest.patch, manifest.stride, manifest.decoding, gray, labels)
    wanted = cast("tuple[Backend, ...] | None", backends)
    reports: list[Parity] = compare_all(bundle, network, reference, wanted, say, time.perf_counter)
    if not reports:
        raise BackendError("nothing was compared", where=bundle.path, remedy="name a --backend that this machine runs")
    parity = [report.to_dict() for report in reports]
    if as_json:
        print_json({"bundle": str(bundle.path), "parity": parity})
    else:
        print_renderable(parity_table(parity))
    # As at the export: OpenVINO casts fp32 graphs to bf16 without being asked for it, and that is told, not required.
    held = {graphs.precision for graphs in manifest.graphs}
    required = [report for report in reports if report.precision in held]
    require(required, bundle.path, "these backends cannot be relied on here: choose another --backend or --precision")


def parity_table(parity: list[dict[str, Any]]) -> Any:
    """Reports as a table."""
    from rich.table import Table

    table = Table(title="against eager PyTorch, FP32")
    for heading in ("backend", "precision", "device"):
        table.add_column(heading)
    for heading in ("largest", "mean", "off by > 2", "not finite", "VOI apart", "ARAND", "VOI moved", "s per block"):
        table.add_column(heading, justify="right")
    table.add_column("")
    for report in parity:
        table.add_row(
            report["backend"],
            report["precision"],
            report["device"],
            f"{report['largest']:.2g}",
            f"{report['mean']:.2g}",
            f"{report['off']:.2%}",
            str(report["not_finite"]),
            f"{report['voi_split'] + report['voi_merge']:.4f}",
            f"{report['arand']:.4f}",
            f"{report['voi'] - report['voi_eager']:+.4f}",
            f"{report['seconds']:.2f}",
            "equal" if report["passed"] else "FAILED",
        )
    return table
