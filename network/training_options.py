"""How a network is trained, and by what: the options of a run."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from fgnet.network.augment import PRESETS, AugmentOptions
from fgnet.volumes.errors import TrainingError
from fgnet.volumes.geometry import Triple, as_triple

DeviceChoice = Literal["auto", "cpu", "cuda"]
Schedule = Literal["constant", "cosine"]
TrainingPrecision = Literal["fp32", "bf16", "fp16"]


@dataclass(frozen=True)
class TrainingOptions:
    """How a network is trained; kept in the checkpoint, so that a resumed run is the same run.

    Attributes:
        iterations: steps in all (paper: 10,000).
        batch: crops per step (paper: 4), of all processes and passes together.
        accumulate: passes that share a step's crops, one after the other, where memory is short. Batch norms and the
            loss's class weights see the crops of one pass at a time.
        crop: (z, y, x) voxels of a crop (paper: 16 x 256 x 256).
        learning_rate: Adam's, at its highest (paper: 1e-4).
        schedule: constant, as in the paper, or a cosine down to a hundredth.
        warmup: steps of linear increase before.
        precision: fp32, or autocast to bf16 or to fp16, whose loss is scaled so that gradients do not vanish.
        ema: decay of the averaged weights that are validated and kept.
        seed: of weights, crops and augmentation.
        save_every: steps between checkpoints.
        validate_every: steps between validations.
        patience: validations without a better one after which the run ends; None for never.
        augment: how crops are changed.
    """

    iterations: int = 10_000
    batch: int = 4
    accumulate: int = 1
    crop: Triple = (16, 256, 256)
    learning_rate: float = 1e-4
    schedule: Schedule = "constant"
    warmup: int = 0
    precision: TrainingPrecision = "fp32"
    ema: float = 0.999
    seed: int = 0
    save_every: int = 200
    validate_every: int = 1000
    patience: int | None = None
    augment: AugmentOptions = field(default_factory=lambda: PRESETS["default"])

    def __post_init__(self) -> None:
        """Refuse options from which nothing is learned.

        Raises:
            TrainingError: a count below one, a rate out of range, or an unknown name.
            GeometryError: a crop that is not three whole numbers.
        """
        for name in ("iterations", "batch", "accumulate", "save_every", "validate_every", "patience"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise TrainingError(f"{name} is {value}", remedy="give at least 1")
        if self.batch % self.accumulate:
            raise TrainingError(
                f"accumulate is {self.accumulate}: {self.batch} crops do not divide into so many passes",
                remedy="give a divisor of --batch",
            )
        if min(as_triple(self.crop, "crop")) < 1:
            raise TrainingError(f"crop is {self.crop}", remedy="give (z, y, x), each at least 1")
        if self.warmup < 0:
            raise TrainingError(f"warmup is {self.warmup}", remedy="give 0 or more steps")
        for name, allowed in (("schedule", ("constant", "cosine")), ("precision", ("fp32", "bf16", "fp16"))):
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
class Resources:
    """What a run is carried out by; a resumed run may have others.

    Attributes:
        device: "cpu", "cuda", or "auto" for a GPU where there is one.
        loaders: processes that prepare crops ahead; 0 prepares them in between. Crops are the same for any number.
        deterministic: whether only algorithms are used that give the same bits each time, at some cost on a GPU.
    """

    device: DeviceChoice = "auto"
    loaders: int = 0
    deterministic: bool = False

    def __post_init__(self) -> None:
        """Refuse what there cannot be.

        Raises:
            TrainingError: an unknown device, or fewer than no loaders.
        """
        if self.device not in ("auto", "cpu", "cuda"):
            raise TrainingError(f"device is {self.device!r}", remedy="one of auto, cpu, cuda")
        if self.loaders < 0:
            raise TrainingError(f"loaders is {self.loaders}", remedy="give 0 or more")
