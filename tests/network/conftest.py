"""For the tests of training: a small network, a small labelled volume, and runs of a few steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from fgnet.network.data import LabelledVolume
from fgnet.volumes.space import Space

if TYPE_CHECKING:
    from fgnet.network.config import FGNetConfig
    from fgnet.network.model import FGNet
    from fgnet.network.training import Progress, TrainingOptions


@pytest.fixture(scope="session")
def squares() -> LabelledVolume:
    """Bright square neurites with dark membranes, 6 x 48 x 48; not to be changed."""
    return square_neurites()


def square_neurites() -> LabelledVolume:
    """The same for a process of a test."""
    cells = np.arange(1, 37, dtype=np.uint32).reshape(6, 6).repeat(8, 0).repeat(8, 1)
    labels = np.repeat(cells[None], 6, axis=0)
    edge = (np.arange(48) % 8 == 0) | (np.arange(48) % 8 == 7)
    raw = np.where(edge[:, None] | edge[None, :], 60, 190).astype(np.uint8)
    return LabelledVolume("squares", np.repeat(raw[None], 6, axis=0), labels, Space((30.0, 6.0, 6.0)))


@dataclass(frozen=True)
class ShortRuns:
    """Runs of a few steps of a small network, and what they are compared by."""

    config: FGNetConfig
    options: TrainingOptions

    def run(
        self,
        folder: Path,
        volume: LabelledVolume,
        options: TrainingOptions | None = None,
        config: FGNetConfig | None = None,
        **more: Any,
    ) -> list[Progress]:
        from fgnet.network.training import train

        return list(train(folder, config or self.config, options or self.options, [volume], **more))

    def same(self, first: Any, second: Any) -> bool:
        """Whether nested plain data and tensors are equal, bit by bit."""
        import torch

        if isinstance(first, dict):
            return first.keys() == second.keys() and all(self.same(first[key], second[key]) for key in first)
        if isinstance(first, (list, tuple)):
            return len(first) == len(second) and all(map(self.same, first, second))
        return torch.equal(first, second) if isinstance(first, torch.Tensor) else bool(first == second)

    def scripted(self, scores: list[float]) -> Callable[[FGNet], dict[str, Any]]:
        """A validation that gives these figures in turn."""
        remaining = iter(scores)

        def validate(network: FGNet) -> dict[str, Any]:
            assert not network.training
            return {"voi": next(remaining)}

        return validate


@pytest.fixture(scope="session")
def short() -> ShortRuns:
    """What the tests of training run."""
    from fgnet.network.config import preset
    from fgnet.network.training import TrainingOptions

    options = TrainingOptions(
        iterations=6, batch=2, crop=(2, 32, 32), learning_rate=1e-3, schedule="cosine", warmup=2, ema=0.5, save_every=1
    )
    return ShortRuns(preset("nano", widths=(4, 6, 8, 8), patch=(2, 32, 32)), options)


@pytest.fixture
def no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than these runs; `test_training_log` looks at the picture."""
    from fgnet.network import training_log

    monkeypatch.setattr(training_log, "save_curves", lambda *_: None)
