"""How is a grid of runs trained, run by run, and gone on with where it was stopped?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from fgnet.network.checkpoint import load_checkpoint
from fgnet.network.config import FGNetConfig, preset
from fgnet.network.data import LabelledVolume
from fgnet.network.experiment_cells import Cell, Experiment, run_name
from fgnet.network.experiment_results import RESULT, finished, require_unchanged, write
from fgnet.network.experiment_table import RESULTS, TABLE, write_tables
from fgnet.network.model import FGNet
from fgnet.network.run_folder import locked
from fgnet.network.training import (
    Progress,
    Resources,
    TrainingOptions,
    TrainingStoppedError,
    identities,
    require_trainable,
    train,
)
from fgnet.network.training_state import MODEL, STATE
from fgnet.network.validation import Validation, fitting_patch
from fgnet.volumes.errors import TrainingError
from fgnet.volumes.removal import remove_folder

# Of the facts about a grid, what its figures depend on; the others are of the options, or of who made it.
ORIGIN = ("encoder", "trained on", "validated on", "figures of", "scored", "decoder")


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


def require_trainable_cells(experiment: Experiment, setting: Setting) -> None:
    """Refuse what any run of a grid would refuse before its first step; writes nothing.

    Raises:
        TrainingError, CheckpointError: as `run_experiment`.
    """
    for cell in experiment.cells:
        config = setting.config(cell)
        initial = _initial(config, setting)
        require_trainable(config, setting.options, setting.volumes, initial=initial, resources=setting.resources)


def remove_runs(folder: Path, experiment: Experiment, seeds: Sequence[int]) -> None:
    """Delete the runs of a grid, and the tables that were made of them.

    Raises:
        OSError: something cannot be deleted.
    """
    for name in (TABLE, RESULTS):
        (folder / name).unlink(missing_ok=True)
    for cell in experiment.cells:
        for seed in seeds:
            remove_folder(folder / run_name(cell, seed))


def _initial(config: FGNetConfig, setting: Setting) -> Callable[[FGNet], None] | None:
    return None if config.modules == "without_sam2" else setting.initial


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
        initial=_initial(config, setting),
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
