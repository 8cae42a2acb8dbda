from __future__ import annotations

import json
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from fgnet.engine.torch_runner import TorchRunner
from fgnet.network.config import preset
from fgnet.network.data import LabelledVolume, load_labelled
from fgnet.network.model import FGNet
from fgnet.network.validation import Validation, fitting_patch, hold_out
from fgnet.postproc.blockwise_decoder import BlockwiseOptions, decode_array
from fgnet.postproc.metrics import score
from fgnet.postproc.targets import affinities_from_labels, widen_borders
from fgnet.postproc.watershed import WatershedOptions
from fgnet.postproc.waterz_decoder import decode_waterz
from fgnet.volumes.errors import BackendError, TrainingError
from fgnet.volumes.space import Space

CONFIG = preset("nano", widths=(4, 6, 8, 8), patch=(4, 64, 64))


@pytest.fixture(scope="module")
def crop(shared_data: Any) -> LabelledVolume:
    path = shared_data("gala_fib_train.h5")
    return load_labelled(f"{path}:raw", f"{path}:labels", "10:18,:64,:96")


class Oracle(FGNet):
    """A network that knows the 8-bit affinities of the very block it is given, and of no other."""

    def __init__(self, volume: LabelledVolume, blur: float = 0.0) -> None:
        super().__init__(CONFIG)
        self.raw = torch.from_numpy(volume.raw.astype(np.float32) / 255)
        truth = affinities_from_labels(widen_borders(volume.labels)).astype(np.float32)
        self.affinities = np.rint(ndimage.gaussian_filter(truth, (0, blur, blur, blur)) * 253 + 1).astype(np.uint8)
        self.blocks = 0

    def refine(self, stack: Tensor, features: list[Tensor], depth: int) -> Tensor:
        assert not self.training
        _, _, height, width = stack.shape
        for z in range(self.raw.shape[0] - depth + 1):
            for y in range(self.raw.shape[1] - height + 1):
                for x in range(0, self.raw.shape[2] - width + 1, 16):
                    here = (slice(z, z + depth), slice(y, y + height), slice(x, x + width))
                    if torch.equal(self.raw[here], stack[:, 0]):
                        self.blocks += 1
                        known = torch.from_numpy(self.affinities[(slice(None), *here)])
                        return torch.logit(known.transpose(0, 1) / 255)
        raise AssertionError("a block that is not in the volume")


def test_the_truth_scores_almost_perfectly(crop: LabelledVolume) -> None:
    oracle = Oracle(crop)
    figures = Validation(crop)(oracle)
    assert figures.keys() == {"voi", "voi_split", "voi_merge", "arand", "threshold"}
    assert figures["voi"] == pytest.approx(figures["voi_split"] + figures["voi_merge"])
    assert figures["voi"] < 0.6
    assert figures["arand"] < 0.1
    assert oracle.blocks == 3 * 1 * 2
    assert json.loads(json.dumps(figures)) == figures


def test_figures_are_those_of_the_best_threshold(crop: LabelledVolume) -> None:
    oracle = Oracle(crop, blur=1.5)
    thresholds = (0.02, 0.3, 0.95)
    figures = Validation(crop, thresholds, stride=(4, 64, 32))(oracle)
    # Affinities blended with themselves are what they were.
    segmentations = decode_waterz(oracle.affinities, thresholds)
    scores = [score(segmentation, crop.labels, min_size=100) for segmentation in segmentations]
    assert len({s.voi for s in scores}) == 3
    best = int(np.argmin([s.voi for s in scores]))
    assert figures["threshold"] == thresholds[best]
    assert figures["voi"] == pytest.approx(scores[best].voi, abs=1e-6)
    assert figures["arand"] == pytest.approx(scores[best].arand, abs=1e-6)


@pytest.mark.parametrize("modules", ["full", "without_fge"])
def test_an_untrained_network_is_scored(crop: LabelledVolume, modules: Any) -> None:
    torch.manual_seed(0)
    config = preset("nano", widths=(4, 6, 8, 8), patch=(4, 64, 64), modules=modules)
    validate = Validation(crop, (0.5,), stride=(4, 64, 64))
    figures = validate(FGNet(config))
    assert figures["voi"] > 0.5
    assert validate(FGNet(config).train()).keys() == figures.keys()


def test_a_region_smaller_than_a_patch_is_scored(crop: LabelledVolume) -> None:
    torch.manual_seed(0)
    assert Validation(crop, (0.5,), patch=(16, 64, 128))(FGNet(CONFIG))["voi"] > 0


@pytest.mark.parametrize("broken", [False, True])
def test_the_runner_is_closed_also_when_it_fails(
    crop: LabelledVolume, monkeypatch: pytest.MonkeyPatch, broken: bool
) -> None:
    closed: list[TorchRunner] = []
    close = TorchRunner.close

    def recorded(runner: TorchRunner) -> None:
        close(runner)
        closed.append(runner)

    monkeypatch.setattr(TorchRunner, "close", recorded)
    network = FGNet(CONFIG)
    if broken:
        monkeypatch.setattr(network, "refine", lambda *_: 1 / 0)
    with pytest.raises(BackendError, match="division by zero") if broken else nullcontext():
        Validation(crop, (0.5,), stride=(4, 64, 64))(network)
    assert len(closed) == 1


def test_a_region_without_objects_is_refused_before_training() -> None:
    labels = np.zeros((2, 8, 8), np.uint32)
    labels[0, :5] = 1
    volume = LabelledVolume("dust", np.zeros((2, 8, 8), np.uint8), labels, Space((1.0, 1.0, 1.0)))
    with pytest.raises(TrainingError, match="dust: no object has 100 voxels"):
        Validation(volume)
    Validation(volume, min_size=40)


@pytest.mark.parametrize("thresholds", [(), (0.5, 0.2), (0.5, 0.5), (-0.1, 0.5), (0.5, 1.5), (float("nan"),)])
def test_thresholds_that_the_decoder_would_refuse_are_refused_before_training(thresholds: tuple[float, ...]) -> None:
    labels = np.ones((2, 8, 8), np.uint32)
    volume = LabelledVolume("one object", np.zeros((2, 8, 8), np.uint8), labels, Space((1.0, 1.0, 1.0)))
    with pytest.raises(TrainingError, match="thresholds"):
        Validation(volume, thresholds)


@pytest.mark.parametrize(("shape", "axis"), [((4, 10, 20), 2), ((4, 20, 10), 1), ((20, 10, 20), 0)])
def test_a_part_of_the_longest_axis_is_held_out(shape: tuple[int, int, int], axis: int) -> None:
    raw = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    labels = raw.astype(np.uint32)
    whole = LabelledVolume("tissue", raw, labels, Space((4.0, 1.0, 1.0)), 3.0, raw > 9)
    kept, cut = hold_out(whole, 0.2)
    assert (kept.name, cut.name) == (f"tissue, {'zyx'[axis]} 0:16", f"tissue, {'zyx'[axis]} 16:20")
    for name in ("raw", "labels", "known"):
        parts = [getattr(kept, name), getattr(cut, name)]
        np.testing.assert_array_equal(np.concatenate(parts, axis), getattr(whole, name))
    assert (kept.space, kept.weight) == (whole.space, 3.0)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.99, 1.0, -0.5])
def test_a_share_that_leaves_nothing_on_one_side_is_refused(share: float) -> None:
    labels = np.ones((4, 8, 8), np.uint32)
    with pytest.raises(TrainingError, match="cannot be held out"):
        hold_out(LabelledVolume("tissue", labels.astype(np.uint8), labels, Space((1.0, 1.0, 1.0))), share)


def test_a_patch_is_no_larger_than_a_region_needs_it() -> None:
    nano = preset("nano")
    assert fitting_patch(nano, (50, 250, 250)) == (16, 256, 256)
    assert fitting_patch(nano, (4, 30, 200)) == (4, 128, 256)
    assert fitting_patch(preset("nano", patch=(4, 64, 64)), (9, 80, 96)) == (4, 64, 64)


def test_either_decoder_of_fgnet_run_is_used(crop: LabelledVolume) -> None:
    oracle = Oracle(crop)
    thresholds = (0.3, 0.6)
    figures = Validation(crop, thresholds, decoder="blockwise")(oracle)
    options = BlockwiseOptions(thresholds, watershed=WatershedOptions(flow="sections"))
    scores = [score(labels, crop.labels, min_size=100) for labels in decode_array(oracle.affinities, options)]
    best = min(scores, key=lambda s: s.voi)
    assert figures["voi"] == pytest.approx(best.voi, abs=1e-6)
    assert figures["voi"] < 0.6
