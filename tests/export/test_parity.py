"""Backends that are wrong in ways that are known, judged by how wrong they are."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

torch = pytest.importorskip("torch", reason="the network needs the extra fgnet[train]")
pytest.importorskip("sam2", reason="the network needs the extra fgnet[train]")
pytest.importorskip("onnxruntime", reason="graphs are run with the extra fgnet[cpu]")

from fgnet.engine.bundle import PRECISIONS, Bundle  # noqa: E402
from fgnet.engine.device import Buffer  # noqa: E402
from fgnet.engine.onnxruntime_runner import OnnxRuntimeRunner  # noqa: E402
from fgnet.engine.torch_runner import TorchRunner  # noqa: E402
from fgnet.export.parity import TOLERANCES, Parity, Reference, failures, require  # noqa: E402
from fgnet.export.verification import reference_of  # noqa: E402
from fgnet.network.checkpoint import load_checkpoint  # noqa: E402
from fgnet.volumes.errors import BackendError  # noqa: E402
from fgnet.volumes.neuropil import Neuropil, NeuropilOptions, make_neuropil  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_torch_thread")

Bytes = npt.NDArray[np.uint8]
Judge = Callable[..., Parity]


class WrongRunner(OnnxRuntimeRunner):
    """ONNX Runtime with its affinities changed by a function, under the name of any precision."""

    def __init__(self, bundle: Bundle, change: Callable[[Bytes], Bytes], precision: str = "fp32") -> None:
        super().__init__(bundle, precision="fp32", threads=1)
        self._change, self.precision = change, precision

    def decode(self, slot: int, affinities: Buffer) -> None:
        super().decode(slot, affinities)
        affinities.host[...] = self._change(affinities.host.copy())


@pytest.fixture(scope="module")
def neuropil(bundle: Bundle) -> Neuropil:
    """Two blocks along z, so that features are reused, and two along x."""
    depth, rows, columns = (side + step for side, step in zip(bundle.manifest.patch, bundle.manifest.stride))  # noqa: B905
    return make_neuropil(NeuropilOptions((depth, rows, columns), (10.0, 10.0, 10.0), 2))


@pytest.fixture(scope="module")
def reference(bundle: Bundle, neuropil: Neuropil) -> Reference:
    """Without labels."""
    manifest = bundle.manifest
    network = load_checkpoint(bundle.checkpoint).build()
    return reference_of(network, manifest.patch, manifest.stride, manifest.decoding, neuropil.raw)


@pytest.fixture(scope="module")
def judge(bundle: Bundle, reference: Reference) -> Judge:
    """What a change of the affinities is reported to be, under the name of a precision."""

    def run(change: Callable[[Bytes], Bytes], precision: str = "fp32", not_finite: int = 0) -> Parity:
        ticks = itertools.count()
        return reference.compare(WrongRunner(bundle, change, precision), not_finite, lambda: next(ticks) / 2)

    return run


def shifted(levels: int) -> Callable[[Bytes], Bytes]:
    """Every affinity off by some levels, away from the nearer end, so that none is cut."""
    return lambda bytes_: np.where(bytes_ < 128, bytes_ + levels, bytes_ - levels).astype(np.uint8)


def test_a_backend_that_is_right_passes_and_its_figures_are_those_of_rounding(
    judge: Judge, reference: Reference
) -> None:
    report = judge(lambda bytes_: bytes_)
    assert report.passed
    assert not list(failures(report))
    assert report.largest < 1e-4
    assert (report.off, report.not_finite, report.blocks) == (0, 0, 8)
    # A tick is half a second, and each block takes one.
    assert report.seconds == 0.5
    assert (report.backend, report.precision, report.device) == ("onnxruntime", "fp32", "cpu")
    assert report.segments == len(np.unique(reference.segmentation[reference.segmentation > 0])) > 1
    require([report], "here", "none")


@pytest.mark.parametrize("levels", [1, 2, 3, 10])
def test_a_shift_is_measured_in_full_beyond_what_rounding_explains(judge: Judge, levels: int) -> None:
    report = judge(shifted(levels))
    assert report.largest * 255 == pytest.approx(levels, abs=0.02)
    assert levels - 1 < report.mean * 255 < levels
    # Where an affinity lies between two levels, ONNX Runtime and PyTorch may round to either.
    assert report.off == pytest.approx(float(levels > 2), abs=1e-3)
    assert not report.passed
    told = list(failures(report))
    assert told[0] == f"largest difference {report.largest:.3g}, allowed 0.001"
    assert told[1] == f"mean difference {report.mean:.3g}, allowed 1e-05"
    assert any("share off by more than 2" in text for text in told) == (report.off > 0)


def test_a_few_affinities_that_are_flipped_are_found_among_all(judge: Judge) -> None:
    def flip(bytes_: Bytes) -> Bytes:
        bytes_[2, 1, 7, 3:6] = np.where(bytes_[2, 1, 7, 3:6] < 128, 255, 0)
        return bytes_

    report = judge(flip, "fp16")
    assert 0.5 <= report.largest <= 1
    assert report.mean < TOLERANCES["fp16"].mean
    assert report.off == pytest.approx(3 / (3 * 4 * 64 * 64), rel=0.1)
    assert not report.passed
    assert f"largest difference {report.largest:.3g}, allowed 0.1" in failures(report)


def test_a_wrong_section_of_reused_features_is_found(bundle: Bundle, reference: Reference) -> None:
    class Forgetful(OnnxRuntimeRunner):
        """Features of the first section of a block are lost when a block above it is encoded."""

        def decode(self, slot: int, affinities: Buffer) -> None:
            if slot > 0:
                for array in self.features():
                    array[slot] = 0
            super().decode(slot, affinities)

    report = reference.compare(Forgetful(bundle, threads=1), 0, lambda: 0.0)
    assert not report.passed
    assert report.off > 0.01


def test_segmentations_that_differ_fail_where_affinities_may(judge: Judge) -> None:
    def wall(bytes_: Bytes) -> Bytes:
        bytes_[:, :, :, 30:32] = 0
        return bytes_

    report = judge(wall, "int8")
    assert report.moved > TOLERANCES["int8"].voi
    assert not report.passed
    assert [text for text in failures(report) if "VOI" in text] == [
        f"VOI against the eager moves by {report.moved:.3f}, allowed 0.020"
    ]


def test_numbers_that_are_not_finite_fail_however_close_the_affinities(judge: Judge) -> None:
    report = judge(lambda bytes_: bytes_, not_finite=7)
    assert not report.passed
    assert list(failures(report)) == ["7 numbers are not finite"]


def test_a_refusal_names_every_backend_that_failed_and_none_that_passed(judge: Judge) -> None:
    good, bad = judge(lambda bytes_: bytes_), judge(shifted(3), "fp16")
    reports = [good, replace(bad, backend="openvino"), replace(bad, backend="mine", largest=0.5)]
    with pytest.raises(BackendError) as caught:
        require(reports, "model.pt", "leave it out")
    text = str(caught.value)
    assert "openvino fp16: mean difference" in text
    assert "mine fp16: largest difference 0.5, allowed 0.1" in text
    assert "onnxruntime" not in text
    assert (caught.value.where, caught.value.remedy) == ("model.pt", "leave it out")


def test_each_precision_is_allowed_more_than_the_one_before_it() -> None:
    assert tuple(TOLERANCES) == PRECISIONS
    for finer, coarser in itertools.pairwise(TOLERANCES.values()):
        assert finer.largest < coarser.largest
        assert finer.mean < coarser.mean
        assert finer.off < coarser.off
        assert finer.voi <= coarser.voi


def test_a_report_survives_json(judge: Judge) -> None:
    report = judge(shifted(2))
    data = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    again = Parity.from_dict(data)
    assert again.to_dict() == data
    assert again.largest == pytest.approx(report.largest, rel=1e-5)
    assert replace(again, **{key: getattr(report, key) for key in ("largest", "mean")}).passed == report.passed


def test_true_labels_are_what_segmentations_are_scored_against(bundle: Bundle, neuropil: Neuropil) -> None:
    manifest = bundle.manifest
    network = load_checkpoint(bundle.checkpoint).build()
    crop = (slice(0, 4), slice(0, 64), slice(0, 64))
    reference = reference_of(
        network, manifest.patch, manifest.stride, manifest.decoding, neuropil.raw[crop], neuropil.labels[crop]
    )
    report = reference.compare(WrongRunner(bundle, lambda bytes_: bytes_), 0, lambda: 0.0)
    assert (report.against, report.blocks) == ("labels", 1)
    # An untrained network's segments have little to do with the true ones.
    assert report.voi_eager > 0.5
    assert report.voi == pytest.approx(report.voi_eager, abs=0.02)
    assert report.passed
    worse = replace(report, voi=report.voi_eager + 0.03)
    assert list(failures(worse)) == ["VOI against the labels moves by 0.030, allowed 0.020"]


def test_a_crop_smaller_than_a_patch_is_mirrored_and_only_what_is_real_is_scored(bundle: Bundle) -> None:
    manifest = bundle.manifest
    network = load_checkpoint(bundle.checkpoint).build()
    gray = np.random.default_rng(0).integers(0, 256, (3, 64, 50), dtype=np.uint8)
    labels = np.ones((3, 64, 50), np.uint64)
    reference = reference_of(network, manifest.patch, manifest.stride, manifest.decoding, gray, labels)
    assert reference.gray.shape == manifest.patch
    np.testing.assert_array_equal(reference.gray[:3, :, :50], gray)
    np.testing.assert_array_equal(reference.gray[:3, :, 50:], gray[:, :, 48:34:-1])
    assert reference._truth.sum() == labels.sum()


def test_broken_weights_are_told_from_broken_graphs(bundle: Bundle) -> None:
    manifest = bundle.manifest
    network = load_checkpoint(bundle.checkpoint).build()
    with torch.no_grad():
        network.refined.head.weight[0, 0, 0, 0] = torch.nan
    with pytest.raises(BackendError, match="eager PyTorch gives affinities that are not finite") as caught:
        reference_of(network, manifest.patch, manifest.stride, manifest.decoding)
    assert caught.value.where == "checkpoint"


def test_the_default_crop_is_neuropil_with_blocks_to_reuse_and_to_blend(bundle: Bundle) -> None:
    manifest = bundle.manifest
    network = load_checkpoint(bundle.checkpoint).build()
    reference = reference_of(network, manifest.patch, manifest.stride, manifest.decoding)
    assert [box.start for box in reference.boxes] == [(0, 0, 0), (2, 0, 0), (0, 0, 32), (2, 0, 32)]
    assert reference._against == "labels"
    eager = TorchRunner(network, manifest.patch, device="cpu")
    np.testing.assert_array_equal(reference.affinities[0], eager.run(np.ascontiguousarray(reference.gray[:4, :, :64])))
