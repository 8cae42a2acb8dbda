"""fgnet-run's pipeline with a real network on real tissue, against a loop over patches that blends in NumPy."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from fgnet.engine.bundle import load_bundle
from fgnet.engine.onnxruntime_runner import OnnxRuntimeRunner
from fgnet.engine.pipeline import OneProcess, segment_volume
from fgnet.engine.run_options import RunOptions
from fgnet.postproc.blending import WeightKind, make_weights
from fgnet.volumes.geometry import Box, Triple
from fgnet.volumes.reading import open_volume


def reference(
    gray: npt.NDArray[np.uint8],
    infer: Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]],
    patch: Triple,
    stride: Triple,
    kind: WeightKind,
) -> npt.NDArray[np.float64]:
    """Affinities (3, z, y, x), 0 to 255, of a whole volume in memory; nothing of the engine's but the weights."""
    missing = [(0, max(wanted - extent, 0)) for extent, wanted in zip(gray.shape, patch, strict=True)]
    padded = np.pad(gray, missing, mode="reflect")
    weights = make_weights(kind, patch).dense().astype(np.float64)
    sums, total = np.zeros((3, *padded.shape)), np.zeros(padded.shape)
    axes = [
        sorted({*range(0, max(extent - side, 0), step), max(extent - side, 0)})
        for extent, side, step in zip(gray.shape, patch, stride, strict=True)
    ]
    for corner in itertools.product(*axes):
        at = tuple(slice(first, first + side) for first, side in zip(corner, patch, strict=True))
        sums[(slice(None), *at)] += weights * infer(padded[at])
        total[at] += weights
    blended: npt.NDArray[np.float64] = (sums / total)[(slice(None), *map(slice, gray.shape))]
    return blended


@pytest.mark.parametrize(
    ("crop", "stride", "region", "kind"),
    [
        ((9, 100, 110), (2, 32, 32), None, "gaussian"),
        ((9, 100, 110), (3, 40, 50), Box((2, 7, 33), (8, 90, 101)), "bump"),
        ((12, 64, 150), (4, 64, 64), Box((5, 0, 100), (6, 64, 150)), "constant"),
        ((3, 50, 130), (1, 33, 64), None, "gaussian"),
        ((7, 64, 64), (4, 1, 1), None, "gaussian"),
    ],
    ids=str,
)
def test_a_run_over_real_tissue_is_within_a_level_of_a_loop_over_patches(
    shared_data: Callable[[str], Path],
    tiny_bundle: Path,
    tmp_path: Path,
    crop: Triple,
    stride: Triple,
    region: Box | None,
    kind: WeightKind,
) -> None:
    import onnxruntime

    bundle = load_bundle(tiny_bundle)
    sections, (graphs, *_) = bundle.manifest.sections, bundle.manifest.graphs
    assert graphs.encoder is not None
    encoder, decoder = (
        onnxruntime.InferenceSession(str(tiny_bundle / name), providers=["CPUExecutionProvider"])
        for name in (graphs.encoder, graphs.decoder)
    )
    names = [value.name for value in encoder.get_outputs()]
    takes = {value.name for value in decoder.get_inputs()}

    def infer(block: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        calls = [encoder.run(names, {"gray": block[i : i + sections]}) for i in range(0, len(block), sections)]
        features = {name: np.concatenate([call[k] for call in calls]) for k, name in enumerate(names)}
        given = {name: value for name, value in {"gray": block, **features}.items() if name in takes}
        (affinities,) = decoder.run(None, given)
        result: npt.NDArray[np.float32] = affinities.astype(np.float32)
        return result

    with open_volume(f"{shared_data('fib25_t2.h5')}:raw") as volume:
        gray = np.ascontiguousarray(volume.read(Box.from_shape(crop).shift((4, 10, 20))))
    import zarr

    zarr.create_array(str(tmp_path / "v.zarr"), shape=crop, chunks=(4, 40, 40), dtype="u1")[:] = gray
    runner = OnnxRuntimeRunner(bundle, threads=1)
    options = RunOptions(tmp_path / "out.zarr", 0.5, "none", stride=stride, box=region, blending=kind, memory=3 << 20)
    with open_volume(tmp_path / "v.zarr") as volume:
        segment_volume(volume, OneProcess(runner), options)
    runner.close()
    with open_volume(tmp_path / "out.zarr", ndim=(4,)) as made:
        found = made.read(made.box)
    inside = (region or Box.from_shape(crop)).slices
    expected = reference(gray, infer, bundle.manifest.patch, stride, kind)[(slice(None), *inside)]
    assert found.shape == expected.shape
    difference = np.abs(found - expected)
    assert difference.max() <= 1
    # Rounding explains half a level.
    assert (difference > 0.51).mean() < 1e-4
