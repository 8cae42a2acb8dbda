from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import pytest
from typer.testing import CliRunner

from fgnet.cli.train import app
from fgnet.volumes.neuropil import NeuropilOptions, make_neuropil

pytest.importorskip("torch", reason="training needs the extra fgnet[train]")
pytest.importorskip("sam2", reason="training needs the extra fgnet[train]")

FAST = ["--batch", "1", "--crop", "4,64,64", "--learning-rate", "1e-3", "--save-every", "1"]
COMMAND = str(Path(sys.executable).parent / "fgnet-train")


@pytest.fixture(scope="session")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("train") / "tissue.h5"
    neuropil = make_neuropil(NeuropilOptions((12, 80, 96), (10.0, 10.0, 10.0), 0))
    with h5py.File(path, "w") as file:
        file["raw"], file["labels"], file["probability"] = neuropil.raw, neuropil.labels, neuropil.raw / 255.0
        for dataset in ("raw", "labels"):
            file[dataset].attrs["resolution"] = (10.0, 10.0, 10.0)
    return path


def data(volume: Path) -> list[str]:
    return ["--raw", f"{volume}:raw", "--labels", f"{volume}:labels"]


def divided(volume: Path) -> list[str]:
    """Trained on a part, validated on the rest."""
    held_out = ["--val-raw", f"{volume}:raw", f"--val-labels={volume}:labels", "--val-roi", "8:12,:,:"]
    return [*data(volume), "--roi", "0:8,:,:", "--weight", "2", *held_out]


def run(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert "Traceback" not in result.stderr
    return result.exit_code, result.stdout, result.stderr


def load(path: Path) -> Any:
    from fgnet.network.checkpoint import load_checkpoint

    return load_checkpoint(path)


@pytest.fixture(scope="session")
def trained(volume: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    folder = tmp_path_factory.mktemp("runs") / "first"
    options = [*divided(volume), *FAST, "--iterations", "2", "--validate-every", "2"]
    result = subprocess.run([COMMAND, folder, *options, "--json"], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("\n") == 1
    return folder, json.loads(result.stdout), result.stderr


def test_the_installed_command_trains_validates_and_prints_one_object(
    trained: tuple[Path, dict[str, Any], str],
) -> None:
    folder, result, stderr = trained
    assert result["model"] == str(folder / "model.pt")
    assert result["steps"] == 2
    assert min(result["seconds"], result["voxels_per_second"], result["loss"]) > 0
    assert {"voi", "voi_split", "voi_merge", "arand"} <= result["validation"].keys()
    assert re.search(r"training 100%  step 2/2  loss \S+  rate 1\.0e-03  \S+ k?voxel/s  0:00 left", stderr)
    assert re.search(r"step 2: voi \S+", stderr)


def test_memory_that_is_kept_on_a_cpu_changes_no_weight(
    volume: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_torch_thread: None
) -> None:
    from fgnet.volumes import kept_memory

    options = [*data(volume), *FAST, "--iterations", 3, "--device", "cpu"]
    threads = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [COMMAND, tmp_path / "kept", *options]
    subprocess.run([str(argument) for argument in command], check=True, capture_output=True, env=threads, timeout=120)
    asked: list[bool] = []
    monkeypatch.setattr(kept_memory, "keep_memory", lambda: asked.append(True))
    assert run(tmp_path / "plain", *options)[0] == 0
    assert asked == [True]
    kept, plain = (load(tmp_path / way / "last.pt").weights for way in ("kept", "plain"))
    assert all(plain[name].equal(weight) for name, weight in kept.items())


def test_the_model_says_where_it_comes_from_without_the_machines_folders(
    trained: tuple[Path, dict[str, Any], str], volume: Path
) -> None:
    provenance = load(trained[0] / "model.pt").provenance
    assert provenance["version"]
    assert provenance["seconds"] > 0
    assert provenance["volumes"] == ["tissue.h5:raw | tissue.h5:labels [0:8,:,:]"]
    assert provenance["command"].startswith("fgnet-train first --raw tissue.h5:raw --labels tissue.h5:labels --roi 0:8")
    assert "--val-labels=tissue.h5:labels" in provenance["command"]
    assert str(volume.parent) not in repr(provenance)
    assert str(trained[0].parent) not in repr(provenance)


def test_a_finished_run_is_resumed_with_its_own_options_and_made_longer(
    trained: tuple[Path, dict[str, Any], str], volume: Path, tmp_path: Path
) -> None:
    import shutil

    folder = shutil.copytree(trained[0], tmp_path / "run")
    code, stdout, stderr = run(folder, *divided(volume), "--resume", "--iterations", 3, "--json")
    assert code == 0, stderr
    assert json.loads(stdout)["steps"] == 3
    assert load(folder / "last.pt").training["options"]["crop"] == [4, 64, 64]
    code, stdout, stderr = run(folder, *divided(volume), "--resume", "--ema", "0.5")
    assert (code, stdout) == (1, "")
    assert "ema was 0.999, is 0.5" in stderr


def test_a_run_is_not_resumed_with_other_data_or_without_its_validation(
    trained: tuple[Path, dict[str, Any], str], volume: Path
) -> None:
    kept = (trained[0] / "model.pt").read_bytes()
    for given, message in (
        (
            [*data(volume), "--roi", "0:8,:,:", "--weight", 2],
            "the run was validated on tissue.h5:raw | tissue.h5:labels",
        ),
        ([*divided(volume), "--val-roi", "9:12,:,:"], "validated_on was "),
        ([part.replace("0:8", "0:6") for part in divided(volume)], "volumes was "),
    ):
        code, stdout, stderr = run(trained[0], *given, "--resume", "--iterations", 3)
        assert (code, stdout) == (1, "")
        assert message in stderr
    assert (trained[0] / "model.pt").read_bytes() == kept


def test_a_model_starts_from_another_ones_weights_and_configuration(
    trained: tuple[Path, dict[str, Any], str], volume: Path, tmp_path: Path
) -> None:
    first = trained[0] / "model.pt"
    options = ["--from", first, *FAST, "--iterations", 1, "--adaptation", "frozen"]
    code, _, stderr = run(tmp_path / "run", *data(volume), *options)
    assert code == 0, stderr
    before, after = load(first), load(tmp_path / "run" / "model.pt")
    assert after.config.encoder == before.config.encoder == "nano"
    assert after.config.adaptation == "frozen"
    frozen = next(key for key in after.weights if key.endswith("patch_embed.proj.weight"))
    assert after.weights[frozen].equal(before.weights[frozen])


def test_the_end_tells_the_step_that_was_kept_and_the_step_that_was_reached(
    volume: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fgnet.network.validation import Validation

    scores = iter([2.0, 1.0, 3.0, 4.0])
    figures = {"voi_split": 0.0, "voi_merge": 0.0, "arand": 0.0, "threshold": 0.5}
    monkeypatch.setattr(Validation, "__call__", lambda *_: {"voi": next(scores), **figures})
    options = [*divided(volume), *FAST, "--validate-every", "1"]
    code, stdout, stderr = run(tmp_path / "run", *options, "--iterations", "3", "--json")
    assert code == 0, stderr
    assert "model.pt: of step 2 (VOI 1); trained to step 3, " in stderr
    result = json.loads(stdout)
    assert (result["steps"], result["kept_step"], result["validation"]["voi"]) == (3, 2, 1.0)
    code, stdout, stderr = run(tmp_path / "run", *options, "--iterations", "9", "--patience", "2", "--resume")
    assert "model.pt: of step 2 (VOI 1); trained to step 4 of 9, no better validation since, " in stderr
    code, _, stderr = run(tmp_path / "run", *options, "--iterations", "2", "--resume")
    assert code == 1
    assert "last.pt: iterations is 2, and 4 steps are done (give at least 4" in stderr


def test_a_folder_with_a_run_is_refused_and_left_alone_unless_overwriting_is_allowed(
    volume: Path, tmp_path: Path
) -> None:
    (tmp_path / "last.pt").write_bytes(b"mine")
    (tmp_path / "notes.txt").write_text("mine")
    code, stdout, stderr = run(tmp_path, *data(volume), *FAST, "--iterations", 1)
    assert (code, stdout) == (1, "")
    assert "holds last.pt already (give --resume or --overwrite)" in stderr
    assert (tmp_path / "last.pt").read_bytes() == b"mine"
    assert run(tmp_path, *data(volume), *FAST, "--crop", "99,64,64", "--overwrite")[0] == 1
    code, _, stderr = run(tmp_path, *data(volume), *FAST, "--iterations", 1, "--overwrite")
    assert code == 0, stderr
    assert load(tmp_path / "last.pt").training["step"] == 1
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_an_interrupt_says_how_to_go_on(volume: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = [COMMAND, str(folder), *data(volume), *FAST, "--iterations", "100000"]
    # A shell starts what it sends to the background with interrupts ignored, and so would this test start its child. No
    # preexec_fn: it forks this process, which runs what libraries of other tests registered for a fork.
    heeding = (
        "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", heeding, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while not (folder / "last.pt").is_file() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    try:
        stdout, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, stdout) == (130, "")
    assert ", which is saved; go on with\n  fgnet-train" in stderr
    assert stderr.rstrip().endswith("--resume")
    assert "Traceback" not in stderr
    assert load(folder / "last.pt").training["step"] >= 1


def _options(*options: str) -> Callable[[Path], list[str]]:
    return lambda volume: [*data(volume), *options]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (lambda v: ["--raw", f"{v}.none", "--labels", f"{v}:labels"], "there is no such file"),
        (lambda v: ["--raw", f"{v}:raw", "--labels", f"{v}:probability"], "labels are float64, expected integers"),
        (lambda v: ["--raw", f"{v}:probability", "--labels", f"{v}:labels"], "gray values are float64"),
        (lambda v: [*data(v), "--raw", f"{v}:raw"], "2 --raw, 1 --labels, 0 --roi, 0 --weight"),
        (_options("--roi", ":", "--roi", "-"), "1 --raw, 1 --labels, 2 --roi"),
        (_options("--weight", "1", "--weight", "2"), "2 --weight"),
        (_options("--roi", "0:99,:,:"), "99 lies outside the volume"),
        (_options("--crop", "64,64,64"), "smaller than the crop"),
        (_options("--crop", "64,64"), "is not three whole numbers"),
        (_options("--input-scale", "3"), "input_scale is 3"),
        (_options("--depth", "9"), "depth is 9"),
        (_options("--iterations", "0"), "iterations is 0"),
        (_options("--learning-rate", "2"), "learning_rate is 2"),
        (_options("--val-raw", "v.zarr"), "needs both --val-raw and --val-labels"),
        (_options("--sam2", "none.pt", "--encoder", "nano"), "no SAM2 encoder to load weights into"),
        (_options("--sam2", "none.pt", "--from", "none.pt"), "both --sam2 and --from"),
        (_options("--sam2", "none.pt", "--crop", "4,64,64"), "none.pt: no such file"),
        (_options("--from", "none.pt"), "none.pt: no such file"),
        (_options("--resume"), "there is no run to resume"),
        (_options("--resume", "--overwrite"), "exclude each other"),
    ],
)
def test_bad_input_ends_in_a_message_and_exit_code_1(
    volume: Path, tmp_path: Path, arguments: Callable[[Path], list[str]], message: str
) -> None:
    code, stdout, stderr = run(tmp_path / "run", *arguments(volume), "--json")
    assert (code, stdout) == (1, "")
    assert re.search(r"^error: ", stderr, re.MULTILINE)
    assert message in stderr
    assert not list(tmp_path.glob("run/*"))


@pytest.mark.parametrize(
    "option", [["--encoder", "huge"], ["--guidance", "mine"], ["--precision", "fp8"], ["--warmup", "-1"]]
)
def test_bad_options_end_in_exit_code_2(volume: Path, tmp_path: Path, option: list[str]) -> None:
    code, stdout, stderr = run(tmp_path / "run", *data(volume), *option)
    assert (code, stdout) == (2, "")
    assert option[0] in stderr


def test_an_output_that_is_a_file_is_refused(volume: Path, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine")
    code, _, stderr = run(tmp_path / "run", *data(volume))
    assert code == 1
    assert "this is a file" in stderr


def test_without_torch_the_command_names_the_extra(volume: Path, tmp_path: Path) -> None:
    arguments = ["fgnet-train", str(tmp_path / "run"), *data(volume)]
    code = f"import sys; sys.modules['torch'] = None; sys.argv = {arguments}; from fgnet.cli.train import main; main()"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "pip install 'fgnet[train]'" in result.stderr
    assert "Traceback" not in result.stderr


def test_help_starts_without_heavy_imports() -> None:
    code = """
import sys
from typer.testing import CliRunner
from fgnet.cli.train import app
assert CliRunner().invoke(app, ["--help"]).exit_code == 0
sys.exit(any(name in sys.modules for name in ("torch", "sam2", "numpy", "numba", "zarr", "scipy")))
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
