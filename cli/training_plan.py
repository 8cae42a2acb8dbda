"""What a command line asks fgnet-train for: configuration, options, first weights and where they come from."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fgnet.volumes.errors import CheckpointError, OutputError, TrainingError

if TYPE_CHECKING:
    from fgnet.network.config import FGNetConfig
    from fgnet.network.labelled_volume import LabelledVolume
    from fgnet.network.model import FGNet
    from fgnet.network.training_options import TrainingOptions

STATE, MODEL = "last.pt", "model.pt"

# Of a model that has learned what a membrane is: fewer and smaller steps than from random weights, checked often.
FINE_TUNING: dict[str, Any] = {
    "iterations": 200,
    "batch": 2,
    "crop": (16, 128, 128),
    "learning_rate": 3e-4,
    "schedule": "cosine",
    "warmup": 20,
    "ema": 0.98,
    "save_every": 50,
    "validate_every": 50,
}
VALIDATION_SHARE = 0.2


@dataclass(frozen=True)
class TrainingPlan:
    """The network that is trained, and how.

    Attributes:
        config: the network.
        options: how it is trained.
        first: steps done already, by the run that is resumed.
        initial: loads the first weights; None leaves them random.
        decoding: how validations decode, as the bundle of the first weights recommends; None for the default.
        share: of the first volume, held out to validate on where nothing else is.
        facts: about the first weights, kept in the model's provenance.
    """

    config: FGNetConfig
    options: TrainingOptions
    first: int = 0
    initial: Callable[[FGNet], None] | None = None
    decoding: Mapping[str, Any] | None = None
    share: float = 0.0
    facts: Mapping[str, Any] = field(default_factory=dict)


def make_plan(
    folder: Path,
    network: Mapping[str, Any],
    training: Mapping[str, Any],
    *,
    sam2: Path | None = None,
    start: str | None = None,
    share: float | None = None,
    resume: bool = False,
) -> TrainingPlan:
    """Completes what was asked for by what a resumed run, a first model or the defaults say.

    Args:
        folder: of the run.
        network: the fields of FGNetConfig that were given.
        training: the fields of TrainingOptions that were given.
        sam2: official weights for the encoder.
        start: an fgnet model that is fine-tuned: its weights and configuration are taken, see `find_model`.
        share: of the first volume to hold out; a fifth where a model is fine-tuned and nothing is said.
        resume: whether the run in the folder goes on.

    Raises:
        CheckpointError: a checkpoint that cannot be read, or a configuration that cannot be built.
        TrainingError: options that contradict each other, or from which nothing is learned.
    """
    from fgnet.network.config import preset
    from fgnet.network.training_options import TrainingOptions

    if resume:
        return _resumed(folder / STATE, network, training, start, share)
    if sam2 is not None and start is not None:
        raise TrainingError("both --sam2 and --from give the encoder's weights", remedy="give one of them")
    if start is not None:
        plan = _fine_tuned(start, network, training)
        return plan if share is None else replace(plan, share=share)
    options = TrainingOptions(**training)
    given = dict(network)
    config = preset(given.pop("encoder", "nano" if sam2 is None else "tiny"), **given)
    if sam2 is None:
        return TrainingPlan(config, options, share=share or 0.0)
    if config.encoder == "nano" or config.modules == "without_sam2":
        raise TrainingError(
            "this network has no SAM2 encoder to load weights into",
            where=sam2,
            remedy="choose --encoder tiny, small, base_plus or large, or leave --sam2 out",
        )
    return TrainingPlan(config, options, initial=lambda model: _load_sam2(model, sam2), share=share or 0.0)


def _fine_tuned(start: str, network: Mapping[str, Any], training: Mapping[str, Any]) -> TrainingPlan:
    from fgnet.cli.first_weights import find_model
    from fgnet.export.recommended_decoding import RECOMMENDED
    from fgnet.network.training_options import TrainingOptions

    model = find_model(start)
    weights = model.checkpoint
    known = ("steps", "volumes", "voxel_sizes", "version")
    origin = {key: weights.provenance[key] for key in known if key in weights.provenance}
    return TrainingPlan(
        replace(weights.config, **_with_widths(weights.config, network)),
        TrainingOptions(**FINE_TUNING | dict(training)),
        initial=lambda network: _load(network, weights.weights, Path(start)),
        decoding=model.decoding_settings,
        share=VALIDATION_SHARE,
        facts={"started_from": {"model": model.name} | origin, RECOMMENDED: asdict(model.decoding)},
    )


def fitted(plan: TrainingPlan, volumes: Sequence[LabelledVolume]) -> TrainingPlan:
    """The same with crops that fit into all volumes, as large as the network can halve; for crops nobody asked for."""
    multiple, crop = plan.config.section_multiple, plan.options.crop
    least = [min(sides) for sides in zip(*(volume.raw.shape for volume in volumes), crop, strict=True)]
    depth, rows, columns = least[0], *(max(side // multiple, 1) * multiple for side in least[1:])
    return replace(plan, options=replace(plan.options, crop=(depth, rows, columns)))


def _resumed(
    path: Path,
    network: Mapping[str, Any],
    training: Mapping[str, Any],
    start: str | None,
    share: float | None,
) -> TrainingPlan:
    """The run as it was; what is given on top is compared, and refused where it differs, here or by `train`."""
    from fgnet.cli.first_weights import find_model
    from fgnet.export.recommended_decoding import RECOMMENDED
    from fgnet.network.augment import AugmentOptions
    from fgnet.network.checkpoint import load_checkpoint
    from fgnet.network.training_options import TrainingOptions

    saved = load_checkpoint(path)
    if saved.training is None:
        raise CheckpointError("holds weights only", where=path, remedy=f"resume a folder with its own {STATE}")
    fields: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in saved.training["options"].items()
    }
    try:
        fields["augment"] = AugmentOptions(**fields["augment"])
        options = TrainingOptions(**fields | dict(training))
    except (KeyError, TypeError) as error:
        raise CheckpointError(
            f"its options are not those of this version ({error})", where=path, remedy="use the version that wrote it"
        ) from error
    before = saved.provenance
    held_out = float(before.get("held_out", 0.0))
    if share is not None and held_out and share != held_out:
        raise TrainingError(f"--val-share was {held_out:g}", where=path, remedy="leave it out")
    model = before.get("started_from", {}).get("model")
    if start is not None and model != (given := find_model(start).name):
        raise TrainingError(
            f"the run was started from {model or 'random weights'}, not from {given}",
            where=path,
            remedy="leave --from out",
        )
    return TrainingPlan(
        replace(saved.config, **network),
        options,
        first=int(saved.training["step"]),
        decoding=before.get("decoding"),
        share=held_out,
        facts={key: before[key] for key in ("started_from", RECOMMENDED) if key in before},
    )


def _with_widths(config: FGNetConfig, network: Mapping[str, Any]) -> dict[str, Any]:
    """The changes to a configuration; another depth asks for that many widths."""
    changes = dict(network)
    if changes.get("depth", config.depth) < config.depth:
        changes["widths"] = config.widths[: changes["depth"]]
    return changes


def _load(model: FGNet, weights: Mapping[str, Any], where: Path) -> None:
    from fgnet.network.encoder import load_exactly

    load_exactly(model, dict(weights), where=where)


def _load_sam2(model: FGNet, path: Path) -> None:
    from fgnet.network.encoder import load_sam2_weights

    if model.encoder is not None:
        load_sam2_weights(model.encoder, path)


def prepare_folder(folder: Path, *, resume: bool, overwrite: bool) -> None:
    """Refuses a folder that holds a run, unless that is wanted; deletes nothing.

    Raises:
        OutputError: it holds a run, or is no folder.
        CheckpointError: there is nothing to resume.
        TrainingError: both were asked for.
    """
    if resume and overwrite:
        raise TrainingError("--resume and --overwrite exclude each other", remedy="give one of them")
    if folder.exists() and not folder.is_dir():
        raise OutputError("this is a file", where=folder, remedy="name a folder for the checkpoints")
    found = [name for name in (STATE, MODEL) if (folder / name).exists()]
    # What was interrupted before its first last.pt may have a model.pt, and nothing to go on from.
    anew = "--overwrite replaces it" if MODEL in found else "leave --resume out"
    if resume and STATE not in found:
        raise CheckpointError("there is no run to resume", where=folder / STATE, remedy=anew)
    if found and not (resume or overwrite):
        raise OutputError(
            f"the folder holds {' and '.join(found)} already",
            where=folder,
            remedy="give --resume or --overwrite" if STATE in found else f"{anew}; or choose another folder",
        )


def open_folder(folder: Path) -> None:
    """Creates the folder; what an earlier run left in it is deleted by `train`, once it can begin.

    Raises:
        OutputError: the folder cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"the folder cannot be used: {error.strerror}", where=folder, remedy="choose another one"
        ) from error


def short_address(text: str) -> str:
    """An address without the folders before its file or store, which say nothing to others."""
    from fgnet.volumes.address import Address, parse_address

    found = parse_address(text)
    return str(Address(Path(found.path.name), found.dataset, found.kind))


def provenance(addresses: Sequence[str]) -> dict[str, Any]:
    """What made a model: the version and the command line, without the folders of this machine.

    Args:
        addresses: arguments that are addresses of volumes.
    """
    short = {address: short_address(address) for address in addresses}

    def without_folders(argument: str) -> str:
        option, equals, value = argument.partition("=")
        if equals and option.startswith("--"):
            return f"{option}={without_folders(value)}"
        return short.get(argument, Path(argument).name if "/" in argument else argument)

    return {"version": version("fgnet"), "command": " ".join(["fgnet-train", *map(without_folders, sys.argv[1:])])}
