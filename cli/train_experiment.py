"""Experiments of fgnet-train: one of the paper's tables, trained cell by cell."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from fgnet.cli.console import say, voxel_progress
from fgnet.cli.stop_signals import StopSignals, stop_signals
from fgnet.cli.train_run import OTHER_VALIDATION, DecoderName, make_validation, tell_shared
from fgnet.volumes.errors import OutputError, TrainingError

if TYPE_CHECKING:
    from fgnet.network.experiment_cells import Experiment
    from fgnet.network.experiments import Setting
    from fgnet.network.labelled_volume import LabelledVolume
    from fgnet.network.model import FGNet
    from fgnet.network.training_options import Resources, TrainingOptions


@dataclass(frozen=True, eq=False)
class GridRequest:
    """What a command line says about a grid.

    Attributes:
        experiment: which table.
        seeds: of the runs, "0,1".
        network: the fields of FGNetConfig that were given; a cell's own value takes precedence.
        training: the fields of TrainingOptions that were given.
        sam2: official weights for the encoders.
        start: an fgnet model whose encoder's weights are taken in their place.
        data_set: the name of the data, if they have one.
        decoder: of validations.
        share: of the first volume, held out where nothing else is.
    """

    experiment: str
    seeds: str | None
    network: Mapping[str, Any]
    training: Mapping[str, Any]
    sam2: Path | None = None
    start: str | None = None
    data_set: str | None = None
    decoder: DecoderName | None = None
    share: float | None = None


def run_grid(
    folder: Path,
    request: GridRequest,
    volumes: list[LabelledVolume],
    held_out: LabelledVolume | None,
    test: LabelledVolume | None,
    resources: Resources,
    *,
    provenance: Mapping[str, Any],
    overwrite: bool = False,
) -> dict[str, Any]:
    """Trains what of the grid is not trained yet; the table's rows.

    Raises:
        TrainingError: nothing to validate on, no seeds, or what `experiments.run_experiment` refuses.
        OutputError: the folder cannot be used.
    """
    from fgnet.network.experiment_cells import EXPERIMENTS
    from fgnet.network.training import TrainingStoppedError
    from fgnet.network.training_options import TrainingOptions
    from fgnet.network.validation import hold_out

    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise TrainingError(
            "an experiment is not shared by processes",
            remedy="start one fgnet-train for each GPU, with other --seeds and another folder",
        )
    if held_out is not None and request.share:
        raise TrainingError(OTHER_VALIDATION, remedy="leave --val-share out")
    if held_out is None and request.share:
        kept, held_out = hold_out(volumes[0], request.share)
        volumes = [kept, *volumes[1:]]
    if held_out is None:
        raise TrainingError(
            "an experiment chooses checkpoints and thresholds on validation data",
            remedy="give --val-raw and --val-labels, --val-share, or a --dataset",
        )
    for scored in (held_out,) if test is None else (held_out, test):
        tell_shared(volumes, scored)
    experiment = EXPERIMENTS[request.experiment]
    options = TrainingOptions(**request.training)
    setting = _setting(request, options, volumes, held_out, test, resources, provenance)
    _open(folder, experiment, setting, overwrite=overwrite)
    with stop_signals(lambda: say("saving, then stopping")) as stop:
        try:
            _run(folder, experiment, setting, math.prod(options.crop) * options.batch, stop)
        except (KeyboardInterrupt, TrainingStoppedError):
            say(f"stopped; the same command without --overwrite goes on with {folder}", "yellow")
            raise typer.Exit(128 + (stop.number or signal.SIGINT)) from None
    return _result(folder)


def _setting(
    request: GridRequest,
    options: TrainingOptions,
    volumes: list[LabelledVolume],
    held_out: LabelledVolume,
    test: LabelledVolume | None,
    resources: Resources,
    provenance: Mapping[str, Any],
) -> Setting:
    from fgnet.network.config import preset
    from fgnet.network.experiment_table import paper_figures
    from fgnet.network.experiments import Setting

    network = dict(request.network)
    initial, weights, decoding = None, "random weights", None
    if request.sam2 is not None and request.start is not None:
        raise TrainingError("both --sam2 and --from give the encoder's weights", remedy="give one of them")
    if request.sam2 is not None:
        network.setdefault("encoder", "tiny")
        if network["encoder"] == "nano":
            raise TrainingError("nano is no encoder of SAM2", where=request.sam2, remedy="choose another --encoder")
        initial, weights = _sam2(request.sam2), f"weights of {request.sam2.name}"
    if request.start is not None:
        from fgnet.cli.first_weights import find_model

        model = find_model(request.start)
        network.setdefault("encoder", model.checkpoint.config.encoder)
        initial, weights = _encoder_of(request.start), f"weights of the encoder of {model.name}"
        decoding = model.decoding_settings
    network.setdefault("encoder", "nano")
    config = preset(**network)
    # The paper's figures are of all objects.
    min_size = 0 if paper_figures(request.experiment, request.data_set) else None
    validation = make_validation(held_out, config, decoding, request.decoder, resources, min_size=min_size)
    least = validation.min_size
    facts = {
        "encoder": f"{config.encoder}, {weights}",
        "trained on": "; ".join(volume.name for volume in volumes),
        "validated on": held_out.name,
        "figures of": held_out.name + ", which also chose checkpoint and threshold" if test is None else test.name,
        "scored": f"true objects of at least {least} voxels" if least else "all true objects",
        "steps": f"{options.iterations} at batch {options.batch}, crops {options.crop}, {options.precision}",
        "learning rate": f"{options.learning_rate:g}, {options.schedule}",
        "decoder": f"{validation.decoder}, fragments of {validation.decoding.fragments}",
    }
    return Setting(
        network=network,
        options=options,
        seeds=_seeds(request.seeds),
        volumes=volumes,
        validation=validation,
        test=test,
        initial=initial,
        resources=resources,
        facts=facts | dict(provenance),
        data_set=request.data_set,
    )


def _sam2(path: Path) -> Any:
    from fgnet.network.encoder import load_sam2_weights

    def load(network: FGNet) -> None:
        if network.encoder is not None:
            load_sam2_weights(network.encoder, path)

    return load


def _encoder_of(start: str) -> Any:
    """Loads another model's encoder; of the rest nothing, for that is what the cells differ in."""
    from fgnet.cli.first_weights import find_model
    from fgnet.network.encoder import load_exactly

    prefix = "encoder."
    found = find_model(start).checkpoint.weights
    weights = {key.removeprefix(prefix): value for key, value in found.items() if key.startswith(prefix)}

    def load(network: FGNet) -> None:
        if network.encoder is not None:
            load_exactly(network.encoder, weights, where=Path(start))

    return load


def _seeds(text: str | None) -> tuple[int, ...]:
    try:
        seeds = tuple(int(part) for part in (text or "0").split(","))
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no list of whole numbers", param_hint="--seeds") from None
    if min(seeds) < 0:
        raise typer.BadParameter(f"{text!r} has a negative one", param_hint="--seeds")
    return seeds


def _open(folder: Path, experiment: Experiment, setting: Setting, *, overwrite: bool) -> None:
    """Creates the folder; with overwrite, what is there of these runs is removed, once the new ones can begin."""
    from fgnet.network.experiments import remove_runs, require_trainable_cells
    from fgnet.network.run_folder import locked

    if folder.exists() and not folder.is_dir():
        raise OutputError("this is a file", where=folder, remedy="name a folder for the experiment")
    if overwrite:
        require_trainable_cells(experiment, setting)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if overwrite:
            with locked(folder):
                remove_runs(folder, experiment, setting.seeds)
    except OSError as error:
        raise OutputError(
            f"the folder cannot be used: {error.strerror}", where=folder, remedy="choose another one"
        ) from error


def _run(folder: Path, experiment: Experiment, setting: Setting, voxels: int, stop: StopSignals) -> None:
    from fgnet.network.experiments import run_experiment

    steps = setting.options.iterations
    count = len(experiment.cells) * len(setting.seeds)
    number = 0
    with voxel_progress(experiment.name, count * steps * voxels) as bar:
        for progress in run_experiment(folder, experiment, setting, say, stop):
            where = f"{progress.cell.label}, seed {progress.seed} ({progress.number}/{progress.count})"
            if progress.number != number:
                number = progress.number
                bar.skip(voxels * (steps if progress.now is None else progress.now.step - 1))
            if progress.now is None:
                bar.say(f"{where}: finished before")
                continue
            done = (progress.number - 1) * steps + progress.now.step
            bar.update(done * voxels, f"{where}  step {progress.now.step}/{steps}  loss {progress.now.loss:.4f}")
            if progress.now.score is not None:
                bar.say(f"{where}, step {progress.now.step}: VOI {progress.now.score:.4g}")


def _result(folder: Path) -> dict[str, Any]:
    import json

    from fgnet.network.experiment_table import RESULTS, TABLE

    content = json.loads((folder / RESULTS).read_text())
    return {"table": str(folder / TABLE), **{key: content[key] for key in ("experiment", "facts", "rows")}}
