"""What a run that was killed between its last steps, or is complete, does when it is asked for again."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr
from typer.testing import CliRunner

from fgnet.cli.run import app
from fgnet.engine.run_journal import RunJournal, journal_path
from fgnet.engine.run_record import read_record, record_path
from fgnet.volumes.durability import sync_file
from fgnet.volumes.zarr_source import UNFINISHED


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Path) -> list[str]:
    """Without its output."""
    store = tmp_path_factory.mktemp("gray") / "v.zarr"
    gray = np.random.default_rng(0).integers(0, 256, (8, 70, 90), dtype=np.uint8)
    zarr.create_array(str(store), shape=gray.shape, chunks=(8, 64, 64), dtype="u1")[:] = gray
    return [str(store), "--model", str(tiny_bundle), "--backend", "onnxruntime"]


def run(command: list[str], output: Path, *options: str, code: int = 0) -> tuple[str, str]:
    """What a run says on stdout and stderr."""
    result = CliRunner().invoke(app, [*command, "-o", str(output), *options])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == code, result.stderr
    return result.stdout, result.stderr


@pytest.fixture(scope="module")
def made(command: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete output with its affinities; not to be changed."""
    output = tmp_path_factory.mktemp("made") / "out.zarr"
    run(command, output, "--save-affinities")
    return output


@pytest.fixture
def complete(made: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    output = tmp_path / "out.zarr"
    shutil.copytree(made, output)
    shutil.copy(record_path(made), record_path(output))
    return output


def begin_journal(output: Path) -> bytes:
    """As a kill just before the journal was removed leaves it."""
    record = read_record(output)
    assert record is not None
    with RunJournal(output) as journal:
        journal.begin(record["identity"])
    return journal_path(output).read_bytes()


def test_other_wishes_are_refused_where_a_run_was_killed_between_its_last_steps(
    command: list[str], complete: Path
) -> None:
    journal = begin_journal(complete)
    _, told = run(command, complete, "--resume", "--threshold", "0.7", code=1)
    assert "threshold was 0.5 and is 0.7" in told
    assert "save_affinities was True and is False" in told
    assert (complete / "affinities").is_dir()
    assert journal_path(complete).read_bytes() == journal
    _, told = run(command, complete, "--resume", "--save-affinities")
    assert "complete" in told
    assert (complete / "affinities").is_dir()
    assert not journal_path(complete).exists()


def test_an_output_is_recorded_before_it_opens_as_complete(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fgnet.engine.pipeline.clean_up", killed)
    output = tmp_path / "out.zarr"
    for decoder in ("waterz", "none"):
        CliRunner().invoke(app, [*command, "-o", str(output), "--decoder", decoder, "--overwrite"])
        record = read_record(output)
        assert record is not None
        assert record["decoding"]["decoder"] == decoder
    monkeypatch.undo()
    assert "complete" in run(command, output, "--decoder", "none", "--resume")[1]


@pytest.mark.parametrize("decoder", ["waterz", "blockwise"])
def test_labels_are_on_the_disk_before_they_open_as_complete(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decoder: str
) -> None:
    synced: list[Path] = []

    def sync(path: Path) -> None:
        synced.append(path)
        sync_file(path)

    monkeypatch.setattr("fgnet.volumes.multiscale_writer.sync_file", sync)
    output = tmp_path / "out.zarr"
    run(command, output, "--decoder", decoder, "--threshold", "0.5")
    chunks = {path for path in (output / "0" / "c").rglob("*") if path.is_file()}
    assert chunks
    assert chunks <= set(synced[: synced.index(output / "zarr.json")])


def test_a_refused_overwrite_leaves_the_journal_of_what_it_leaves(command: list[str], complete: Path) -> None:
    journal = begin_journal(complete)
    group = zarr.open_group(str(complete))
    group.attrs[UNFINISHED] = True
    zarr.create_group(str(complete / "mine"))
    _, told = run(command, complete, "--overwrite", code=1)
    assert "mine" in told
    assert journal_path(complete).read_bytes() == journal


def test_a_refused_overwrite_of_a_link_leaves_it_too(command: list[str], complete: Path, tmp_path: Path) -> None:
    journal = begin_journal(complete)
    zarr.open_group(str(complete)).attrs[UNFINISHED] = True
    link = tmp_path / "link.zarr"
    link.symlink_to(complete)
    for extra in (["--dry-run"], []):
        _, told = run(command, link, "--overwrite", *extra, code=1)
        assert "this is a link to the store" in told
    assert journal_path(complete).read_bytes() == journal


@pytest.mark.parametrize("where", ["remove_folder", "zarr.create_group"])
def test_an_output_that_was_being_replaced_when_a_kill_came_is_still_a_runs_own(
    command: list[str], complete: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as killing:
        killing.setattr(f"fgnet.volumes.output_store.{where}", killed)
        CliRunner().invoke(app, [*command, "-o", str(complete), "--overwrite"])
    assert complete.exists() == (where == "remove_folder")
    run(command, complete, "--overwrite", "--decoder", "none")
    record = read_record(complete)
    assert record is not None
    assert record["decoding"] == {"decoder": "none"}


def test_what_is_complete_is_said_as_json_too(command: list[str], complete: Path) -> None:
    stdout, _ = run(command, complete, "--resume", "--save-affinities", "--json")
    assert json.loads(stdout) == {"output": str(complete), "complete": True}


def test_places_that_cannot_be_written_are_refused_before_anything_is_made(command: list[str], tmp_path: Path) -> None:
    output = tmp_path / "out.zarr"
    _, told = run(command, output, "--preview", str(tmp_path / "nowhere" / "p.png"), code=2)
    assert "there is no folder" in told
    for graph in (output, output / "tree.zarr", tmp_path):
        options = ["--decoder", "blockwise", "--threshold", "0.5", "--save-graph", str(graph)]
        _, told = run(command, output, *options, code=1)
        assert "cannot be the output, lie in it or hold it" in told
    for beside in (".decoding", ".decoding/tree.zarr", ".network/tree.zarr", ".journal", ".run.json"):
        options = ["--decoder", "blockwise", "--threshold", "0.5", "--save-graph", f"{output}{beside}"]
        _, told = run(command, output, *options, code=1)
        assert f"the merge tree cannot lie in out.zarr{beside.split('/')[0]}" in told
    assert list(tmp_path.iterdir()) == []


def test_a_merge_tree_that_cannot_be_written_is_refused_before_anything_is_made(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link.zarr").symlink_to("elsewhere")
    options = ["--decoder", "blockwise", "--threshold", "0.5", "--save-graph"]
    for graph, problem in (
        ("file/tree.zarr", "is a file, not a folder"),
        ("file/new/tree.zarr", "is a file, not a folder"),
        ("link.zarr", "this is a link"),
        ("new/tree.zarr", "is no folder that you may write to"),
    ):
        if graph == "new/tree.zarr":
            # Root may write anywhere.
            monkeypatch.setattr("os.access", lambda _, mode: not mode & os.W_OK)
        for extra in ([], ["--dry-run"]):
            _, told = run(command, tmp_path / "out.zarr", *options, str(tmp_path / graph), *extra, code=1)
            assert problem in told
    assert not (tmp_path / "out.zarr").exists()


@pytest.mark.parametrize("options", [[], ["--overwrite"], ["--resume"], ["--rescale", "10,8,8"]])
def test_what_lies_where_a_run_puts_things_for_a_while_is_refused_and_stays(
    command: list[str], tmp_path: Path, options: list[str]
) -> None:
    kept = tmp_path / f"out.zarr.{'network' if '--rescale' in options else 'decoding'}"
    kept.mkdir()
    (kept / "notes.txt").write_text("dear")
    for extra in ([], ["--dry-run"]):
        _, told = run(command, tmp_path / "out.zarr", "--voxel-size", "10,10,10", *options, *extra, code=1)
        assert "choose another output, or move it away" in told
    assert [entry.relative_to(tmp_path) for entry in tmp_path.rglob("*")] == [
        Path(kept.name),
        Path(kept.name, "notes.txt"),
    ]
