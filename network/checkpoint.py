"""`model.pt`: tensors and plain data only, read without running any code that the file brings."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fgnet.engine.atomic_file import open_atomically
from fgnet.network.config import FGNetConfig
from fgnet.network.encoder import load_exactly
from fgnet.network.model import FGNet
from fgnet.volumes.errors import CheckpointError, OutputError

FORMAT = "fgnet-checkpoint"
VERSION = 1


@dataclass(frozen=True)
class Checkpoint:
    """What `model.pt` holds.

    Attributes:
        config: the network's configuration.
        weights: its state dict.
        provenance: plain data: voxel sizes trained on (nm, z y x), data and options, steps, figures, version.
        training: what an exact resume needs beside the weights; None in a model made for use.
        path: the file that it was read from, for messages.
    """

    config: FGNetConfig
    weights: dict[str, Tensor]
    provenance: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] | None = None
    path: Path | None = None

    def build(self) -> FGNet:
        """The network with these weights, in evaluation mode.

        Raises:
            CheckpointError: the weights do not fit the configuration; the keys are listed.
        """
        network = FGNet(self.config)
        load_exactly(network, self.weights, where=self.path)
        return network.eval()


def read_plain(path: Path) -> dict[str, Any]:
    """A dictionary of tensors and plain data, read with `weights_only=True`.

    Raises:
        CheckpointError: missing, not a checkpoint, truncated, or one that needs unpickling code.
    """
    if not path.is_file():
        raise CheckpointError("no such file", where=path, remedy="give the path of a checkpoint (.pt)")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            "the file needs unpickling code, or is no checkpoint; it was not run",
            where=path,
            remedy="save tensors and plain data only, as fgnet-train does",
        ) from error
    except Exception as error:  # the readers of torch raise whatever they like on damaged files
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"the file cannot be read as a checkpoint ({reason})",
            where=path,
            remedy="it may be truncated; copy it again",
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError("the file holds no dictionary", where=path, remedy="give a checkpoint (.pt)")
    return content


def load_checkpoint(path: Path) -> Checkpoint:
    """Read `model.pt` or a training checkpoint.

    Raises:
        CheckpointError: unreadable, of another kind or version, or with a configuration that cannot be built.
    """
    content = read_plain(path)
    if content.get("format") != FORMAT:
        raise CheckpointError(
            "not an fgnet checkpoint",
            where=path,
            remedy="give a model.pt written by fgnet-train; SAM2 weights go to --sam2",
        )
    if content.get("version") != VERSION:
        raise CheckpointError(
            f"checkpoint version {content.get('version')}, this fgnet reads {VERSION}",
            where=path,
            remedy="use the version of fgnet that wrote it",
        )
    try:
        config, weights = FGNetConfig.from_dict(dict(content["config"])), dict(content["weights"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"incomplete checkpoint ({error!r})", where=path, remedy="export it again") from error
    return Checkpoint(config, weights, content.get("provenance", {}), content.get("training"), path)


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write so that a reader, or a kill at any moment, finds the old file or the new one, never a torn one.

    Raises:
        OutputError: the folder cannot be written or the disk is full; the old file is as it was.
    """
    content = {
        "format": FORMAT,
        "version": VERSION,
        "config": checkpoint.config.to_dict(),
        "weights": {key: value.detach().contiguous() for key, value in checkpoint.weights.items()},
        "provenance": checkpoint.provenance,
        "training": checkpoint.training,
    }
    try:
        with open_atomically(path) as file:
            torch.save(content, file)
    except (OSError, RuntimeError) as error:
        raise OutputError(
            f"the checkpoint cannot be written ({error})", where=path, remedy="free space or choose another folder"
        ) from error
