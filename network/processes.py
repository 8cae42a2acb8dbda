"""Several processes, started by torchrun, train one network: the same run as one process with all of a step's crops.

PyTorch's DistributedDataParallel adds the gradients up. Two things of a step depend on all of its crops at once, and
are computed of all of them here: the statistics of batch norms, and the loss, whose class weights and Dice are no means
over crops.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from fgnet.network.training_options import DeviceChoice
from fgnet.volumes.errors import TrainingError

# The others wait while the first one validates; waterz takes its time.
_PATIENCE = timedelta(hours=6)


@dataclass(frozen=True)
class Processes:
    """The processes of a run, and which of them this is.

    Attributes:
        rank: of this one, from 0.
        count: of all.
        device: where this one computes.
    """

    rank: int = 0
    count: int = 1
    device: torch.device = torch.device("cpu")  # noqa: RUF009 - it is immutable

    @property
    def first(self) -> bool:
        """Whether this process writes, validates and reports."""
        return self.rank == 0

    def share(self, batch: int) -> range:
        """Which of a pass's crops are this process's.

        Raises:
            TrainingError: they cannot be shared evenly.
        """
        if batch % self.count:
            raise TrainingError(
                f"{batch} crops per pass cannot be shared by {self.count} processes",
                remedy="give a --batch that is a multiple of processes times --accumulate",
            )
        each = batch // self.count
        return range(self.rank * each, (self.rank + 1) * each)

    def joined(self, network: nn.Module) -> nn.Module:
        """The network as it is called in training; its parameters stay those of `network`."""
        if self.count == 1:
            return network
        synchronise_norms(network, self.device)
        place = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(network, device_ids=place)

    def gather(self, values: Tensor) -> Tensor:
        """All processes' tensors (N, ...) as one (count * N, ...), whose gradient reaches this one's part.

        Every process computes the same loss of them, so that none needs the others' gradients here.
        """
        if self.count == 1:
            return values
        parts = [torch.empty_like(values, memory_format=torch.contiguous_format) for _ in range(self.count)]
        distributed.all_gather(parts, values.detach().contiguous())
        parts[self.rank] = values
        return torch.cat(parts)

    def agree(self, value: Any) -> Any:
        """What the first process found, in all of them."""
        if self.count == 1:
            return value
        held = [value]
        distributed.broadcast_object_list(held, src=0)
        return held[0]

    def any(self, here: bool) -> bool:
        """Whether it holds in one of the processes; all of them ask at the same place."""
        if self.count == 1:
            return here
        found = torch.tensor(int(here), device=self.device)
        distributed.all_reduce(found, op=distributed.ReduceOp.MAX)
        return bool(found.item())

    def collect(self, values: list[str]) -> list[str]:
        """The values of all processes."""
        if self.count == 1:
            return values
        parts: list[list[str]] = [[] for _ in range(self.count)]
        distributed.all_gather_object(parts, values)
        return [value for part in parts for value in part]


def chosen_device(device: DeviceChoice) -> Literal["cpu", "cuda"]:
    """The kind of device that a choice means here."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device


@contextmanager
def open_processes(device: DeviceChoice = "auto") -> Iterator[Processes]:
    """This process alone, or one of those that torchrun started, for as long as the context lasts.

    Args:
        device: "cpu", "cuda" or "auto", as in `Resources`.

    Raises:
        TrainingError: there is no GPU, or fewer than processes on this machine.
    """
    chosen = chosen_device(device)
    count, local = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("LOCAL_RANK", "0"))
    if chosen == "cuda" and local >= torch.cuda.device_count():
        raise TrainingError(
            f"PyTorch finds {torch.cuda.device_count()} GPUs, and this is process {local} of the machine",
            where="--device cuda",
            remedy="choose --device cpu, or start as many processes as there are GPUs",
        )
    place = torch.device(chosen, local) if chosen == "cuda" else torch.device("cpu")
    if chosen == "cuda":
        torch.cuda.set_device(place)
    if count == 1:
        yield Processes(device=place)
        return
    distributed.init_process_group("nccl" if chosen == "cuda" else "gloo", timeout=_PATIENCE)
    try:
        yield Processes(distributed.get_rank(), count, place)
    finally:
        distributed.destroy_process_group()


class _SumOfAll(torch.autograd.Function):
    """The sum over processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(_context: Any, values: Tensor) -> Tensor:
        total = values.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(_context: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        distributed.all_reduce(total)
        return total


def _sum_of_all(values: Tensor) -> Tensor:
    summed: Tensor = _SumOfAll.apply(values)  # type: ignore[no-untyped-call]
    return summed


class SynchronisedBatchNorm2d(nn.BatchNorm2d):
    """A batch norm over the images of all processes; PyTorch's own wants a GPU. Their counts of voxels are equal."""

    def forward(self, stack: Tensor) -> Tensor:
        """(N, C, H, W) -> the same, normalised by the mean and variance over all processes' N, H and W."""
        if not self.training or self.running_mean is None or self.running_var is None:
            return super().forward(stack)
        count = distributed.get_world_size()
        wide = stack.float()
        mean = _sum_of_all(wide.mean((0, 2, 3))) / count
        centred = wide - mean[:, None, None]
        variance = _sum_of_all(centred.square().mean((0, 2, 3))) / count
        with torch.no_grad():
            voxels = count * stack.numel() / stack.shape[1]
            momentum = 0.1 if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(variance * (voxels / (voxels - 1)), momentum)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
        scale = torch.rsqrt(variance + self.eps)
        normalised = centred * (scale * self.weight)[:, None, None] + self.bias[:, None, None]
        result: Tensor = normalised.to(stack.dtype)
        return result


def synchronise_norms(network: nn.Module, device: torch.device) -> None:
    """Let batch norms see the crops of all processes; names, weights and statistics stay as they are."""
    for name, module in list(network.named_modules()):
        if type(module) is not nn.BatchNorm2d:
            continue
        kind = nn.SyncBatchNorm if device.type == "cuda" else SynchronisedBatchNorm2d
        replacement = kind(module.num_features, module.eps, module.momentum)
        replacement.load_state_dict(module.state_dict())
        parent, _, own = name.rpartition(".")
        setattr(network.get_submodule(parent), own, replacement.to(device))


def without_sync(network: nn.Module, last: bool) -> AbstractContextManager[Any]:
    """Around a pass whose gradients need not be added up yet, because it is not the step's last."""
    return network.no_sync() if isinstance(network, DistributedDataParallel) and not last else nullcontext()
