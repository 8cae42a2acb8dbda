"""fgnet-run: several thresholds, merge trees, and worker processes that follow the affinities."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import typer
from typer.testing import CliRunner

from fgnet.cli.run import app
from fgnet.cli.run_decoding import MOST_FOR_WATERZ, DecodingRequest
from fgnet.engine.bundle import Decoding
from fgnet.engine.run_journal import RunJournal, journal_path
from fgnet.engine.run_outputs import decoding_folder
from fgnet.engine.run_record import read_record
from fgnet.volumes.geometry import Triple
from fgnet.volumes.reading import open_volume
from fgnet.volumes.zarr_source import is_unfinished

COMMAND = Path(sys.executable).parent / "fgnet-run"
SHAPE = (12, 160, 300)


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result.output


def read(address: object) -> npt.NDArray[np.generic]:
    with open_volume(str(address), ndim=(3,)) as opened:
        return opened.read(opened.box)


@pytest.fixture(scope="module")
def base(noise_run: Callable[[Triple], list[str]]) -> list[str]:
    return noise_run(SHAPE)


@pytest.fixture(scope="module")
def made(base: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run's output, of three thresholds, and its merge tree."""
    folder = tmp_path_factory.mktemp("made")
    options = ["--decoder", "blockwise", "--threshold", "0.6,0.5,0.62", "--graph-threshold", "0.7"]
    told = run(*base, "-o", folder / "out.zarr", *options, "--save-graph", folder / "graph.zarr", "--json")
    figures = json.loads(told[told.index("{") :])
    assert list(figures["thresholds"]) == ["0.6", "0.5", "0.62"]
    assert figures["segments"] == figures["thresholds"]["0.6"] == read(folder / "out.zarr").max()
    return folder


def test_every_threshold_has_the_segmentation_of_a_run_of_its_own(made: Path, base: list[str], tmp_path: Path) -> None:
    assert not decoding_folder(made / "out.zarr").exists()
    found = [read(made / "out.zarr"), read(made / "out.zarr/thresholds/0.5"), read(made / "out.zarr/thresholds/0.62")]
    assert len({int(labels.max()) for labels in found}) == 3
    run(*base, "-o", tmp_path / "out.zarr", "--decoder", "blockwise", "--threshold", "0.5")
    np.testing.assert_array_equal(read(tmp_path / "out.zarr"), found[1])


def test_a_kept_tree_gives_what_a_run_gives_where_it_lay(made: Path, tmp_path: Path) -> None:
    graph = made / "graph.zarr"
    run("--from-graph", graph, "-o", tmp_path / "out.zarr", "--threshold", "0.62,0.6")
    np.testing.assert_array_equal(read(tmp_path / "out.zarr"), read(made / "out.zarr/thresholds/0.62"))
    np.testing.assert_array_equal(read(tmp_path / "out.zarr/thresholds/0.6"), read(made / "out.zarr"))
    with open_volume(str(tmp_path / "out.zarr")) as ours, open_volume(str(made / "out.zarr")) as theirs:
        assert ours.space == theirs.space
    # It is complete; another threshold is another output.
    run("--from-graph", graph, "-o", tmp_path / "out.zarr", "--threshold", "0.62,0.6", "--resume")
    assert "exists" in run("--from-graph", graph, "-o", tmp_path / "out.zarr", "--threshold", "0.5", code=1)
    assert "thresholds" in run(
        "--from-graph", graph, "-o", tmp_path / "out.zarr", "--threshold", "0.5", "--resume", code=1
    )
    run("--from-graph", graph, "-o", tmp_path / "out.zarr", "--threshold", "0.5", "--overwrite")
    np.testing.assert_array_equal(read(tmp_path / "out.zarr"), read(made / "out.zarr/thresholds/0.5"))
    assert not (tmp_path / "out.zarr/thresholds").exists()


def test_labels_of_a_tree_are_recorded_before_they_open_as_complete(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fgnet.engine.graph_labels.write_record", killed)
    output = tmp_path / "out.zarr"
    command = ["--from-graph", made / "graph.zarr", "-o", output, "--threshold", "0.6"]
    CliRunner().invoke(app, [str(argument) for argument in command])
    assert is_unfinished(output)
    monkeypatch.undo()
    run(*command, "--resume")
    np.testing.assert_array_equal(read(output), read(made / "out.zarr"))
    assert read_record(output) is not None


def test_labels_of_a_tree_that_were_finished_just_before_a_kill_are_complete(made: Path, tmp_path: Path) -> None:
    command = ["--from-graph", made / "graph.zarr", "-o", tmp_path / "out.zarr", "--threshold", "0.6", "--resume"]
    run(*command)
    record = read_record(tmp_path / "out.zarr")
    assert record is not None
    with RunJournal(tmp_path / "out.zarr") as journal:
        journal.begin(record["identity"])
    assert "complete" in run(*command)
    assert not journal_path(tmp_path / "out.zarr").exists()
    with RunJournal(tmp_path / "out.zarr") as journal:
        journal.begin(record["identity"] | {"min_size": 5})
    assert "min_size was 5 and is 0" in run(*command, code=1)


def test_what_a_tree_has_settled_or_does_not_hold_is_refused(made: Path, tmp_path: Path) -> None:
    graph, output = made / "graph.zarr", tmp_path / "out.zarr"
    told = run("--from-graph", graph, "-o", output, "--threshold", "0.8", code=1)
    assert "up to 0.7, or decode again with --graph-threshold 0.8" in " ".join(told.split())
    assert "merge tree" in run("--from-graph", made / "out.zarr", "-o", output, "--threshold", "0.5", code=1)
    assert "--model" in run("--from-graph", graph, "-o", output, "--threshold", "0.5", "--model", "nano", code=2)
    assert "VOLUME" in run("v.zarr", "--from-graph", graph, "-o", output, "--threshold", "0.5", code=2)
    assert "--threshold" in run("--from-graph", graph, "-o", output, code=2)
    assert "from 0 to 1" in run("--from-graph", graph, "-o", output, "--threshold", "-1", code=1)
    assert "--decoder" in run("--from-graph", graph, "-o", output, "--threshold", "0.5", "--decoder", "waterz", code=2)
    assert "VOLUME" in run("-o", output, code=2)
    assert list(tmp_path.iterdir()) == []


def test_labels_never_lie_in_the_tree_that_they_are_made_of(made: Path, tmp_path: Path) -> None:
    graph = tmp_path / "trees" / "graph.zarr"
    shutil.copytree(made / "graph.zarr", graph)
    before = {path: path.read_bytes() for path in graph.rglob("*") if path.is_file()}
    for output in (graph, graph.parent, graph / "fragments", graph / "seg"):
        told = run("--from-graph", graph, "-o", output, "--threshold", "0.5", "--overwrite", code=1)
        assert "the output cannot be the merge tree" in told
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_tree_is_not_replaced_unasked(made: Path, base: list[str], tmp_path: Path) -> None:
    options = ["-o", tmp_path / "out.zarr", "--decoder", "blockwise", "--threshold", "0.6"]
    assert "already" in run(*base, *options, "--save-graph", made / "graph.zarr", code=1)
    (tmp_path / "something").mkdir()
    assert "no merge tree" in run(*base, *options, "--save-graph", tmp_path / "something", "--overwrite", code=1)
    assert [path.name for path in tmp_path.iterdir()] == ["something"]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--decoder", "waterz", "--threshold", "0.5,0.6"], "--threshold"),
        (["--decoder", "none", "--workers", "2"], "--workers"),
        (["--decoder", "none", "--threshold", "0.5"], "--threshold"),
        (["--decoder", "none", "--min-size", "30"], "--min-size"),
        (["--decoder", "none", "--fragments", "affinity"], "--fragments"),
        (["--decoder", "none", "--scoring", "mean"], "--scoring"),
        (["--decoder", "none", "--quantile", "50"], "--quantile"),
        (["--rescale", "nan,10,10"], "--rescale"),
        (["--scoring", "quantile", "--save-graph", "g.zarr"], "--save-graph"),
        (["--threshold", "half"], "--threshold"),
        (["--threshold", "0.5", "--workers", "1", "--cluster-options", '--mem "4G'], "--cluster-options"),
        (["--cluster", "slurm", "--decoder", "blockwise"], "--cluster"),
        (["--cluster", "pbs", "--workers", "2"], "--cluster"),
        (["--cluster-options", "-p cpu", "--decoder", "blockwise"], "--cluster-options"),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    base: list[str], tmp_path: Path, options: list[str], named: str
) -> None:
    assert named in run(*base, "-o", tmp_path / "out.zarr", *options, code=2)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--threshold", "0.6,0.6"], "each once"),
        (["--threshold", "0.5,1.5"], "from 0 to 1"),
        (["--threshold", "nan"], "from 0 to 1"),
        (["--threshold", "0.6", "--graph-threshold", "0.7"], "--save-graph"),
        (["--threshold", "0.6", "--save-graph", "graph.zarr", "--graph-threshold", "0.5"], "at least the highest"),
        (["--threshold", "0.6", "--workers", "2", "--cluster-options", "-p cpu"], "no cluster"),
    ],
)
def test_values_that_make_no_sense_are_refused(
    base: list[str], tmp_path: Path, options: list[str], problem: str
) -> None:
    told = run(*base, "-o", tmp_path / "out.zarr", "--decoder", "blockwise", *options, code=1)
    assert problem in told
    assert list(tmp_path.iterdir()) == []


def test_workers_follow_the_affinities_and_a_kill_of_everything_changes_no_byte(
    made: Path, base: list[str], tmp_path: Path
) -> None:
    output = tmp_path / "out.zarr"
    options = ["--decoder", "blockwise", "--threshold", "0.6,0.5,0.62", "--workers", "2"]
    command = [str(COMMAND), *base, "-o", str(output), *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while process.poll() is None and not list(decoding_folder(output).rglob("*.npz")):
        time.sleep(0.002)
    assert process.poll() is None, process.communicate()
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    told = subprocess.run([*command, "--resume"], capture_output=True, text=True, check=False, timeout=300)
    assert told.returncode == 0, told.stderr
    for group in ("", "thresholds/0.5", "thresholds/0.62"):
        np.testing.assert_array_equal(read(output / group), read(made / "out.zarr" / group))
    assert not decoding_folder(output).exists()


def test_the_decoder_is_chosen_by_what_is_asked_for_and_by_size() -> None:
    small, large = MOST_FOR_WATERZ, MOST_FOR_WATERZ + 1
    knows, knows_not = Decoding(mean_threshold=0.8), Decoding()

    def chosen(voxels: int, advised: Decoding, **options: Any) -> str:
        fields = dict.fromkeys(DecodingRequest.__dataclass_fields__)
        return DecodingRequest(**fields | {"decoder": "auto"} | options).resolved(voxels, advised)

    assert chosen(small, knows) == "waterz"
    assert chosen(large, knows) == "blockwise"
    # Rather slow than at a threshold that nobody has tried.
    assert chosen(large, knows_not) == "waterz"
    assert chosen(large, knows, scoring="quantile") == "waterz"
    # Scores by mean are the blockwise decoder's, whoever asks for them.
    advises = Decoding(scoring="mean")
    assert chosen(small, advises) == chosen(large, advises, threshold="0.5") == "blockwise"
    assert chosen(small, knows, scoring="mean") == "blockwise"
    assert chosen(large, knows_not, scoring="mean", threshold="0.7") == "blockwise"
    assert chosen(small, advises, scoring="quantile") == "waterz"
    assert chosen(small, advises, quantile=50) == "waterz"
    assert chosen(small, advises, decoder="waterz") == "waterz"
    assert chosen(small, knows, workers=2) == "blockwise"
    assert chosen(small, knows, threshold="0.5,0.6") == "blockwise"
    with pytest.raises(typer.BadParameter, match="say of what it is"):
        chosen(large, knows, threshold="0.5")
