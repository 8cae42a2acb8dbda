"""fgnet-run --mask: what is no tissue has no label, whoever decodes."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pytest
import zarr
from typer.testing import CliRunner

from fgnet.cli.run import app
from fgnet.volumes.reading import open_volume

SHAPE, ROI = (8, 100, 140), "1:8,3:100,5:140"


def store(path: Path, values: npt.NDArray[Any]) -> Path:
    zarr.create_array(str(path), shape=values.shape, chunks=(4, 64, 64), dtype=values.dtype)[:] = values
    return path


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Path:
    gray = np.random.default_rng(0).integers(0, 256, SHAPE, dtype=np.uint8)
    return store(tmp_path_factory.mktemp("gray") / "v.zarr", gray)


@pytest.fixture(scope="module")
def coarse() -> npt.NDArray[np.uint8]:
    tissue = np.ones((8, 50, 70), np.uint8)
    tissue[:, 20:30, :40] = tissue[3:5, :10] = tissue[:, :, 60:] = 0
    return tissue


def labels(*options: object) -> npt.NDArray[Any]:
    result = CliRunner().invoke(app, [*map(str, options)])
    assert result.exit_code == 0, result.output
    with open_volume(str(options[options.index("-o") + 1])) as made:
        return made.read(made.box)


@pytest.mark.parametrize(
    "decoder",
    [
        ("waterz", "--scoring", "quantile", "--fragments", "sections"),
        ("waterz", "--fragments", "affinity"),
        ("blockwise", "--fragments", "sections"),
        ("blockwise", "--fragments", "affinity"),
        pytest.param(
            ("blockwise", "--workers", "2"),
            marks=pytest.mark.skipif(find_spec("daisy") is None, reason="needs the extra fgnet[cluster]"),
        ),
    ],
    ids=" ".join,
)
def test_there_are_no_labels_outside_of_a_mask(
    decoder: tuple[str, ...], volume: Path, coarse: npt.NDArray[np.uint8], tiny_bundle: Path, tmp_path: Path
) -> None:
    mask, output = store(tmp_path / "mask.zarr", coarse), tmp_path / "out.zarr"
    common = (volume, "--model", tiny_bundle, "--threshold", 0.6, "--mask", mask, "--roi", ROI, "--threads", 2)
    found = labels(*common, "--decoder", *decoder, "-o", output)
    inside = coarse.repeat(2, 1).repeat(2, 2)[1:8, 3:, 5:].astype(bool)
    assert not found[~inside].any()
    assert (found[inside] > 0).mean() > 0.95


def test_a_kept_merge_tree_needs_no_mask(
    volume: Path, coarse: npt.NDArray[np.uint8], tiny_bundle: Path, tmp_path: Path
) -> None:
    mask, tree = store(tmp_path / "mask.zarr", coarse), tmp_path / "tree.zarr"
    common = (volume, "--model", tiny_bundle, "--decoder", "blockwise", "--mask", mask)
    made = labels(*common, "--threshold", 0.6, "--save-graph", tree, "-o", tmp_path / "out.zarr")
    again = labels("--from-graph", tree, "--threshold", 0.6, "-o", tmp_path / "again.zarr")
    np.testing.assert_array_equal(again, made)
    assert not labels("--from-graph", tree, "--threshold", 0.3, "-o", tmp_path / "low.zarr")[made == 0].any()


def test_a_mask_without_tissue_leaves_no_segment(volume: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    mask = store(tmp_path / "mask.zarr", np.zeros(SHAPE, np.uint8))
    common = (volume, "--model", tiny_bundle, "--threshold", 0.6, "--mask", mask)
    for decoder in ("waterz", "blockwise"):
        assert not labels(*common, "--decoder", decoder, "-o", tmp_path / f"{decoder}.zarr").any()


@pytest.mark.parametrize("decoder", ["waterz", "blockwise"])
def test_a_mask_may_be_a_link_to_a_file_of_another_name(
    decoder: str, volume: Path, coarse: npt.NDArray[np.uint8], tiny_bundle: Path, tmp_path: Path
) -> None:
    with h5py.File(tmp_path / "3f2a9c", "w") as file:
        file["mask"] = coarse
    (tmp_path / "mask.h5").symlink_to(tmp_path / "3f2a9c")
    plain = store(tmp_path / "mask.zarr", coarse)
    common = (volume, "--model", tiny_bundle, "--threshold", 0.6, "--decoder", decoder, "--roi", ROI, "--threads", 2)
    found = [
        labels(*common, "--mask", mask, "-o", tmp_path / f"{number}.zarr")
        for number, mask in enumerate((plain, f"{tmp_path}/mask.h5:mask"))
    ]
    np.testing.assert_array_equal(*found)
