"""A grid of runs: every cell of the paper's tables trains, nothing twice, and the table says what it knows."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from fgnet.network import training_log
from fgnet.network.data import LabelledVolume
from fgnet.network.experiment_cells import EXPERIMENTS
from fgnet.network.experiment_results import RESULT
from fgnet.network.experiment_table import PAPER, RESULTS, TABLE, render, summaries
from fgnet.network.experiments import CellProgress, Setting, run_experiment
from fgnet.network.model import FGNet
from fgnet.network.training import TrainingOptions
from fgnet.network.validation import Validation, hold_out
from fgnet.volumes.errors import CheckpointError, TrainingError

pytestmark = pytest.mark.usefixtures("one_torch_thread")

OPTIONS = TrainingOptions(iterations=1, batch=1, crop=(2, 32, 32), validate_every=1, save_every=1)
NETWORK: dict[str, Any] = {"encoder": "nano", "patch": (2, 32, 32)}


@pytest.fixture(autouse=True)
def no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_log, "save_curves", lambda *_: None)


@pytest.fixture
def setting(squares: LabelledVolume) -> Setting:
    kept, cut = hold_out(squares, 0.3)
    validation = Validation(cut, thresholds=(0.5,), min_size=10)
    return Setting(NETWORK, OPTIONS, (0,), [kept], validation, facts={"encoder": "nano, random weights"})


def run(folder: Path, name: str, setting: Setting) -> list[CellProgress]:
    return list(run_experiment(folder, EXPERIMENTS[name], setting))


def trained(progress: list[CellProgress]) -> list[tuple[str, int]]:
    return [(p.cell.name, p.seed) for p in progress if p.now is not None]


@pytest.mark.parametrize("name", ["table4", "table5", "table6", "table7"])
def test_every_cell_of_the_papers_tables_trains(tmp_path: Path, setting: Setting, name: str) -> None:
    cells = [cell.name for cell in EXPERIMENTS[name].cells]
    assert trained(run(tmp_path, name, setting)) == [(cell, 0) for cell in cells]
    content = json.loads((tmp_path / RESULTS).read_text())
    assert [row["cell"] for row in content["rows"]] == cells
    assert all(row["voi"] == pytest.approx(row["voi_split"] + row["voi_merge"]) for row in content["rows"])
    assert len({json.dumps(entry["config"]) for entry in content["runs"]}) == len(cells)
    table = (tmp_path / TABLE).read_text()
    assert "- encoder: nano, random weights" in table
    assert "paper" not in table.replace("not the paper's", "")
    for cell in EXPERIMENTS[name].cells:
        assert f"| {cell.label} |" in table


def test_a_grid_goes_on_where_it_was_and_trains_nothing_twice(tmp_path: Path, setting: Setting) -> None:
    longer = dataclasses.replace(setting, options=dataclasses.replace(OPTIONS, iterations=2), seeds=(0, 1))
    stopped = run_experiment(tmp_path, EXPERIMENTS["adaptation"], longer)
    for _ in range(3):  # both steps of the first run, one of the second
        next(stopped)
    stopped.close()
    rest = run(tmp_path, "adaptation", longer)
    assert [(p.cell.name, p.seed, p.now and p.now.step) for p in rest] == [
        ("frozen", 0, None),
        ("frozen", 1, 2),
        ("fine_tuned", 0, 1),
        ("fine_tuned", 0, 2),
        ("fine_tuned", 1, 1),
        ("fine_tuned", 1, 2),
    ]
    table = (tmp_path / TABLE).read_text()
    assert trained(run(tmp_path, "adaptation", longer)) == []
    assert (tmp_path / TABLE).read_text() == table
    assert table.count(" ± ") == 2 * 4 + 1  # and the legend


def test_a_finished_grid_that_is_asked_for_more_steps_goes_on(tmp_path: Path, setting: Setting) -> None:
    longer = dataclasses.replace(setting, options=dataclasses.replace(OPTIONS, iterations=3))
    run(tmp_path / "once", "adaptation", longer)
    run(tmp_path / "twice", "adaptation", setting)
    rest = run(tmp_path / "twice", "adaptation", longer)
    assert [(p.cell.name, p.now and p.now.step) for p in rest] == [
        (name, step) for name in ("frozen", "fine_tuned") for step in (2, 3)
    ]
    kinds = ("cell", "options", "validation", "best_step")
    once, twice = (
        [{kind: entry[kind] for kind in kinds} for entry in json.loads((tmp_path / way / RESULTS).read_text())["runs"]]
        for way in ("once", "twice")
    )
    assert twice == once
    with pytest.raises(TrainingError, match=r"iterations was 3, is 1"):
        run(tmp_path / "twice", "adaptation", setting)


def test_a_finished_run_of_other_options_is_refused_naming_them(tmp_path: Path, setting: Setting) -> None:
    run(tmp_path, "adaptation", setting)
    other = dataclasses.replace(setting, options=dataclasses.replace(OPTIONS, learning_rate=0.5))
    with pytest.raises(TrainingError, match=r"frozen-seed0.*finished otherwise: learning_rate was 0\.0001, is 0\.5"):
        run(tmp_path, "adaptation", other)
    (tmp_path / "frozen-seed0" / RESULT).write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        run(tmp_path, "adaptation", setting)


@pytest.mark.parametrize("option", [{"learning_rate": 0.5}, {"precision": "bf16"}])
def test_an_unfinished_run_does_not_go_on_with_what_would_tell_it_from_the_other_cells(
    tmp_path: Path, setting: Setting, option: dict[str, Any]
) -> None:
    longer = dataclasses.replace(setting, options=dataclasses.replace(OPTIONS, iterations=2))
    stopped = run_experiment(tmp_path, EXPERIMENTS["adaptation"], longer)
    next(stopped)
    stopped.close()
    other = dataclasses.replace(longer, options=dataclasses.replace(longer.options, **option))
    with pytest.raises(
        TrainingError, match=rf"last\.pt: this run was made of something else: {next(iter(option))} was"
    ):
        run(tmp_path, "adaptation", other)


def made_of(setting: Setting, **facts: str) -> Setting:
    return dataclasses.replace(setting, facts={"encoder": "nano", "trained on": "squares", "version": "1"} | facts)


@pytest.mark.parametrize(
    ("fact", "value"),
    [("encoder", "another"), ("trained on", "circles"), ("validated on", "y"), ("figures of", "y"), ("decoder", "y")],
)
def test_a_finished_run_made_of_something_else_is_refused_naming_it(
    tmp_path: Path, setting: Setting, fact: str, value: str
) -> None:
    first = made_of(setting, **{"validated on": "x", "figures of": "x", "decoder": "x"})
    folder = tmp_path / "frozen-seed0"
    folder.mkdir()
    config, options = first.config(EXPERIMENTS["adaptation"].cells[0]).to_dict(), OPTIONS.to_dict()
    (folder / RESULT).write_text(json.dumps({"config": config, "options": options, "origin": first.origin}))
    assert first.facts is not None
    other = dataclasses.replace(first, facts=dict(first.facts) | {fact: value})
    was = first.facts[fact]
    with pytest.raises(TrainingError, match=rf"frozen-seed0.*{RESULT}.*: {fact} was '{was}', is '{value}' \(give"):
        run(tmp_path, "adaptation", other)
    assert not (tmp_path / TABLE).exists()


def test_a_finished_run_of_other_labels_is_refused(tmp_path: Path, setting: Setting) -> None:
    run(tmp_path, "adaptation", setting)
    (volume,), place = setting.volumes, setting.validation.volume
    sparse = dataclasses.replace(volume, known=volume.labels != 1, weight=2.0)
    with pytest.raises(TrainingError, match=r"volume_weights was \[1\.0\], is \[2\.0\], labelled_voxels was"):
        run(tmp_path, "adaptation", dataclasses.replace(setting, volumes=[sparse]))
    held_out = dataclasses.replace(place, known=place.labels != place.labels.max())
    validation = dataclasses.replace(setting.validation, volume=held_out)
    with pytest.raises(TrainingError, match="validated_voxels was"):
        run(tmp_path, "adaptation", dataclasses.replace(setting, validation=validation))
    assert trained(run(tmp_path, "adaptation", setting)) == []


def test_runs_go_on_by_another_version_and_without_facts_that_they_do_not_know(
    tmp_path: Path, setting: Setting
) -> None:
    longer = dataclasses.replace(setting, options=dataclasses.replace(OPTIONS, iterations=2))
    stopped = run_experiment(tmp_path, EXPERIMENTS["adaptation"], made_of(longer))
    next(stopped)
    stopped.close()
    with pytest.raises(TrainingError, match=r"frozen-seed0.*last\.pt.*: encoder was 'nano', is 'another'"):
        run(tmp_path, "adaptation", made_of(longer, encoder="another"))
    assert trained(run(tmp_path, "adaptation", made_of(longer, version="2")))[0] == ("frozen", 0)
    for path in tmp_path.glob(f"*/{RESULT}"):
        content = json.loads(path.read_text())
        assert content.pop("origin") == longer.origin | {"encoder": "nano", "trained on": "squares"}
        path.write_text(json.dumps(content))
    assert trained(run(tmp_path, "adaptation", made_of(longer, encoder="another"))) == []


def test_first_weights_go_to_the_networks_that_have_an_encoder(tmp_path: Path, setting: Setting) -> None:
    loaded: list[FGNet] = []
    assert "without_sam2" in [cell.name for cell in EXPERIMENTS["table5"].cells]
    run(tmp_path, "table5", dataclasses.replace(setting, initial=loaded.append))
    assert [network.config.modules for network in loaded] == ["without_fge", "without_fga", "full"]


def test_test_data_are_scored_at_the_threshold_of_the_validation(
    tmp_path: Path, setting: Setting, squares: LabelledVolume
) -> None:
    levels = dataclasses.replace(setting.validation, thresholds=(0.2, 0.8))
    run(tmp_path, "adaptation", dataclasses.replace(setting, validation=levels, test=squares))
    for entry in json.loads((tmp_path / RESULTS).read_text())["runs"]:
        assert entry["test"]["threshold"] == entry["validation"]["threshold"]
        assert entry["test"] != entry["validation"]
    row = json.loads((tmp_path / RESULTS).read_text())["rows"][0]
    assert row["voi"] == json.loads((tmp_path / "frozen-seed0" / RESULT).read_text())["test"]["voi"]


@pytest.mark.parametrize("seeds", [(), (1, 1)])
def test_seeds_must_be_there_and_differ(tmp_path: Path, setting: Setting, seeds: tuple[int, ...]) -> None:
    with pytest.raises(TrainingError, match="seeds are"):
        run(tmp_path, "adaptation", dataclasses.replace(setting, seeds=seeds))


def result(cell: str, seed: int, voi: float) -> dict[str, Any]:
    figures = {"voi": voi, "voi_split": voi / 2, "voi_merge": voi / 2, "arand": 0.1}
    return {"cell": cell, "label": cell, "seed": seed, "seconds": 10.0, "validation": figures}


def test_figures_are_means_and_sample_deviations_over_seeds() -> None:
    first, second = summaries([result("frozen", 0, 1.0), result("frozen", 1, 2.0), result("fine_tuned", 0, 1.0)])
    assert (first["voi"], first["voi_spread"]) == (1.5, pytest.approx(0.5**0.5))
    assert (second["voi"], second["voi_spread"]) == (1.0, None)


def test_the_papers_figures_stand_beside_ours_for_its_data_sets_only() -> None:
    rows = summaries([result("frozen", 0, 1.0), result("fine_tuned", 0, 1.0)])
    known = render("Title", rows, {}, PAPER["cremi-b"])
    assert "| frozen | 1.000 | 0.500 | 0.500 | 0.100 | 1 | 10 | 0.778 / 0.061 |" in known
    assert "paper" not in render("Title", rows, {})


@pytest.mark.parametrize("name", EXPERIMENTS)
@pytest.mark.parametrize("adaptation", ["frozen", "fine_tuned"])
def test_no_two_rows_of_a_table_are_one_network(name: str, adaptation: str, setting: Setting) -> None:
    frozen = dataclasses.replace(setting, network=dict(setting.network) | {"adaptation": adaptation})
    cells = EXPERIMENTS[name].cells
    assert len({frozen.config(cell) for cell in cells}) == len(cells)
