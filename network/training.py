"""The training loop: samples -> weights, resumable at any step."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from fgnet.network.augment import PRESETS, AugmentOptions
from fgnet.network.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from fgnet.network.config import FGNetConfig
from fgnet.network.data import CropSampler, LabelledVolume
from fgnet.network.encoder import load_exactly
from fgnet.network.losses import fgnet_loss
from fgnet.network.model import FGNet
from fgnet.volumes.errors import CheckpointError, TrainingError
from fgnet.volumes.geometry import Triple, as_triple


@dataclass(frozen=True)
class TrainingOptions:
    """How a network is trained; kept in the checkpoint, so that a resumed run is the same run.

    Attributes:
        iterations: steps in all (paper: 10,000).
        batch: crops per step (paper: 4).
        crop: (z, y, x) voxels of a crop (paper: 16 x 256 x 256).
        learning_rate: Adam's, at its highest (paper: 1e-4).
        schedule: constant, as in the paper, or a cosine down to a hundredth.
        warmup: steps of linear increase before.
        precision: fp32, or bf16 autocast.
        ema: decay of the averaged weights that are validated and kept.
        seed: of weights, crops and augmentation.
        save_every: steps between checkpoints.
        validate_every: steps between validations.
        augment: how crops are changed.
    """

    iterations: int = 10_000
    batch: int = 4
    crop: Triple = (16, 256, 256)
    learning_rate: float = 1e-4
    schedule: Literal["constant", "cosine"] = "constant"
    warmup: int = 0
    precision: Literal["fp32", "bf16"] = "fp32"
    ema: float = 0.999
    seed: int = 0
    save_every: int = 200
    validate_every: int = 1000
    augment: AugmentOptions = field(default_factory=lambda: PRESETS["default"])

    def __post_init__(self) -> None:
        """Refuse options from which nothing is learned.

        Raises:
            TrainingError: a count below one, a rate out of range, or an unknown name.
            GeometryError: a crop that is not three whole numbers.
        """
        for name in ("iterations", "batch", "save_every", "validate_every"):
            if getattr(self, name) < 1:
                raise TrainingError(f"{name} is {getattr(self, name)}", remedy="give at least 1")
        if min(as_triple(self.crop, "crop")) < 1:
            raise TrainingError(f"crop is {self.crop}", remedy="give (z, y, x), each at least 1")
        if self.warmup < 0:
            raise TrainingError(f"warmup is {self.warmup}", remedy="give 0 or more steps")
        for name, allowed in (("schedule", ("constant", "cosine")), ("precision", ("fp32", "bf16"))):
            if getattr(self, name) not in allowed:
                raise TrainingError(f"{name} is {getattr(self, name)!r}", remedy=f"one of {', '.join(allowed)}")
        if not 0 < self.learning_rate < 1:
            raise TrainingError(f"learning_rate is {self.learning_rate}", remedy="give a rate between 0 and 1")
        if not 0 <= self.ema < 1:
            raise TrainingError(f"ema is {self.ema}", remedy="give a decay from 0 (off) to below 1")

    def rate(self, step: int) -> float:
        """The learning rate of a step, the first being 0."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        if self.schedule == "constant":
            return self.learning_rate
        progress = (step - self.warmup) / max(self.iterations - self.warmup, 1)
        return self.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a checkpoint."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


@dataclass(frozen=True)
class Progress:
    """What a step reports: steps done, this step's loss, rate, and voxels per second since the start of this run."""

    step: int
    loss: float
    rate: float
    voxels_per_second: float
    score: float | None = None


Validate = Callable[[FGNet], dict[str, Any]]
"""From a network in evaluation mode to plain figures; `voi` is what the best checkpoint is chosen by."""


def train(
    folder: Path,
    config: FGNetConfig,
    options: TrainingOptions,
    volumes: list[LabelledVolume],
    *,
    validate: Validate | None = None,
    initial: Callable[[FGNet], None] | None = None,
    resume: bool = False,
    provenance: dict[str, Any] | None = None,
) -> Iterator[Progress]:
    """Train, reporting after each step.

    Writes `last.pt` (everything that an exact resume needs) every `save_every` steps and at the end, and `model.pt`,
    the averaged weights: the best by validation, or the last ones without a validation. An interrupt at any moment
    leaves both as they were written last.

    Args:
        folder: where the checkpoints go.
        config: the network.
        options: how it is trained.
        volumes: what it is trained on.
        validate: scores the averaged network.
        initial: loads weights into the new network (SAM2's, or another FGNet's); not called when resuming.
        resume: continue from `last.pt`; options and configuration must be the same.
        provenance: plain data kept in `model.pt`.

    Raises:
        TrainingError: data without crops, a crop that the network cannot halve, options that differ from the resumed
            run's, or a loss or gradient that is not finite (the last checkpoint stays).
        CheckpointError: nothing to resume from.
        OutputError: a checkpoint cannot be written.
    """
    multiple = config.section_multiple
    if any(side % multiple for side in options.crop[1:]):
        raise TrainingError(
            f"crop {options.crop}: the network halves y and x down to a stride of {multiple}",
            remedy=f"give y and x as multiples of {multiple}",
        )
    torch.manual_seed(options.seed)
    sampler = CropSampler(volumes, options.crop, options.augment, options.seed)
    network = FGNet(config)
    if initial is not None and not resume:
        initial(network)
    average = AveragedModel(network, multi_avg_fn=_running_average(options.ema), use_buffers=True)
    averaged = cast(FGNet, average.module)
    optimizer = torch.optim.Adam((p for p in network.parameters() if p.requires_grad), lr=options.learning_rate)
    facts = dict(provenance or {}) | {
        "options": options.to_dict(),
        "voxel_sizes": sorted({v.space.voxel_size for v in volumes if v.space.known}),
        "volumes": [v.name for v in volumes],
    }
    facts["voxel_sizes"] = [list(size) for size in facts["voxel_sizes"]]
    first, best, spent = 0, math.inf, 0.0
    if resume:
        first, best, spent = _restore(folder / "last.pt", config, options, network, average, optimizer)

    started, voxels = time.perf_counter(), 0
    network.train()
    for step in range(first, options.iterations):
        samples = [sampler.sample(step, index) for index in range(options.batch)]
        gray = torch.from_numpy(np.stack([sample.gray for sample in samples]))
        target = torch.from_numpy(np.stack([sample.affinities for sample in samples]))
        rate = options.rate(step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=options.precision == "bf16"):
            prediction = network(gray)
        loss = fgnet_loss(prediction, target, torch.from_numpy(np.stack([sample.mask for sample in samples])))
        _require_finite(loss, "loss", step, folder)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        # A finite loss may have an infinite gradient: weights that took it would reach the next checkpoint.
        _require_finite(torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0), "gradient", step, folder)
        optimizer.step()
        average.update_parameters(network)

        done, score = step + 1, None
        voxels += target[:, 0].numel()
        last = done == options.iterations
        facts |= {"steps": done, "seconds": round(spent + time.perf_counter() - started, 3)}
        if validate is not None and (done % options.validate_every == 0 or last):
            figures = validate(averaged.eval())
            averaged.train()
            score = float(figures["voi"])
            if score < best:
                best = score
                _save_model(folder, averaged, config, facts | {"validation": figures})
        elif validate is None and (last or done % options.save_every == 0):
            _save_model(folder, averaged, config, facts)
        if done % options.save_every == 0 or last:
            state = {"step": done, "best": best, "average": _tensors(average), "optimizer": optimizer.state_dict()}
            save_checkpoint(
                folder / "last.pt", Checkpoint(config, _tensors(network), facts, state | {"options": options.to_dict()})
            )
        yield Progress(done, loss.item(), rate, voxels / (time.perf_counter() - started), score)


def _require_finite(value: Tensor, name: str, step: int, folder: Path) -> None:
    if not torch.isfinite(value):
        raise TrainingError(
            f"the {name} is {value.item()} at step {step}",
            where=folder,
            remedy="the last checkpoint is kept; train with a lower learning rate or in fp32",
        )


_Tensors = tuple[Tensor, ...] | list[Tensor]


def _running_average(decay: float) -> Callable[[_Tensors, _Tensors, Tensor | int], None]:
    """Exponential average whose memory grows up to `decay`: the first weights, random ones, are forgotten at once."""

    @torch.no_grad()
    def update(averages: _Tensors, values: _Tensors, count: Tensor | int) -> None:
        share = 1 - min(decay, (1 + int(count)) / (10 + int(count)))
        for average, value in zip(averages, values, strict=True):
            if average.is_floating_point():
                average.lerp_(value, share)
            else:
                average.copy_(value)

    return update


def _tensors(module: torch.nn.Module) -> dict[str, Tensor]:
    return {key: value.detach().clone() for key, value in module.state_dict().items()}


def _save_model(folder: Path, network: FGNet, config: FGNetConfig, provenance: dict[str, Any]) -> None:
    save_checkpoint(folder / "model.pt", Checkpoint(config, _tensors(network), provenance))


def _restore(
    path: Path,
    config: FGNetConfig,
    options: TrainingOptions,
    network: FGNet,
    average: AveragedModel,
    optimizer: torch.optim.Optimizer,
) -> tuple[int, float, float]:
    """Put a run's state back; the step to go on with, the best score and the seconds trained so far."""
    checkpoint = load_checkpoint(path)
    state = checkpoint.training
    if state is None:
        raise CheckpointError("holds weights only", where=path, remedy="resume from last.pt")
    try:
        # An option that the run's version did not know had its default.
        augment = asdict(AugmentOptions()) | state["options"]["augment"]
        before = TrainingOptions().to_dict() | state["options"] | {"augment": augment} | checkpoint.config.to_dict()
        step, best, averaged, moments = (state[key] for key in ("step", "best", "average", "optimizer"))
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"incomplete ({error!r})", where=path, remedy="resume from last.pt") from error
    now = options.to_dict() | config.to_dict()
    # A run may be made longer or shorter; its schedule then follows the new length.
    if differing := sorted(key for key in now if key != "iterations" and before.get(key) != now[key]):
        text = ", ".join(f"{key} was {before.get(key)!r}, is {now[key]!r}" for key in differing)
        raise TrainingError(f"the run was started otherwise: {text}", where=path, remedy="resume with the same options")
    load_exactly(network, checkpoint.weights, where=path)
    load_exactly(average, averaged, where=path)
    optimizer.load_state_dict(moments)
    return int(step), float(best), float(checkpoint.provenance.get("seconds", 0.0))
