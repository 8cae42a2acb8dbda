"""One step of training: the gradients of a step's crops -> new weights, in any precision, on any device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from fgnet.network.batches import Batch
from fgnet.network.losses import fgnet_loss
from fgnet.network.model import FGNet, Prediction
from fgnet.network.processes import Processes, without_sync
from fgnet.network.training_options import TrainingOptions
from fgnet.volumes.errors import TrainingError

_HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_LARGEST_GRADIENT = 5.0


class Optimisation:
    """A network, its average and its optimizer.

    Args:
        network: to be trained; it is brought to the process's device.
        options: how.
        processes: that share the work.
    """

    def __init__(self, network: FGNet, options: TrainingOptions, processes: Processes) -> None:
        self.network = network.to(processes.device)
        self._options, self._processes = options, processes
        # Before processes are joined: what is validated by the first of them alone must not wait for the others.
        self.average = AveragedModel(self.network, multi_avg_fn=_running_average(options.ema), use_buffers=True)
        self._joined = processes.joined(self.network)
        trained = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.Adam(trained, lr=options.learning_rate)
        self.scaler = torch.amp.GradScaler(processes.device.type, enabled=options.precision == "fp16")
        self.network.train()

    @property
    def averaged(self) -> FGNet:
        """The network of the averaged weights, which is validated and kept."""
        return cast(FGNet, self.average.module)

    def step(self, number: int, batches: Sequence[Batch]) -> float:
        """Take one step; the mean loss of its passes.

        Args:
            number: of the step, from 0.
            batches: one for each pass, of this process's crops.

        Raises:
            TrainingError: a loss or gradient that is not finite, with the crops it comes from; no weight has changed.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self._options.rate(number)
        self.optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for done, batch in enumerate(batches, start=1):
            with without_sync(self._joined, last=done == len(batches)):
                loss = self._loss(batch.to(self._processes.device))
                if not torch.isfinite(loss):
                    raise self._diverged("loss", loss.item(), number, [batch])
                # DistributedDataParallel takes the mean over processes of what is one loss of all.
                self.scaler.scale(loss * (self._processes.count / len(batches))).backward()
            total += loss.item() / len(batches)
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), _LARGEST_GRADIENT)
        # A finite loss may have an infinite gradient: weights that took it would reach the next checkpoint. In fp16
        # that is how the scale is found; its step is left out. A scale below one means that no scale helps.
        if not torch.isfinite(norm) and self.scaler.get_scale() <= 1:
            raise self._diverged("gradient", norm.item(), number, batches)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.average.update_parameters(self.network)
        return total

    def state(self) -> dict[str, Any]:
        """What an exact continuation needs beside the network's own weights."""
        return {
            "average": tensors(self.average),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def _loss(self, batch: Batch) -> Tensor:
        place, half = self._processes.device.type, _HALVES.get(self._options.precision)
        with torch.autocast(place, dtype=half, enabled=half is not None):
            prediction: Prediction = self._joined(batch.gray)
        gather = self._processes.gather
        refined, coarse = (None if logits is None else gather(logits) for logits in prediction)
        return fgnet_loss(Prediction(refined, coarse), gather(batch.affinities), gather(batch.mask))

    def _diverged(self, name: str, value: float, step: int, batches: Sequence[Batch]) -> TrainingError:
        # Loss and gradient are the same in all processes, so that all of them come here.
        places = self._processes.collect([place for batch in batches for place in batch.places])
        return TrainingError(
            f"the {name} is {value} at step {step}, from {'; '.join(places)}",
            remedy="the last checkpoint is kept; look at these crops, or go on from it by --resume with a lower"
            " --learning-rate or --precision fp32 (an experiment: in another folder)",
        )


def tensors(module: torch.nn.Module) -> dict[str, Tensor]:
    """A copy of a module's state in the host's memory."""
    return {key: value.detach().to("cpu", copy=True) for key, value in module.state_dict().items()}


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
