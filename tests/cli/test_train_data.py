"""The data options of fgnet-train: data sets by name, sparse labels, presets of augmentation, the contact sheet."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from fgnet.cli.train import app
from fgnet.cli.training_data import DataRequest, load_validation, load_volumes
from fgnet.volumes.errors import TrainingError

FAST = ["--batch", "1", "--crop", "4,32,32", "--iterations", "1", "--modules", "without_sam2", "--depth", "3"]


def run(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert "Traceback" not in result.stderr
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with Wafer4 in small, and a volume whose labels are sparse."""
    folder = tmp_path_factory.mktemp("data")
    labels = (
        (1 + np.arange(125 * 9).reshape(125, 3, 3) // 27).astype(np.uint16).repeat(14, 1).repeat(14, 2)[:, :40, :40]
    )
    edges = np.abs(np.arange(40) % 14 - 7) > 5
    raw = (np.where(edges[:, None] | edges, 60, 180) + np.zeros((125, 1, 1))).astype(np.uint8)
    for name, values in (("inputs", raw), ("labels", labels)):
        with h5py.File(folder / f"wafer4_{name}.h5", "w") as file:
            file["main"] = values
    with h5py.File(folder / "sparse.h5", "w") as file:
        file["raw"], file["labels"], file["short"] = raw[:20], labels[:20], labels[:19]
        file["mask"] = np.zeros((20, 40, 40), np.uint8)
        file["mask"][4:9] = 1
        file["empty"] = np.zeros((20, 40, 40), np.uint8)
        file["one"], file["nothing"] = np.ones((20, 40, 40), np.uint8), np.zeros((20, 40, 40), np.uint8)
        file["negative"], file["probability"] = np.full((20, 40, 40), -5, np.int32), np.ones((20, 40, 40)) / 2
    return folder


@pytest.fixture
def trainable() -> None:
    pytest.importorskip("torch", reason="training needs the extra fgnet[train]")
    pytest.importorskip("sam2", reason="training needs the extra fgnet[train]")


def provenance(folder: Path) -> dict[str, Any]:
    from fgnet.network.checkpoint import load_checkpoint

    return load_checkpoint(folder / "model.pt").provenance


def pair(files: Path, labels: str = "labels") -> list[str]:
    return ["--raw", f"{files}/sparse.h5:raw", "--labels", f"{files}/sparse.h5:{labels}"]


@pytest.mark.usefixtures("trainable", "one_torch_thread")
def test_a_data_set_is_trained_and_validated_on_its_own_parts(files: Path, tmp_path: Path) -> None:
    arguments = ["--dataset", "wafer4", "--data-dir", files, *pair(files), "--mask", f"{files}/sparse.h5:mask"]
    code, stdout, stderr = run(tmp_path / "run", *arguments, *FAST, "--json")
    assert code == 0, stderr
    assert json.loads(stdout)["validation"]["voi"] > 0
    facts = provenance(tmp_path / "run")
    assert facts["volumes"] == ["sparse.h5:raw | sparse.h5:labels [all]", "wafer4 train [0:100,:,:]"]
    assert facts["voxel_sizes"] == [[35.0, 8.0, 8.0]]
    assert facts["options"]["augment"]["elastic"] > 0
    assert str(files) not in repr(facts)


@pytest.mark.usefixtures("trainable", "one_torch_thread")
@pytest.mark.parametrize("beside", [False, True])
def test_the_papers_figures_stand_beside_runs_of_its_data_alone(files: Path, tmp_path: Path, beside: bool) -> None:
    arguments = ["--dataset", "wafer4", "--data-dir", files, *(pair(files) if beside else []), "--seeds", 0]
    code, stdout, stderr = run(tmp_path / "grid", *arguments, *FAST, "--experiment", "adaptation")
    assert code == 0, stderr
    assert ("paper's VOI" in stdout) is not beside


@pytest.mark.usefixtures("trainable", "one_torch_thread")
def test_a_resumed_run_keeps_its_augmentation(files: Path, tmp_path: Path) -> None:
    from fgnet.network.checkpoint import load_checkpoint, save_checkpoint

    folder, data = tmp_path / "run", [*pair(files), "--unlabelled", "1"]
    assert run(folder, *data, *FAST, "--augment", "none")[0] == 0
    assert provenance(folder)["options"]["augment"]["contrast"] == 0
    code, _, stderr = run(folder, *data, "--resume", "--iterations", 2, "--augment", "strong")
    assert code == 1
    assert "augment was" in stderr
    # A checkpoint of the first version, which knew no geometry.
    last = load_checkpoint(folder / "last.pt")
    assert last.training is not None
    last.training["options"]["augment"] = {"contrast": 0.2, "brightness": 30.0, "gamma": 0.5, "noise": 12.0} | {
        "blur": 1.0, "missing_section": 0.01, "probability": 0.4
    }  # fmt: skip
    save_checkpoint(folder / "last.pt", last)
    code, _, stderr = run(folder, *data, "--resume", "--iterations", 2)
    assert code == 0, stderr
    augment = provenance(folder)["options"]["augment"]
    assert (augment["contrast"], augment["orient"]) == (0.2, 1)
    assert not any(augment[name] for name in ("rescale", "elastic", "slip", "jitter", "missing_part", "cut_blur"))


def validated(files: Path) -> list[str]:
    return ["--val-raw", f"{files}/sparse.h5:raw", "--val-labels", f"{files}/sparse.h5:labels"]


def test_what_nobody_labelled_is_not_validated_on(files: Path) -> None:
    address = f"{files}/sparse.h5"
    asked = DataRequest(val_raw=f"{address}:raw", val_labels=f"{address}:labels", val_mask=f"{address}:mask")
    volume = load_validation(asked)
    assert volume is not None
    # Scores ignore label 0.
    np.testing.assert_array_equal(np.unique(volume.labels.nonzero()[0]), np.arange(4, 9))
    assert asked.addresses == [f"{address}:raw", f"{address}:labels", f"{address}:mask"]


def test_the_voxel_size_is_that_of_the_file_or_the_one_that_is_stated(files: Path, capsys: Any) -> None:
    address = {"raw": [f"{files}/sparse.h5:raw"] * 2, "labels": [f"{files}/sparse.h5:labels"] * 2}
    one, other = load_volumes(DataRequest(**address))
    assert (one.space.known, one.isotropic, other.isotropic) == (False,) * 3
    assert capsys.readouterr().err.replace("\n", " ").count("the voxel size is not known") == 2
    one, other = load_volumes(DataRequest(**address, voxel_size=["-", "8,8,8"]))
    assert (one.space.known, other.space.voxel_size, other.isotropic) == (False, (8, 8, 8), True)
    one, other = load_volumes(DataRequest(**address, voxel_size=["40,4,4"]))
    assert one.space.voxel_size == other.space.voxel_size == (40, 4, 4)
    with pytest.raises(TrainingError, match="3 --voxel-size"):
        load_volumes(DataRequest(**address, voxel_size=["-"] * 3))
    with pytest.raises(typer.BadParameter, match="'8,8' is no voxel size z,y,x in nm"):
        load_volumes(DataRequest(**address, voxel_size=["8,8"]))


def test_labels_of_scattered_sections_are_warned_of(files: Path, tmp_path: Path, capsys: Any) -> None:
    with h5py.File(tmp_path / "masks.h5", "w") as file:
        for name, sections in (("apart", slice(0, 20, 3)), ("together", slice(3, 6)), ("one", slice(3, 4))):
            file[name] = np.zeros((20, 40, 40), np.uint8)
            file[name][sections] = 1
    told = {}
    for name in ("apart", "together", "one"):
        mask = [f"{tmp_path}/masks.h5:{name}"]
        data = DataRequest([f"{files}/sparse.h5:raw"], [f"{files}/sparse.h5:labels"], mask=mask, voxel_size=["9,9,9"])
        (volume,) = load_volumes(data)
        assert volume.known is not None
        sections = np.flatnonzero(volume.known.any(axis=(1, 2)))
        assert volume.known_pairs[0] == 1600 * np.count_nonzero(np.diff(sections) == 1)
        assert volume.known_pairs[1:] == (1560 * len(sections),) * 2
        told[name] = "label sections that follow each other" in " ".join(capsys.readouterr().err.split())
    assert told == {"apart": True, "together": False, "one": True}


def test_a_validation_on_what_is_trained_on_is_told(files: Path, tmp_path: Path, trainable: None) -> None:
    link = tmp_path / "other.h5"
    link.symlink_to(files / "sparse.h5")
    data = ["--raw", f"{files}/sparse.h5:raw", "--labels", f"{files}/sparse.h5:labels", "--roi", "0:16,:,:"]
    held_out = ["--val-raw", f"{link}:/raw", "--val-labels", f"{link}:/labels", "--val-roi"]
    code, _, stderr = run(tmp_path / "run", *data, *held_out, "10:20,:,:", *FAST)
    assert code == 0, stderr
    assert f"warning: {6 * 40 * 40} of {10 * 40 * 40} voxels of" in " ".join(stderr.split())
    assert provenance(tmp_path / "run")["validated_voxels_trained_on"] == 6 * 40 * 40
    code, _, stderr = run(tmp_path / "apart", *data, *held_out, "16:20,:,:", *FAST)
    assert code == 0, stderr
    assert "are trained on too" not in stderr
    assert "validated_voxels_trained_on" not in provenance(tmp_path / "apart")


def test_parts_of_a_volume_share_no_voxel(files: Path) -> None:
    from fgnet.network.labelled_volume import shared_voxels
    from fgnet.network.validation import hold_out

    data = DataRequest(raw=[f"{files}/sparse.h5:raw"], labels=[f"{files}/sparse.h5:labels"], roi=["4:20,:,:"])
    (whole,) = load_volumes(data)
    kept, cut = hold_out(whole, 0.25)
    assert shared_voxels([kept], cut) == 0
    assert shared_voxels([whole], cut) == cut.raw.size
    assert shared_voxels([cut], whole) == cut.raw.size


def test_an_unlabelled_id_given_once_holds_for_data_sets_and_their_validation(files: Path) -> None:
    # Of Wafer4 in small, id 1 fills the first three sections, id 35 three of those held out.
    (trained,) = load_volumes(DataRequest(datasets=("wafer4",), data_dir=files, unlabelled=("1",)))
    assert trained.known is not None
    np.testing.assert_array_equal(np.unique((~trained.known).nonzero()[0]), [0, 1, 2])
    held_out = load_validation(DataRequest(datasets=("wafer4",), data_dir=files, unlabelled=("35",)))
    assert held_out is not None
    assert held_out.known is not None
    np.testing.assert_array_equal(np.unique((~held_out.known).nonzero()[0]), [2, 3, 4])
    (whole,) = load_volumes(DataRequest(datasets=("wafer4",), data_dir=files, unlabelled=("-",)))
    assert whole.known is None


@pytest.mark.usefixtures("trainable")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--val-mask", "{}/sparse.h5:mask"], "a validation needs both --val-raw and --val-labels"),
        (["val", "--val-mask", "{}/sparse.h5:short"], "the mask has shape (19, 40, 40)"),
        (["val", "--val-mask", "{}/sparse.h5:empty"], "no object has 100 voxels"),
    ],
)
def test_a_mask_that_leaves_nothing_to_validate_is_refused(
    files: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    given = [part for option in options for part in (validated(files) if option == "val" else [option.format(files)])]
    code, stdout, stderr = run(tmp_path / "run", *pair(files), *given, *FAST)
    assert (code, stdout) == (1, "")
    assert message in stderr


def test_data_sets_are_listed_for_people(files: Path) -> None:
    code, stdout, _ = run("--list-datasets")
    assert code == 0
    for text in ("ac3ac4", "sample_C_20160501.hdf", "35, 8, 8", "validation 80:100", "CC BY-NC 4.0"):
        assert text in stdout
    assert "missing" not in stdout
    assert "missing" in run("--list-datasets", "--data-dir", files)[1]


def test_data_sets_are_listed_for_programs_with_what_is_missing(files: Path) -> None:
    code, stdout, _ = run("--list-datasets", "--data-dir", files, "--json")
    assert code == 0
    listed = {dataset["name"]: dataset for dataset in json.loads(stdout)["datasets"]}
    assert listed["wafer4"]["missing"] == []
    assert listed["snemi3d"]["missing"] == ["train-input.tif", "train-labels.tif"]
    assert listed["ac3ac4"]["parts"]["validation"]["roi"] == "80:100,:,:"
    assert "missing" not in json.loads(run("--list-datasets", "--json")[1])["datasets"][0]


def picture(path: Path) -> Any:
    with Image.open(path) as image:
        return np.asarray(image)


def test_the_augmentations_are_drawn_and_nothing_is_trained(files: Path, tmp_path: Path) -> None:
    sheet, options = tmp_path / "sheet.png", ["--crop", "3,16,16", "--augment", "strong"]
    code, stdout, stderr = run(tmp_path / "run", *pair(files), *options, "--preview-augmentation", sheet)
    assert (code, stdout) == (0, ""), stderr
    assert f"{sheet}: the augmentations of sparse.h5:raw | sparse.h5:labels [all]" in stderr
    drawn = picture(sheet)
    assert drawn.shape[1] > 6 * 256
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.png"]
    other = tmp_path / "dataset.png"
    arguments = ["--dataset", "wafer4", "--data-dir", files, "--crop", "2,16,16"]
    assert run(*arguments, "--preview-augmentation", other)[0] == 0
    assert not np.array_equal(picture(other), drawn)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--dataset", "wafer"], "there is no data set 'wafer' (one of ac3ac4, "),
        (["--dataset", "wafer4"], "--data-dir does not say where the files of wafer4 are"),
        (
            ["--dataset", "snemi3d", "--data-dir", "{}"],
            "train-input.tif of the data set snemi3d is missing (get it from",
        ),
        (["--raw", "{}/sparse.h5:raw"], "1 --raw, 0 --labels"),
        ([], "there is nothing to train on (give --raw and --labels, or --dataset)"),
        (["pair", "--mask", "-", "--mask", "-"], "1 --raw, 1 --labels, 0 --roi, 0 --weight, 2 --mask"),
        (["pair", "--unlabelled", "0", "--unlabelled", "1"], "0 --weight, 2 --unlabelled"),
        (["pair", "--unlabelled", "none"], "--unlabelled 'none' is no id"),
        (["pair", "--mask", "{}/sparse.h5:short"], "the mask has shape (19, 40, 40)"),
        (["pair:short"], "labels of shape (19, 40, 40) do not fit raw of shape (20, 40, 40)"),
        (["pair:probability"], "labels are float64, expected integers"),
        (["pair:negative"], "-5 at voxel (z, y, x) = (0, 0, 0) is no label"),
        (["pair:one"], "one object and no background: there is no boundary to learn"),
        (["pair:nothing"], "the labels hold no object"),
        (["pair:nothing", "--unlabelled", "0"], "the labels hold no object"),
        (
            ["pair", "--crop", "4,64,64"],
            "(20, 40, 40) is smaller than the crop (4, 64, 64) (give --crop 20,32,32 or a smaller one)",
        ),
    ],
)
def test_bad_data_ends_in_a_message_and_exit_code_1(
    files: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    arguments: list[str] = []
    for option in options:
        head, _, labels = option.partition(":")
        arguments += pair(files, labels or "labels") if head == "pair" else [option.format(files)]
    sheet = ["--preview-augmentation", str(tmp_path / "sheet.png")]
    code, stdout, stderr = run(*([] if "--crop" in arguments else ["--crop", "4,32,32"]), *arguments, *sheet)
    assert (code, stdout) == (1, "")
    assert re.search(r"^error: ", stderr, re.MULTILINE)
    assert message in stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("options", [["--augment", "much"], []])
def test_bad_options_end_in_exit_code_2(files: Path, options: list[str]) -> None:
    code, stdout, stderr = run(*pair(files), *options)
    assert (code, stdout) == (2, "")
    assert (options or ["OUT_DIR"])[0] in stderr
