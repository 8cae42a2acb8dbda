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
        decoding: what its bundle recommends, or would.
    """

    name: str
    checkpoint: Checkpoint
    decoding: Decoding

    @property
    def decoding_settings(self) -> dict[str, Any]:
        """Of the decoder that makes segments of its affinities, as of its validation; thresholds are found anew."""
        settings = {key: getattr(self.decoding, key) for key in ("fragments", "scoring", "quantile")}
        validated = self.checkpoint.provenance.get("decoding") or {}
        return settings | {key: validated[key] for key in ("decoder",) if key in validated}


def find_model(text: str) -> NamedModel:
    """The model of a name: "nano" or whatever ships with fgnet, a bundle's folder, or a checkpoint's file.

    Raises:
        CheckpointError: there is none, or it cannot be read.
        BundleError: a bundle that was altered, or holds no checkpoint.
    """
    from fgnet.engine.bundle import default_bundle, load_bundle
    from fgnet.export.recommended_decoding import DecodingWishes
    from fgnet.network.checkpoint import load_checkpoint

    path, shipped = Path(text), default_bundle()
    if path.is_file():
        checkpoint = load_checkpoint(path)
        return NamedModel(path.name, checkpoint, DecodingWishes().settled(checkpoint.provenance))
    folder = shipped if text == shipped.name and not path.exists() else path
    if not folder.is_dir():
        raise CheckpointError(
            "no such file", where=text, remedy=f"give a model.pt, a bundle's folder, or {shipped.name}"
        )
    bundle = load_bundle(folder)
    return NamedModel(bundle.manifest.name, load_checkpoint(bundle.checkpoint), bundle.manifest.decoding)
