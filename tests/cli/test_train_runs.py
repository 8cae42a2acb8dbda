"""fgnet-train as it is used: killed and resumed, by several processes, from a model, for a table, for a picture."""

from __future__ import annotations

import csv
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from fgnet.cli.first_weights import find_model
from fgnet.cli.train import app
from fgnet.engine.bundle import default_bundle, load_bundle
from fgnet.export.recommended_decoding import DecodingWishes

torch = pytest.importorskip("torch", reason="training needs the extra fgnet[train]")
pytest.importorskip("sam2", reason="training needs the extra fgnet[train]")

pytestmark = pytest.mark.usefixtures("one_torch_thread")

FAST = ["--batch", 2, "--crop", "2,32,32", "--learning-rate", "1e-3", "--save-every", 2, "--device", "cpu"]
SMALL = ["--modules", "without_sam2", "--depth", 3]
COMMAND = [sys.executable, "-m", "fgnet.cli.train"]
ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def data(path: Path) -> list[str]:
    return ["--raw", f"{path}:raw", "--labels", f"{path}:labels"]


def held_out(path: Path, roi: str = "8:12,:,:") -> list[str]:
    return ["--val-raw", f"{path}:raw", "--val-labels", f"{path}:labels", "--val-roi", roi]


def run(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert "Traceback" not in result.stderr
    return result.exit_code, result.stdout, result.stderr


def load(path: Path) -> Any:
    from fgnet.network.checkpoint import load_checkpoint

    return load_checkpoint(path)


def flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """All that a checkpoint holds, but how long it took."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key != "seconds":
                yield from flat(inner, f"{name}/{key}")
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from flat(inner, f"{name}/{number}")
    else:
        yield name, value


def assert_same(one: Path, two: Path) -> None:
    first, second = (dict(flat(torch.load(path, weights_only=True))) for path in (one, two))
    assert first.keys() == second.keys()
    for name, value in first.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, second[name]), name
        elif not name.endswith("/command"):
            assert value == second[name], name


def test_a_run_killed_at_any_moment_goes_on_as_if_nothing_had_been(tissue: Path, tmp_path: Path) -> None:
    """kill -9 of the real command between two checkpoints; then weights, optimizer and random numbers, bit for bit."""
    options = [*data(tissue), *FAST, *SMALL, "--iterations", 30, "--deterministic", "--loaders", 1, "--ema", "0.5"]
    killed = tmp_path / "killed"
    process = subprocess.Popen(
        [*COMMAND, *map(str, (killed, *options))],
        env=ONE_THREAD,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    log, deadline = killed / "steps.csv", time.monotonic() + 120
    # One row below the heading per step: after the third one, the checkpoint is that of the second.
    while time.monotonic() < deadline and not (log.is_file() and log.read_text().count("\n") >= 4):
        time.sleep(0.005)
    # With the loader that it has started, which would be left behind.
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert 2 <= load(killed / "last.pt").training["step"] < 30

    code, _, stderr = run(killed, *options, "--resume")
    assert code == 0, stderr
    code, _, stderr = run(tmp_path / "whole", *options)
    assert code == 0, stderr
    for name in ("last.pt", "model.pt"):
        assert_same(tmp_path / "whole" / name, killed / name)
    with log.open() as file:
        assert [row["step"] for row in csv.DictReader(file)] == [str(step) for step in range(1, 31)]


def test_two_processes_of_torchrun_train_what_one_process_trains(tissue: Path, tmp_path: Path) -> None:
    options = [*data(tissue), *held_out(tissue), *FAST, "--iterations", 2, "--validate-every", 2]
    # Adam divides by the size of a gradient: where that is nothing but rounding, a weight moves by chance. Short steps
    # keep that out of the second step's gradient.
    options += ["--learning-rate", "1e-8"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    result = subprocess.run(
        [*launcher, "-m", "fgnet.cli.train", *map(str, (tmp_path / "two", *options))],
        env=ONE_THREAD,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("training nano on") == 1
    code, _, stderr = run(tmp_path / "one", *options)
    assert code == 0, stderr
    one, two = (load(tmp_path / folder / "last.pt") for folder in ("one", "two"))
    assert one.weights.keys() == two.weights.keys()
    for name in ("exp_avg", "exp_avg_sq"):
        states = (checkpoint.training["optimizer"]["state"].values() for checkpoint in (one, two))
        mine, theirs = (torch.cat([state[name].flatten() for state in held]) for held in states)
        assert (theirs - mine).norm() < 1e-4 * mine.norm()
    for name, weight in one.weights.items():
        torch.testing.assert_close(two.weights[name], weight, rtol=1e-5, atol=4e-8)
    losses = []
    for folder in ("one", "two"):
        with (tmp_path / folder / "steps.csv").open() as file:
            losses.append([float(row["loss"]) for row in csv.DictReader(file)])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    figures = [load(tmp_path / folder / "model.pt").provenance["validation"]["voi"] for folder in ("one", "two")]
    assert figures[1] == pytest.approx(figures[0], abs=0.2)


def test_crops_that_processes_cannot_share_are_refused(
    tissue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fgnet.network.processes import Processes
    from fgnet.volumes.errors import TrainingError

    assert [list(Processes(rank, 2).share(4)) for rank in range(2)] == [[0, 1], [2, 3]]
    with pytest.raises(TrainingError, match="3 crops per pass cannot be shared by 2 processes"):
        Processes(0, 2).share(3)
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, _, stderr = run(tmp_path / "grid", *data(tissue), *held_out(tissue), "--experiment", "table6")
    assert code == 1
    assert "an experiment is not shared by processes" in stderr


def test_a_disk_without_space_is_an_error_that_leaves_the_run_as_it_was(tissue: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    options = [*data(tissue), *FAST]
    assert run(folder, *options, "--iterations", 2)[0] == 0
    before = {name: (folder / name).read_bytes() for name in ("last.pt", "model.pt")}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    try:
        code, _, stderr = run(folder, *options, "--iterations", 4, "--resume")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == 1
    assert re.search(r"error: \S+\.pt: the checkpoint cannot be written .*free space", stderr)
    assert {name: (folder / name).read_bytes() for name in before} == before
    assert not list(folder.glob(".*.part"))
    assert run(folder, *options, "--iterations", 4, "--resume")[0] == 0


def test_a_small_crop_fine_tunes_a_model_and_validates_on_a_part_of_it(
    tissue: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    quick = ["--iterations", 2, "--validate-every", 2]
    code, stdout, stderr = run(tmp_path / "run", *data(tissue), "--from", tiny_checkpoint, *quick, "--json")
    assert code == 0, stderr
    result = json.loads(stdout)
    assert result["validation"]["voi"] > 0
    assert "validating on tissue.h5:raw | tissue.h5:labels [all], x 77:96, which is not trained on" in stderr
    with (tmp_path / "run" / "validations.csv").open() as file:
        scores = {int(row["step"]): float(row["voi"]) for row in csv.DictReader(file)}
    assert scores.keys() == {0, 2}
    model = load(tmp_path / "run" / "model.pt").provenance
    assert model["steps"] == min(scores, key=lambda step: scores[step])
    assert result["validation"]["voi"] == min(scores.values())
    assert model["voxel_sizes"] == [[10.0, 10.0, 10.0]]
    assert model["started_from"] == {"model": "tiny.pt", "voxel_sizes": [(10.0, 10.0, 10.0)], "version": "test"}
    assert model["decoding"] == {"decoder": "waterz", "fragments": "sections", "scoring": "quantile", "quantile": 50}
    # 12 x 64 x 77 voxels are left of the crop; the network halves sides of 32.
    assert model["options"]["crop"] == [12, 64, 64]
    assert (model["options"]["learning_rate"], model["options"]["schedule"]) == (3e-4, "cosine")
    again = ["--resume", "--iterations", 3, "--json"]
    code, stdout, stderr = run(tmp_path / "run", *data(tissue), *again)
    assert code == 0, stderr
    assert load(tmp_path / "run" / "last.pt").provenance["started_from"]["model"] == "tiny.pt"
    assert load(tmp_path / "run" / "last.pt").provenance["held_out"] == 0.2


def test_the_shipped_model_is_a_start_by_its_name(tissue: Path, tmp_path: Path) -> None:
    options = ["--from", "nano", "--iterations", 1, "--batch", 1, "--val-decoder", "blockwise", "--val-roi", "8:12,:,:"]
    options += ["--val-raw", f"{tissue}:raw", "--val-labels", f"{tissue}:labels", "--crop", "4,32,32", "--json"]
    code, stdout, stderr = run(tmp_path / "run", *data(tissue), *options)
    assert code == 0, stderr
    assert json.loads(stdout)["validation"]["voi"] > 0
    model = load(tmp_path / "run" / "model.pt").provenance
    assert model["started_from"]["model"] == "nano"
    assert (model["decoding"]["decoder"], model["decoding"]["quantile"]) == ("blockwise", 75)
    shipped = asdict(load_bundle(default_bundle()).manifest.decoding)
    assert model["recommended"] == shipped
    # A model that is fine-tuned once more is validated as before.
    again = find_model(str(tmp_path / "run" / "model.pt")).decoding_settings
    assert again == {"decoder": "blockwise", "fragments": "sections", "scoring": "mean", "quantile": 75}


def test_a_model_that_was_not_validated_is_decoded_as_the_one_that_it_was_started_from(
    tissue: Path, tmp_path: Path
) -> None:
    options = ["--from", "nano", "--val-share", "0", "--iterations", 1, "--batch", 1, "--crop", "4,32,32"]
    assert run(tmp_path / "run", *data(tissue), *options)[0] == 0
    model = find_model(str(tmp_path / "run" / "model.pt"))
    assert "decoding" not in model.checkpoint.provenance
    assert model.decoding == load_bundle(default_bundle()).manifest.decoding


def test_a_crop_in_which_nothing_can_be_held_out_is_trained_on_whole(
    tissue: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    options = ["--from", tiny_checkpoint, "--iterations", 1, "--roi", "0:2,0:32,0:32", "--json"]
    code, stdout, stderr = run(tmp_path / "run", *data(tissue), *options)
    assert code == 0, stderr
    assert json.loads(stdout)["validation"] is None
    assert "no validation: " in stderr
    assert "no object has 100 voxels" in stderr


@pytest.mark.parametrize("name", ["none.pt", "unknown"])
def test_a_model_that_there_is_not_is_refused(tissue: Path, tmp_path: Path, name: str) -> None:
    code, _, stderr = run(tmp_path / "run", *data(tissue), "--from", name)
    assert code == 1
    assert f"{name}: no such file (give a model.pt, a bundle's folder, or nano)" in stderr


def test_an_experiment_prints_its_table_and_takes_an_encoder_from_a_model(
    tissue: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    options = [*data(tissue), "--roi", "0:8,:,:", *held_out(tissue), *FAST, "--iterations", 1, "--seeds", "0,1"]
    options += ["--experiment", "adaptation", "--from", tiny_checkpoint]
    code, stdout, stderr = run(tmp_path / "grid", *options)
    assert code == 0, stderr
    assert "- encoder: nano, weights of the encoder of tiny.pt" in stdout
    assert re.search(r"\| frozen \| \d\.\d{3} ± \d\.\d{3} \|", stdout)
    assert stdout.strip() == (tmp_path / "grid" / "table.md").read_text().strip()
    best = load(tmp_path / "grid" / "frozen-seed0" / "model.pt").provenance
    assert best["decoding"] == {"decoder": "waterz", "fragments": "sections", "scoring": "quantile", "quantile": 50}
    assert DecodingWishes().settled(best).threshold == best["validation"]["threshold"]
    frozen, given = load(tmp_path / "grid" / "frozen-seed1" / "model.pt"), load(tiny_checkpoint)
    encoder = [key for key in frozen.weights if key.startswith("encoder.")]
    assert all(torch.equal(frozen.weights[key], given.weights[key]) for key in encoder)
    code, stdout, stderr = run(tmp_path / "grid", *options, "--json")
    assert code == 0, stderr
    assert stderr.count("finished before") == 4
    assert [row["cell"] for row in json.loads(stdout)["rows"]] == ["frozen", "fine_tuned"]
    for other, message in (
        (["--val-roi", "9:12,:,:"], "validated on was 'tissue.h5:raw | tissue.h5:labels [8:12,:,:]', is"),
        (["--val-decoder", "blockwise"], "decoder was 'waterz, fragments of sections', is"),
        (["--from", "nano"], "encoder was 'nano, weights of the encoder of tiny.pt', is"),
        (["--weight", "2"], "volume_weights was [1.0], is [2.0]"),
    ):
        code, stdout, stderr = run(tmp_path / "grid", *options, *other)
        assert (code, stdout) == (1, "")
        assert message in stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "chooses checkpoints and thresholds on validation data"),
        (["--sam2", "none.pt", "--from", "none.pt", "VAL"], "both --sam2 and --from"),
        (["--seeds", "a", "VAL"], "'a' is no list of whole numbers"),
        (["--seed", "1", "VAL"], "--seeds are its seeds"),
    ],
)
def test_an_experiment_without_what_it_needs_is_refused(
    tissue: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    given = [option for option in options if option != "VAL"] + (held_out(tissue) if "VAL" in options else [])
    code, stdout, stderr = run(tmp_path / "grid", *data(tissue), "--experiment", "table6", *given)
    assert (code != 0, stdout) == (True, "")
    assert message in re.sub(r"[\s│]+", " ", stderr)


def test_attention_maps_of_the_shipped_model_are_drawn(tissue: Path, tmp_path: Path) -> None:
    picture = tmp_path / "maps.png"
    code, _, stderr = run(picture, "--attention-maps", "nano", "--raw", f"{tissue}:raw", "--roi", "4:10,:,:")
    assert code == 0, stderr
    assert "a_1 to a_3 of nano, 6 sections of 64 x 96 voxels" in stderr
    with Image.open(picture) as drawn:
        assert drawn.width > 600
    for wrong, message in (
        (["maps", "--raw", f"{tissue}:raw"], "name a file that ends in .png"),
        (["maps.png"], "attention maps show one volume, not 0"),
        (["maps.png", "--raw", f"{tissue}:raw", "--roi", "0:4,0:8,0:64"], "at least 32 voxels"),
    ):
        code, _, stderr = run(tmp_path / wrong[0], *wrong[1:], "--attention-maps", "nano")
        assert code == 1
        assert message in stderr
