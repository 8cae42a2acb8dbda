"""The paper's ablations (arXiv 2511.13063, Tables 4 to 7), each a grid of runs that differ in one value."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from fgnet.network.checkpoint import load_checkpoint
from fgnet.network.config import FGNetConfig, preset
from fgnet.network.data import LabelledVolume
from fgnet.network.experiment_results import RESULT, finished, require_unchanged, write
from fgnet.network.experiment_table import write_tables
from fgnet.network.model import FGNet
from fgnet.network.run_folder import locked
from fgnet.network.training import Progress, Resources, TrainingOptions, TrainingStoppedError, identities, train
from fgnet.network.training_state import MODEL, STATE
from fgnet.network.validation import Validation, fitting_patch
from fgnet.volumes.errors import TrainingError

# Of the facts about a grid, what its figures depend on; the others are of the options, or of who made it.
ORIGIN = ("encoder", "trained on", "validated on", "figures of", "decoder")


@dataclass(frozen=True)
class Cell:
    """One row of a table.

    Attributes:
        name: of its folders.
        label: as the table calls it.
        changes: fields of the network's configuration.
    """

    name: str
    label: str
    changes: Mapping[str, Any]


@dataclass(frozen=True)
class Experiment:
    """One table.

    Attributes:
        name: on the command line.
        title: of the table.
        cells: its rows.
    """

    name: str
    title: str
    cells: tuple[Cell, ...]


def _values(field: str, **labels: str) -> tuple[Cell, ...]:
    return tuple(Cell(value, label, {field: value}) for value, label in labels.items())


EXPERIMENTS: dict[str, Experiment] = {
    experiment.name: experiment
    for experiment in (
        Experiment(
            "adaptation", "Adaptation of the encoder", _values("adaptation", frozen="frozen", fine_tuned="fine-tuned")
        ),
        Experiment(
            "table4",
            "Table 4: ways of adapting the encoder",
            (
                Cell("frozen", "frozen encoder, coarse decoder", {"modules": "without_fge", "adaptation": "frozen"}),
                Cell(
                    "tuning", "fine-tuning: the same, trained", {"modules": "without_fge", "adaptation": "fine_tuned"}
                ),
                Cell("refinement", "refinement: FGE without guidance", {"modules": "without_fga"}),
                Cell("ours", "FGNet", {"modules": "full"}),
            ),
        ),
        Experiment(
            "table5",
            "Table 5: modules",
            _values(
                "modules",
                without_sam2="without SAM2's encoder",
                without_fge="without FGE",
                without_fga="without FGA",
                full="FGNet",
            ),
        ),
        Experiment(
            "table6",
            "Table 6: guidance",
            _values(
                "guidance",
                fga="FGA",
                se="SE",
                cbam="CBAM",
                eca="ECA",
                cross_attention="cross-attention (not the paper's)",
            ),
        ),
        Experiment(
            "table7",
            "Table 7: levels of the fine-grained encoder",
            tuple(Cell(f"depth{depth}", str(depth), {"depth": depth}) for depth in (3, 4, 5)),
        ),
    )
}


def run_name(cell: Cell, seed: int) -> str:
    """The folder of a run."""
    return f"{cell.name}-seed{seed}"


@dataclass(frozen=True, eq=False)
class Setting:
    """What all runs of a grid have in common.

    Attributes:
        network: fields of the configuration, `encoder` among them; a cell's own value takes precedence.
        options: how each network is trained; the seed is replaced.
        seeds: each cell is trained once with each.
        volumes: trained on.
        validation: chooses the best checkpoint of a run, and its threshold.
        test: scored at the end, at that threshold; without it the figures are those of the validation.
        initial: loads first weights into the encoder of a network; not called for one without.
        resources: that a run is carried out by.
        facts: plain data for the tables' heads and the models' provenance.
        data_set: its name, where it is one of the paper's.
    """

    network: Mapping[str, Any]
    options: TrainingOptions
    seeds: tuple[int, ...]
    volumes: list[LabelledVolume]
    validation: Validation
    test: LabelledVolume | None = None
    initial: Callable[[FGNet], None] | None = None
    resources: Resources | None = None
    facts: Mapping[str, Any] | None = None
    data_set: str | None = None

    def config(self, cell: Cell) -> FGNetConfig:
        """The network of a cell."""
        values = dict(self.network) | dict(cell.changes)
        return preset(values.pop("encoder"), **values)

    @cached_property
    def origin(self) -> dict[str, Any]:
        """What tells first weights, data and decoder from others."""
        said = {key: value for key, value in (self.facts or {}).items() if key in ORIGIN}
        return said | identities(self.volumes) | {"validated_voxels": self.validation.volume.labelled_voxels}


@dataclass(frozen=True)
class CellProgress:
    """Where a grid stands.

    Attributes:
        cell: that is trained.
        seed: of this run of it.
        number: of the run in the grid, from 1.
        count: of all runs.
        now: the last step; None for a run that was finished before.
    """

    cell: Cell
    seed: int
    number: int
    count: int
    now: Progress | None = None


def run_experiment(
    folder: Path,
    experiment: Experiment,
    setting: Setting,
    say: Callable[[str], None] = lambda _: None,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[CellProgress]:
    """Train and score every cell of a grid with every seed, and write `table.md` and `results.json` after each.

    Each run has a folder of its own. A run that is finished is not repeated, one that was interrupted goes on, and so
    does a finished one that is asked for more steps.

    Args:
        folder: of the grid.
        experiment: which one.
        setting: what its runs have in common.
        say: tells the user.
        stop: asked before each step, and before a run is scored, whether to stop.

    Raises:
        TrainingStoppedError: `stop` said so; the same call goes on.
        TrainingError: no seed, a configuration that cannot be trained on these data, a finished run of other options,
            or a run of other data, first weights or decoder, which are named; what `training.train` refuses.
        CheckpointError: a result or a checkpoint that is damaged.
        OutputError: something cannot be written, or another grid or run is writing in a folder.
    """
    if not setting.seeds or len(set(setting.seeds)) != len(setting.seeds):
        raise TrainingError(f"seeds are {setting.seeds}", remedy="give each once, and at least one")
    runs = [(cell, seed) for cell in experiment.cells for seed in setting.seeds]
    # A cell that cannot be built is found before hours of training.
    configs = {cell.name: setting.config(cell) for cell in experiment.cells}
    results: list[dict[str, Any]] = []
    with locked(folder):
        for number, (cell, seed) in enumerate(runs, start=1):
            progress = CellProgress(cell, seed, number, len(runs))
            own, config = folder / run_name(cell, seed), configs[cell.name]
            options = replace(setting.options, seed=seed)
            wanted = {"config": config.to_dict(), "options": options.to_dict(), "origin": setting.origin}
            result = finished(own / RESULT, wanted)
            if result is None:
                for now in _train(own, config, options, setting, say, stop):
                    yield replace(progress, now=now)
                if stop():
                    raise TrainingStoppedError
                result = {"cell": cell.name, "label": cell.label, "seed": seed} | wanted | _scored(own, config, setting)
                write(own / RESULT, result)
            else:
                yield progress
            results.append(result)
            write_tables(folder, experiment.name, experiment.title, results, setting.facts or {}, setting.data_set)


def _train(
    folder: Path,
    config: FGNetConfig,
    options: TrainingOptions,
    setting: Setting,
    say: Callable[[str], None],
    stop: Callable[[], bool],
) -> Iterator[Progress]:
    state = folder / STATE
    resume = state.is_file()
    if resume:
        require_unchanged(state, load_checkpoint(state).provenance, setting.origin, options)
    return train(
        folder,
        config,
        options,
        setting.volumes,
        validate=replace(setting.validation, patch=fitting_patch(config, setting.validation.volume.raw.shape)),
        initial=None if config.modules == "without_sam2" else setting.initial,
        resume=resume,
        provenance=dict(setting.facts or {}) | setting.origin | {"decoding": setting.validation.settings},
        resources=setting.resources,
        stop=stop,
        say=say,
    )


def _scored(folder: Path, config: FGNetConfig, setting: Setting) -> dict[str, Any]:
    """The figures of the best checkpoint of a run, on test data where there are some."""
    kept = load_checkpoint(folder / MODEL)
    figures: dict[str, Any] = kept.provenance["validation"]
    state = load_checkpoint(folder / STATE).provenance
    found = {"validation": figures, "best_step": kept.provenance["steps"], "seconds": state["seconds"]}
    if setting.test is not None:
        patch = fitting_patch(config, setting.test.raw.shape)
        test = replace(setting.validation, volume=setting.test, thresholds=(float(figures["threshold"]),), patch=patch)
        found["test"] = test(kept.build())
    return found
