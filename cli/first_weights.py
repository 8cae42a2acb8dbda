"""What a user names as a model to start from: the shipped one, a bundle, or a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fgnet.volumes.errors import CheckpointError

if TYPE_CHECKING:
    from fgnet.engine.bundle import Decoding
    from fgnet.network.checkpoint import Checkpoint


@dataclass(frozen=True)
class NamedModel:
    """A model that there is.

    Attributes:
        name: for messages and provenance, without folders.
        checkpoint: its weights and configuration.
        decoding: what its bundle recommends; None for a checkpoint on its own.
    """

    name: str
    checkpoint: Checkpoint
    decoding: Decoding | None = None

    @property
    def decoding_settings(self) -> dict[str, Any] | None:
        """Of the decoder that makes segments of its affinities, as its bundle recommends; thresholds are found anew."""
        if self.decoding is None:
            return None
        return {key: getattr(self.decoding, key) for key in ("fragments", "scoring", "quantile")}


def find_model(text: str) -> NamedModel:
    """The model of a name: "nano" or whatever ships with fgnet, a bundle's folder, or a checkpoint's file.

    Raises:
        CheckpointError: there is none, or it cannot be read.
        BundleError: a bundle that was altered, or holds no checkpoint.
    """
    from fgnet.engine.bundle import default_bundle, load_bundle
    from fgnet.network.checkpoint import load_checkpoint

    path, shipped = Path(text), default_bundle()
    if path.is_file():
        return NamedModel(path.name, load_checkpoint(path))
    folder = shipped if text == shipped.name and not path.exists() else path
    if not folder.is_dir():
        raise CheckpointError(
            "no such file", where=text, remedy=f"give a model.pt, a bundle's folder, or {shipped.name}"
        )
    bundle = load_bundle(folder)
    return NamedModel(bundle.manifest.name, load_checkpoint(bundle.checkpoint), bundle.manifest.decoding)
