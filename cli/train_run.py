"""One run of fgnet-train: trains under a progress bar on stderr, and says what came of it."""

from __future__ import annotations

import math
import os
import shlex
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from fgnet.cli.console import VoxelProgress, say, voxel_progress
from fgnet.cli.stop_signals import stop_signals
from fgnet.cli.training_plan import MODEL, STATE, TrainingPlan
from fgnet.volumes.errors import TrainingError

if TYPE_CHECKING:
    from fgnet.network.config import FGNetConfig
    from fgnet.network.labelled_volume import LabelledVolume
    from fgnet.network.training_options import Resources
    from fgnet.network.validation import Validation

DecoderName = Literal["waterz", "blockwise"]


OTHER_VALIDATION = "what is validated on is named, and no share of a volume is held out"


@dataclass(frozen=True, eq=False)
class TrainingData:
    """What is trained on, and what is validated on, if anything.

    Attributes:
        volumes: trained on.
        held_out: validated on.
        share: of the first volume that was cut off for it; 0 where it was given.
    """

    volumes: list[LabelledVolume]
    held_out: LabelledVolume | None
    share: float = 0.0


def first_process() -> bool:
    """Whether this is the one of torchrun's processes that speaks, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def tell(text: str) -> None:
    """Prints a line on stderr, once for all processes."""
    if first_process():
        say(text)


def divide(
    volumes: list[LabelledVolume], held_out: LabelledVolume | None, plan: TrainingPlan, share: float | None = None
) -> TrainingData:
    """The data of a run; where nothing is to be validated on, the plan's share of the first volume is.

    Args:
        volumes: what the command line names.
        held_out: what it names to be validated on.
        plan: of the run.
        share: that it asks for itself; the plan may have one of its own.

    Raises:
        TrainingError: nothing can be held out of it by a run that goes on, or two things are to be validated on.
    """
    if held_out is not None and share:
        raise TrainingError(OTHER_VALIDATION, remedy="leave --val-share out")
    if held_out is not None or not plan.share:
        return TrainingData(volumes, held_out)
    from fgnet.network.validation import hold_out, require_objects

    try:
        kept, cut = hold_out(volumes[0], plan.share)
        require_objects(cut)
        require_objects(kept)
    except TrainingError as error:
        if plan.first:
            raise
        tell(f"no validation: {error}")
        return TrainingData(volumes, None)
    tell(f"validating on {cut.name}, which is not trained on")
    return TrainingData([kept, *volumes[1:]], cut, plan.share)


def require_validation(parts: TrainingData, plan: TrainingPlan, options: Mapping[str, Any]) -> None:
    """Refuse options that are about validations where nobody asked for any.

    Raises:
        BadParameter: there are such options.
    """
    if options and parts.held_out is None and not plan.share:
        raise typer.BadParameter(
            "there is nothing to validate on; give --val-raw and --val-labels, --val-share, or a --dataset",
            param_hint=", ".join(f"--{name.replace('_', '-')}" for name in options),
        )


def tell_shared(volumes: Sequence[LabelledVolume], held_out: LabelledVolume) -> dict[str, int]:
    """Warns of figures that are not of unseen voxels; a fact to be kept with them, or nothing."""
    from fgnet.network.labelled_volume import shared_voxels

    shared = shared_voxels(volumes, held_out)
    if not shared:
        return {}
    tell(
        f"warning: {shared} of {held_out.raw.size} voxels of {held_out.name} are trained on too:"
        " its figures do not say what the network does with voxels that it has not seen"
    )
    return {"validated_voxels_trained_on": shared}


def make_validation(
    volume: LabelledVolume,
    config: FGNetConfig,
    decoding: Mapping[str, Any] | None,
    decoder: DecoderName | None,
    resources: Resources,
    *,
    min_size: int | None = None,
) -> Validation:
    """Scores networks on a region, decoded as fgnet-run would.

    Args:
        volume: the region.
        config: of the network.
        decoding: settings of the decoder, and perhaps its name; None for the defaults of fgnet-run.
        decoder: which one, if the user said so.
        resources: where the network runs.
        min_size: voxels of the smallest true object that is scored; None for what runs are chosen by.
    """
    from fgnet.network.processes import chosen_device
    from fgnet.network.validation import MIN_SIZE, Validation, fitting_patch
    from fgnet.postproc.waterz_decoder import WaterzOptions

    given = dict(decoding or {})
    name = given.pop("decoder", "waterz")
    return Validation(
        volume,
        patch=fitting_patch(config, volume.raw.shape),
        min_size=MIN_SIZE if min_size is None else min_size,
        decoder=decoder or name,
        decoding=replace(WaterzOptions(), **given),
        device=chosen_device(resources.device),
    )


def run_training(
    folder: Path,
    plan: TrainingPlan,
    data: TrainingData,
    facts: Mapping[str, Any],
    *,
    decoder: DecoderName | None = None,
    resources: Resources | None = None,
    resume: bool = False,
) -> dict[str, Any]:
    """Trains, with a bar on stderr; the figures of the run.

    The first SIGINT or SIGTERM stops it once the step in hand is saved, another one at once; the exit code tells which.

    Raises:
        TrainingError, CheckpointError, OutputError: as `training.train`.
    """
    from fgnet.network.training import TrainingStoppedError
    from fgnet.network.training import train as steps
    from fgnet.network.training_options import Resources

    resources = resources or Resources()
    options = plan.options
    validate = None
    known = dict(facts) | dict(plan.facts)
    if data.held_out is not None:
        validate = make_validation(data.held_out, plan.config, plan.decoding, decoder, resources)
        known |= {
            "decoding": validate.settings,
            "held_out": data.share,
            "validated_on": data.held_out.name,
            "validated_voxels": data.held_out.labelled_voxels,
            "validated_objects": f"of at least {validate.min_size} voxels",
            **tell_shared(data.volumes, data.held_out),
        }
    voxels = options.batch * math.prod(options.crop)
    started, step, loss, speed = time.perf_counter(), plan.first, None, 0.0
    size = sum(volume.raw.size for volume in data.volumes) / 1e6
    tell(f"training {plan.config.encoder} on {size:.1f} Mvoxels in {len(data.volumes)} volumes")
    try:
        with (
            stop_signals(lambda: tell("saving, then stopping")) as stop,
            _progress(options.iterations * voxels, plan.first * voxels) as bar,
        ):
            for now in steps(
                folder, plan.config, options, data.volumes,
                validate=validate, initial=plan.initial, validate_first="started_from" in plan.facts,
                resume=resume, provenance=known, resources=resources, stop=stop, say=tell,
            ):  # fmt: skip
                step = now.step
                if step:
                    loss, speed = now.loss, now.voxels_per_second
                if bar is None:
                    continue
                if loss is not None:
                    bar.update(step * voxels, f"step {step}/{options.iterations}  loss {loss:.4f}  rate {now.rate:.1e}")
                if now.validation is not None:
                    bar.say(f"step {step}: {_figures(now.validation)}")
    except (KeyboardInterrupt, TrainingStoppedError) as interrupt:
        if first_process():
            say(how_to_resume(folder, step, saved=isinstance(interrupt, TrainingStoppedError)), "yellow")
        raise typer.Exit(128 + (stop.number or signal.SIGINT)) from None
    seconds = time.perf_counter() - started
    model = folder / MODEL
    kept = _provenance(model)
    figures = kept.get("validation")
    score = "" if figures is None else f" (VOI {figures['voi']:.4g})"
    ended = "" if step == options.iterations else f" of {options.iterations}, no better validation since"
    took = f"{seconds:.1f} s" + ("" if loss is None else f", loss {loss:.4f}")
    tell(f"{model}: of step {kept['steps']}{score}; trained to step {step}{ended}, {took}")
    return {
        "model": str(model),
        "steps": step,
        "seconds": round(seconds, 3),
        "voxels_per_second": round(speed),
        "loss": loss,
        "validation": figures,
        "kept_step": kept["steps"],
    }


def _progress(voxels: int, done: int) -> AbstractContextManager[VoxelProgress | None]:
    """The bar; of several processes, one shows it."""
    return voxel_progress("training", voxels, done) if first_process() else nullcontext()


def _figures(figures: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in figures.items())


def _provenance(model: Path) -> dict[str, Any]:
    """Of the weights that were kept: their step, and their figures where there was a validation."""
    from fgnet.network.checkpoint import load_checkpoint

    return load_checkpoint(model).provenance


def how_to_resume(folder: Path, step: int, *, saved: bool) -> str:
    """What to type after an interrupt.

    Args:
        folder: of the run.
        step: the last one that was done.
        saved: whether `last.pt` is of that step, and not of an earlier one.
    """
    again = [argument for argument in sys.argv[1:] if argument not in ("--resume", "--overwrite")]
    if (folder / STATE).is_file():
        said = f"stopped at step {step}, which is saved; go on" if saved else f"interrupted at step {step}; go on"
        said += " with" if saved else " from the last checkpoint with"
        again.append("--resume")
    else:
        said = f"interrupted at step {step}, before anything was saved; start again with"
        again += ["--overwrite"] if (folder / MODEL).exists() else []
    return f"{said}\n  {shlex.join(['fgnet-train', *again])}"
