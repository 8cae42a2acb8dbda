"""What a training run leaves on disk so that it can go on: `last.pt`, and `model.pt`, the weights that are kept."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fgnet.network.augment import AugmentOptions
from fgnet.network.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from fgnet.network.config import FGNetConfig
from fgnet.network.encoder import load_exactly
from fgnet.network.optimisation import Optimisation, tensors
from fgnet.network.training_options import TrainingOptions
from fgnet.volumes.errors import CheckpointError, OutputError, TrainingError

STATE, MODEL = "last.pt", "model.pt"

# A run may be made longer or shorter, or more patient; its schedule then follows the new length. What diverged goes on
# with smaller steps or in fp32, what ran out of memory with smaller passes. The changes are kept with the weights.
CHANGEABLE = (
    "iterations", "patience", "save_every", "validate_every", "learning_rate", "precision", "accumulate", "crop",
)  # fmt: skip

# Of a run's provenance, what it learns from and is judged by.
DATA = ("volumes", "volume_weights", "labelled_voxels", "validated_on", "validated_voxels", "decoding")


@dataclass(frozen=True)
class Standing:
    """How far a run has come.

    Attributes:
        step: steps done.
        best: the lowest VOI so far.
        waited: validations since then.
        seconds: trained so far, by all of the processes that it was interrupted into.
        changes: of options, each a dictionary of the step after which, and of what every option was and is.
    """

    step: int = 0
    best: float = math.inf
    waited: int = 0
    seconds: float = 0.0
    changes: tuple[dict[str, Any], ...] = ()

    def after(self, score: float) -> Standing:
        """The same after a validation."""
        better = score < self.best
        return replace(self, best=min(score, self.best), waited=0 if better else self.waited + 1)

    def patient(self, options: TrainingOptions) -> bool:
        """Whether the run still waits for a better validation."""
        return options.patience is None or self.waited < options.patience


def save_state(
    folder: Path, optimisation: Optimisation, options: TrainingOptions, standing: Standing, facts: dict[str, Any]
) -> None:
    """Write `last.pt`: everything that a continuation needs to be the same run, bit for bit.

    Crops are not part of it: which ones a step sees depends on the seed and the step alone.

    Raises:
        OutputError: it cannot be written; the one before is as it was.
    """
    network = optimisation.network
    state = optimisation.state() | {
        "step": standing.step,
        "best": standing.best,
        "waited": standing.waited,
        "changes": list(standing.changes),
        "options": options.to_dict(),
        "random": torch.get_rng_state(),
        "random_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }
    save_checkpoint(folder / STATE, Checkpoint(network.config, tensors(network), facts, state))


def save_model(folder: Path, optimisation: Optimisation, facts: dict[str, Any]) -> None:
    """Write `model.pt`: the averaged weights.

    Raises:
        OutputError: it cannot be written; the one before is as it was.
    """
    network = optimisation.averaged
    save_checkpoint(folder / MODEL, Checkpoint(network.config, tensors(network), facts))


def clear(folder: Path) -> None:
    """Delete both files of an earlier run, so that neither is taken for one of a new run that was killed early.

    Raises:
        OutputError: one cannot be deleted.
    """
    for path in (folder / STATE, folder / MODEL):
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(
                f"the earlier run cannot be removed ({error.strerror})", where=path, remedy="choose another folder"
            ) from error


def restore(
    path: Path, optimisation: Optimisation, options: TrainingOptions, facts: dict[str, Any], *, validated: bool
) -> Standing:
    """Put the state of a run back into the network, its average, its optimizer and PyTorch's random numbers.

    Args:
        path: of `last.pt`.
        optimisation: what is restored.
        options: asked for now.
        facts: the provenance that the run has now, its data among it.
        validated: whether the run has a validation now.

    Raises:
        CheckpointError: no such file, weights only, or something is missing.
        TrainingError: the run had another configuration, other options or other data, which are named, a validation
            that it lacks now, or more steps than are asked for.
    """
    network = optimisation.network
    checkpoint = load_checkpoint(path)
    state = checkpoint.training
    if state is None:
        raise CheckpointError("holds weights only", where=path, remedy=f"resume from {STATE}")
    try:
        changed = _changes(path, checkpoint, state["options"], network.config, options, facts)
        step, best, averaged, moments = (state[key] for key in ("step", "best", "average", "optimizer"))
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"incomplete ({error!r})", where=path, remedy=f"resume from {STATE}") from error
    if not validated and (float(best) < math.inf or "held_out" in checkpoint.provenance):
        place = checkpoint.provenance.get("validated_on")
        raise TrainingError(
            f"the run was validated{f' on {place}' if place else ''}; without that, {MODEL} would not stay the best",
            where=path,
            remedy="resume with the same --val-raw and --val-labels, or --dataset",
        )
    if options.iterations < int(step):
        raise TrainingError(
            f"iterations is {options.iterations}, and {step} steps are done",
            where=path,
            remedy=f"give at least {step}, or start anew in another folder",
        )
    load_exactly(network, checkpoint.weights, where=path)
    load_exactly(optimisation.average, averaged, where=path)
    optimisation.optimizer.load_state_dict(moments)
    # What a version before did not keep is as at the start of a run, and so is the scale of a run that was not in fp16.
    if state.get("scaler"):
        optimisation.scaler.load_state_dict(state["scaler"])
    if "random" in state:
        torch.set_rng_state(state["random"])
    if len(state.get("random_cuda", [])) == torch.cuda.device_count() > 0:
        torch.cuda.set_rng_state_all(state["random_cuda"])
    seconds = float(checkpoint.provenance.get("seconds", 0.0))
    changes = (*state.get("changes", ()), *([{"step": int(step)} | changed] if changed else []))
    return Standing(int(step), float(best), int(state.get("waited", 0)), seconds, changes)


def _changes(
    path: Path,
    checkpoint: Checkpoint,
    saved: dict[str, Any],
    config_now: FGNetConfig,
    options_now: TrainingOptions,
    facts_now: dict[str, Any],
) -> dict[str, Any]:
    """What options that may change were and are.

    Raises:
        TrainingError: something else differs.
    """
    # An option that the run's version did not know had its default.
    augment = asdict(AugmentOptions()) | saved["augment"]
    before = TrainingOptions().to_dict() | saved | {"augment": augment} | checkpoint.config.to_dict()
    now = options_now.to_dict() | config_now.to_dict()
    # What it did not say about its data cannot be compared.
    said = [key for key in DATA if key in checkpoint.provenance and key in facts_now]
    before |= {key: checkpoint.provenance[key] for key in said}
    now |= {key: facts_now[key] for key in said}
    differing = {key: [before.get(key), now[key]] for key in sorted(now) if before.get(key) != now[key]}
    if refused := [key for key in differing if key not in CHANGEABLE]:
        text = ", ".join(f"{key} was {differing[key][0]!r}, is {differing[key][1]!r}" for key in refused)
        raise TrainingError(
            f"the run was started otherwise: {text}", where=path, remedy="resume with the same data and options"
        )
    return differing


@contextmanager
def reproducible(wanted: bool) -> Iterator[None]:
    """While the context lasts, use only algorithms that give the same bits each time; as before otherwise."""
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    if wanted:
        # cuBLAS reads it when it is first used.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]
