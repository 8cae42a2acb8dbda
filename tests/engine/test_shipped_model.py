"""The model that ships with fgnet: present, whole, small, documented, and in what is installed."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fgnet.engine.backends import Backend, Choice, choose_backend, open_runner
from fgnet.engine.bundle import MANIFEST, Bundle, default_bundle, load_bundle
from fgnet.engine.columns import run_block
from fgnet.postproc.waterz_decoder import WaterzOptions
from fgnet.volumes.grid import PatchGrid

LARGEST = 20 * 2**20
"""Bytes, of the bundle with its checkpoint."""

CARD = "MODEL_CARD.md"


@pytest.fixture(scope="module")
def shipped() -> Bundle:
    """Opening it holds every file against its hash."""
    return load_bundle(default_bundle())


def test_it_is_small_enough_to_ship(shipped: Bundle) -> None:
    assert sum(file.stat().st_size for file in shipped.path.rglob("*") if file.is_file()) <= LARGEST


def test_it_holds_its_files_and_its_card_and_nothing_else(shipped: Bundle) -> None:
    assert {file.name for file in shipped.path.iterdir()} == {MANIFEST, CARD, *shipped.manifest.files}
    assert shipped.checkpoint.is_file()


def test_the_manifest_names_the_data_and_keeps_to_the_sections_for_training(shipped: Bundle) -> None:
    real = [name for name in shipped.manifest.provenance["training"]["volumes"] if "fib25" in name]
    assert real == ["fib25_t2.h5:raw | fib25_t2.h5:labels [0:200,:,:]"]


def test_the_card_names_the_data_and_its_licence(shipped: Bundle) -> None:
    card = (shipped.path / CARD).read_text(encoding="utf-8")
    assert "FIB-25" in card
    assert "CC BY" in card


def test_its_voxel_size_is_that_of_the_data(shipped: Bundle) -> None:
    assert (10.0, 10.0, 10.0) in shipped.manifest.voxel_sizes


def test_fp32_was_found_equal_to_eager_pytorch_and_so_was_everything_that_is_chosen_of_itself(shipped: Bundle) -> None:
    reports = {(report["backend"], report["precision"]): report for report in shipped.manifest.parity}
    for backend in ("onnxruntime", "openvino"):
        report = reports[backend, "fp32"]
        assert report["passed"] is True
        assert report["largest"] <= 1e-3
    assert all(report["not_finite"] == 0 for report in reports.values())
    for backend in ("auto", "onnxruntime", "openvino"):
        choice = choose_backend(shipped, backend, device="cpu")
        assert reports[choice.backend, choice.precision]["passed"] is True


def test_fp32_is_the_default_and_fp16_is_there_for_gpus(shipped: Bundle) -> None:
    assert [graphs.precision for graphs in shipped.manifest.graphs][:2] == ["fp32", "fp16"]


def test_its_advice_can_be_followed(shipped: Bundle) -> None:
    advice = shipped.manifest.decoding
    WaterzOptions(fragments=advice.fragments, scoring=advice.scoring, quantile=advice.quantile)  # type: ignore[arg-type]
    assert 0 < advice.threshold < 1
    PatchGrid(shipped.manifest.patch, shipped.manifest.patch, shipped.manifest.stride)


def test_it_carries_no_folder_of_the_machine_that_made_it(shipped: Bundle) -> None:
    text = (shipped.path / MANIFEST).read_text(encoding="utf-8")
    assert "/home/" not in text
    assert str(Path(__file__).parents[2]) not in text


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_it_runs_on_a_patch_of_16_sections_of_256_x_256_voxels(shipped: Bundle, backend: Backend) -> None:
    assert shipped.manifest.patch == (16, 256, 256)
    gray = np.random.default_rng(0).integers(0, 256, (16, 256, 256), dtype=np.uint8)
    runner = open_runner(Choice(backend, "fp32", "cpu", ""), shipped, _never)
    affinities = run_block(runner, gray)
    assert (affinities.shape, affinities.dtype) == ((3, 16, 256, 256), np.uint8)
    assert np.ptp(affinities) > 200


def _never(_: Bundle) -> Any:
    raise AssertionError("the eager network is not needed")


def test_it_is_in_what_is_packaged(shipped: Bundle) -> None:
    root = Path(__file__).parents[2]
    settings = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    engine = root / settings["package-dir"]["fgnet.engine"]
    packaged = {file.resolve() for pattern in settings["package-data"]["fgnet.engine"] for file in engine.glob(pattern)}
    assert {file.resolve() for file in shipped.path.iterdir()} <= packaged
