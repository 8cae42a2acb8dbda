"""The model that ships with fgnet: present, whole, small, documented, and in what is installed."""

from __future__ import annotations

import tomllib
from pathlib import Path

import numpy as np
import pytest

from fgnet.engine.bundle import MANIFEST, Bundle, default_bundle, load_bundle
from fgnet.engine.onnxruntime_runner import OnnxRuntimeRunner
from fgnet.postproc.waterz_decoder import WaterzOptions
from fgnet.volumes.grid import PatchGrid

LARGEST = 20e6
"""Bytes: what an installation from source can carry."""

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


def test_it_was_found_equal_to_eager_pytorch(shipped: Bundle) -> None:
    parity = shipped.manifest.parity
    assert parity["passed"] is True
    assert parity["backend"] == "onnxruntime"
    assert parity["largest"] <= 1e-3
    assert parity["not_finite"] == 0


def test_its_advice_can_be_followed(shipped: Bundle) -> None:
    advice = shipped.manifest.decoding
    WaterzOptions(fragments=advice.fragments, scoring=advice.scoring, quantile=advice.quantile)  # type: ignore[arg-type]
    assert 0 < advice.threshold < 1
    PatchGrid(shipped.manifest.patch, shipped.manifest.patch, shipped.manifest.stride)


def test_it_carries_no_folder_of_the_machine_that_made_it(shipped: Bundle) -> None:
    text = (shipped.path / MANIFEST).read_text(encoding="utf-8")
    assert "/home/" not in text
    assert str(Path(__file__).parents[2]) not in text


def test_it_runs_on_a_patch_of_16_sections_of_256_x_256_voxels(shipped: Bundle) -> None:
    assert shipped.manifest.patch == (16, 256, 256)
    gray = np.random.default_rng(0).integers(0, 256, (1, 16, 256, 256), dtype=np.uint8)
    affinities = OnnxRuntimeRunner(shipped).run(gray)
    assert affinities.shape == (1, 3, 16, 256, 256)
    assert np.isfinite(affinities).all()
    assert 0 <= affinities.min() < affinities.max() <= 1


def test_it_is_in_what_is_packaged(shipped: Bundle) -> None:
    root = Path(__file__).parents[2]
    settings = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    engine = root / settings["package-dir"]["fgnet.engine"]
    packaged = {file.resolve() for pattern in settings["package-data"]["fgnet.engine"] for file in engine.glob(pattern)}
    assert {file.resolve() for file in shipped.path.iterdir()} <= packaged
