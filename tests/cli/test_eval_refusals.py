"""What fgnet-eval refuses: a message that says what and where, and an exit code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pytest
from typer.testing import CliRunner

from fgnet.cli.eval import app
from fgnet.volumes.geometry import Box
from fgnet.volumes.space import UNKNOWN, Space
from fgnet.volumes.writing import create_labels

SHAPE = (6, 20, 24)
NM = Space((30.0, 6.0, 6.0))


def run(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert "Traceback" not in result.stderr
    return result.exit_code, result.stdout, result.stderr


def write(path: Path, labels: npt.NDArray[Any], space: Space = NM) -> Path:
    writer = create_labels(path, shape=labels.shape, space=space)
    writer.write(Box.from_shape(labels.shape), labels.astype(np.uint64))
    writer.finish()
    return path


def _missing(folder: Path) -> tuple[str, ...]:
    return str(folder / "none.zarr"), str(folder / "t.zarr")


def _missing_dataset(folder: Path) -> tuple[str, ...]:
    with h5py.File(folder / "f.h5", "w") as file:
        file["labels"] = np.ones(SHAPE, np.uint32)
    return f"{folder / 'f.h5'}:other", str(folder / "t.zarr")


def _other_shape(folder: Path) -> tuple[str, ...]:
    return str(write(folder / "s.zarr", np.ones((6, 20, 23), np.int64))), str(folder / "t.zarr")


def _other_shape_of_unknown_space(folder: Path) -> tuple[str, ...]:
    return str(write(folder / "s.zarr", np.ones((4, 20, 24), np.int64), UNKNOWN)), str(folder / "t.zarr")


def _other_voxel_size(folder: Path) -> tuple[str, ...]:
    space = Space((30.0, 12.0, 12.0), (30.0, 0.0, 0.0))
    return str(write(folder / "s.zarr", np.ones((4, 10, 12), np.int64), space)), str(folder / "t.zarr")


def _elsewhere(folder: Path) -> tuple[str, ...]:
    found = write(folder / "s.zarr", np.ones((2, 20, 24), np.int64), NM.shifted((9, 0, 0)))
    return str(found), str(folder / "t.zarr")


def _float(folder: Path) -> tuple[str, ...]:
    with h5py.File(folder / "f.h5", "w") as file:
        file["labels"] = np.ones(SHAPE, np.float32)
    return f"{folder / 'f.h5'}:labels", str(folder / "t.zarr")


def _wrong_rank(folder: Path) -> tuple[str, ...]:
    with h5py.File(folder / "f.h5", "w") as file:
        file["labels"] = np.ones(SHAPE[1:], np.uint32)
    return str(folder / "t.zarr"), f"{folder / 'f.h5'}:labels"


def _no_array(folder: Path) -> tuple[str, ...]:
    (folder / "notes.txt").write_text("mine")
    return str(folder / "notes.txt"), str(folder / "t.zarr")


def _outside(folder: Path) -> tuple[str, ...]:
    return str(folder / "t.zarr"), str(folder / "t.zarr"), "--crop", "4:9,:,:"


def _no_region(folder: Path) -> tuple[str, ...]:
    return str(folder / "t.zarr"), str(folder / "t.zarr"), "--crop", "4:9"


def _nothing_left(folder: Path) -> tuple[str, ...]:
    return str(folder / "t.zarr"), str(folder / "t.zarr"), "--min-size", "1000000"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (_missing, "there is no such file"),
        (_missing_dataset, "other"),
        (_other_shape, "shape (6, 20, 23), the ground truth (6, 20, 24)"),
        (_other_shape_of_unknown_space, "score a segmentation of the same region"),
        (_other_voxel_size, "score a segmentation at the voxel size of the ground truth"),
        (_elsewhere, "they share no voxel"),
        (_float, "labels are float32, expected integers"),
        (_wrong_rank, "expected (z, y, x)"),
        (_no_array, "of no kind known here"),
        (_outside, "9 lies outside the volume"),
        (_no_region, "a region needs three ranges"),
        (_nothing_left, "no voxel of the ground truth is left"),
    ],
)
def test_bad_input_ends_in_a_message_and_exit_code_1(
    tmp_path: Path, arguments: Callable[[Path], tuple[str, ...]], message: str
) -> None:
    write(tmp_path / "t.zarr", np.arange(np.prod(SHAPE)).reshape(SHAPE) // 64)
    code, stdout, stderr = run(*arguments(tmp_path), "--json")
    assert (code, stdout) == (1, "")
    assert stderr.startswith("error: ")
    assert message in stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["--min-size", "-1"],
        ["--protocol", "mine"],
        ["--border", "-2"],
        ["--border", "inf"],
        ["--border", "nan"],
        ["--nonsense"],
        ["--objects", "o.txt"],
        ["--worst", "0"],
    ],
)
def test_bad_options_end_in_exit_code_2(arguments: list[str]) -> None:
    code, stdout, stderr = run("s.zarr", "t.zarr", *arguments)
    assert (code, stdout) == (2, "")
    assert stderr
