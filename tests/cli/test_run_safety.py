"""What fgnet-run never does: destroy what it reads, or begin what it was to refuse."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import zarr
from PIL import Image
from typer.testing import CliRunner

from fgnet.cli.run import app
from fgnet.engine.run_journal import journal_path
from fgnet.engine.run_record import write_record
from fgnet.volumes.geometry import Box
from fgnet.volumes.reading import open_volume
from fgnet.volumes.space import Space
from fgnet.volumes.writing import create_image

SHAPE = (6, 80, 96)


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """Gray of two levels, alone in its folder."""
    path = tmp_path / "in" / "im.zarr"
    gray = np.random.default_rng(0).integers(0, 256, SHAPE, dtype=np.uint8)
    with create_image(path, shape=SHAPE, dtype=np.uint8, space=Space((10, 10, 10))) as writer:
        writer.write(Box.from_shape(SHAPE), gray)
        writer.build_pyramid(largest=48)
    return path


@pytest.fixture
def options(tiny_bundle: Path) -> list[object]:
    return ["--model", tiny_bundle, "--backend", "onnxruntime", "--threads", 1, "--threshold", 0.5]


def test_no_level_of_what_is_read_is_overwritten(image: Path, options: list[object], tmp_path: Path) -> None:
    before = files(image.parent)
    for source, output in ((image, image / "0"), (image / "1", image / "0"), (image, image / "1" / "seg")):
        assert "the input" in run(source, "-o", output, "--overwrite", *options, code=1)
    gray = tmp_path / "gray.zarr"
    create_image(gray, shape=SHAPE, dtype=np.uint8, space=Space((10, 10, 10))).finish()
    assert "the input" in run(gray, "--mask", image, "-o", image / "0", "--overwrite", *options, code=1)
    assert files(image.parent) == before


def test_labels_lie_in_the_store_of_what_is_read(image: Path, options: list[object]) -> None:
    for _ in range(2):
        run(image, "-o", image / "labels" / "seg", "--overwrite", *options)
    with open_volume(image / "labels" / "seg") as labels, open_volume(image) as gray:
        assert labels.shape == gray.shape == SHAPE


@pytest.mark.parametrize(
    "name", ["in.tif", "p.h5", "x.zarr", "x.jpg2", "sections/0.png", "sections/9.png", "far/1.png"]
)
def test_a_preview_is_a_png_and_no_input(options: list[object], tmp_path: Path, name: str) -> None:
    """Neither a section that is read, by a link or not, nor one more beside them."""
    for folder in ("sections", "far"):
        (tmp_path / folder).mkdir()
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, SHAPE[1:], dtype=np.uint8))
    picture.save(tmp_path / "in.tif")
    for section in ("sections/0.png", "far/1.png"):
        picture.save(tmp_path / section)
    (tmp_path / "sections" / "1.png").symlink_to(tmp_path / "far" / "1.png")
    before = files(tmp_path)
    told = run(tmp_path / "sections", "-o", tmp_path / "out.zarr", "--preview", tmp_path / name, *options, code=2)
    assert "--preview" in told
    assert files(tmp_path) == before


def test_a_preview_of_what_is_complete_is_refused(image: Path, options: list[object], tmp_path: Path) -> None:
    command = [image, "-o", tmp_path / "out.zarr", *options]
    run(*command)
    told = run(*command, "--resume", "--preview", tmp_path / "p.png", code=1)
    assert "the output is complete, and only the run that makes it draws it" in told
    run(*command, "--resume")
    run(*command, "--overwrite", "--preview", tmp_path / "p.png")
    assert (tmp_path / "p.png").is_file()


def test_a_dry_run_refuses_what_the_run_would(image: Path, options: list[object], tmp_path: Path) -> None:
    output, notes = tmp_path / "out.zarr", tmp_path / "notes"
    create_image(output, shape=SHAPE, dtype=np.uint8, space=Space((10, 10, 10))).finish()
    notes.write_text("dear")
    for extra in (["--dry-run"], []):
        # Raw EM, as far as anybody knows.
        told = run(image, "-o", output, "--overwrite", *extra, *options, code=1)
        assert "without the record of a run beside it" in told
    write_record(output, {})
    before = files(tmp_path)
    for given, told in (
        (["-o", output], "the output exists already"),
        (["-o", notes, "--overwrite"], "is no Zarr store"),
        (["-o", notes / "out.zarr"], "a part of the path is a file"),
        (["-o", image / "0", "--overwrite"], "the output is the input"),
        (["-o", tmp_path / "new.zarr", "--roi", ":3,:,:", "--decoder", "blockwise", "--save-graph", notes], "no merge"),
    ):
        assert told in run(image, *given, "--dry-run", *options, code=1)
    run(image, "-o", output, "--overwrite", "--dry-run", *options)
    assert files(tmp_path) == before
    journal_path(output).write_text("{}")
    assert "--resume continues it" in run(image, "-o", output, "--dry-run", *options, code=1)
    journal_path(output).unlink()
    assert files(tmp_path) == before


@pytest.mark.parametrize("rescale", [[], ["--rescale", "10,20,20"]], ids=["as it is", "rescaled"])
def test_a_dry_run_counts_the_blocks_that_a_mask_leaves(
    image: Path, options: list[object], tmp_path: Path, rescale: list[object]
) -> None:
    tissue = np.zeros(SHAPE, np.uint8)
    counts = list[int]()
    command = [image, "-o", tmp_path / "out.zarr", "--dry-run", "--json", *options, *rescale]
    for place, rows in (("none.zarr", 0), ("some.zarr", 3), ("all.zarr", SHAPE[1])):
        tissue[:, :rows] = 1
        zarr.create_array(str(tmp_path / place), data=tissue)
        told = run(*command, "--mask", tmp_path / place)
        plan = json.loads(told[told.index("{") :])
        counts.append(plan["blocks_with_tissue"])
    assert counts[0] == 0 < counts[1] <= counts[2] == plan["plan"]["blocks"]
    zarr.create_array(str(tmp_path / "other.zarr"), data=np.ones((5, 7, 9), np.uint8))
    assert "the mask has shape" in run(*command, "--mask", tmp_path / "other.zarr", code=1)
