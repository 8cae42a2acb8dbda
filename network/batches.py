"""Crops -> the batches of a step, prepared in between or ahead; the same ones either way."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Generator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fgnet.network.data import CropSampler


class Batch(NamedTuple):
    """The crops of one pass.

    Attributes:
        gray: (B, 1, z, y, x) float32 in [0, 1].
        affinities: (B, 3, z, y, x) float32, 0 or 1.
        mask: (B, 3, z, y, x) bool, what the loss may look at.
        places: volume and region of each crop, for messages.
    """

    gray: Tensor
    affinities: Tensor
    mask: Tensor
    places: tuple[str, ...]

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device."""
        gray, affinities, mask = (part.to(device, non_blocking=True) for part in self[:3])
        return Batch(gray, affinities, mask, self.places)


class PassBatches(Dataset[Batch]):
    """Pass number p of a run, which is part p % accumulate of step p // accumulate.

    Args:
        sampler: of crops; sample (step, index) is the same whenever it is drawn.
        accumulate: passes per step.
        batch: crops per pass, of all processes.
        own: which of them are this process's.
    """

    def __init__(self, sampler: CropSampler, accumulate: int, batch: int, own: range) -> None:
        self._sampler, self._accumulate, self._batch, self._own = sampler, accumulate, batch, own

    def __getitem__(self, number: int) -> Batch:
        """Draw the crops of a pass."""
        step, part = divmod(number, self._accumulate)
        samples = [self._sampler.sample(step, part * self._batch + index) for index in self._own]
        return Batch(
            torch.from_numpy(np.stack([sample.gray for sample in samples])),
            torch.from_numpy(np.stack([sample.affinities for sample in samples])),
            torch.from_numpy(np.stack([sample.mask for sample in samples])),
            tuple(sample.place for sample in samples),
        )


def draw(batches: PassBatches, numbers: Sequence[int], *, loaders: int, pin: bool) -> Generator[Batch]:
    """The batches of these passes, in order.

    Args:
        batches: of a run.
        numbers: of the passes.
        loaders: processes that prepare them ahead; 0 prepares each when it is asked for.
        pin: whether they go to a GPU.

    Raises:
        MemoryError: a loader was ended while it sent crops.
        RuntimeError: PyTorch says that one was ended.
    """
    loader = DataLoader(
        batches,
        batch_size=None,
        sampler=numbers,
        num_workers=loaders,
        collate_fn=_as_it_is,
        pin_memory=pin,
        # Without one of its own it would draw from PyTorch's generator, and loaders would change the run.
        generator=torch.Generator(),
        # A fork of this process would take over the locks of other libraries' threads; a server that has none forks.
        multiprocessing_context=_start_method() if loaders else None,
        worker_init_fn=_leave_interrupts,
    )
    try:
        yield from loader
    except (EOFError, ConnectionError, FileNotFoundError) as error:
        # Tensors are fetched from the loader that made them. PyTorch says so only where it has none under way.
        raise MemoryError("a loader has ended before its crops were fetched") from error


def _start_method() -> str:
    return "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"


def _leave_interrupts(_: int) -> None:
    """Ctrl-C reaches all processes of a terminal; whether to stop is for the one that trains to say."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _as_it_is(batch: Any) -> Any:
    return batch
