"""A bundle: the folder that any inference server runs, with a manifest that vouches for every file in it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Self, get_args

from fgnet.volumes.errors import BundleError, DecodingError, GeometryError, VolumeError
from fgnet.volumes.geometry import Triple, as_triple
from fgnet.volumes.grid import PatchGrid
from fgnet.volumes.space import as_lengths

FORMAT = "fgnet-bundle"
VERSION = 2
MANIFEST = "manifest.json"

Precision = Literal["fp32", "fp16", "bf16", "int8"]
"""What the numbers of a graph are; fp32 islands (layer norms, softmax) are part of the others."""
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

_READ = 1 << 20


@dataclass(frozen=True)
class Decoding:
    """What the model's maker found best on validation data; the commands' options override it.

    Attributes:
        fragments: "sections" or "affinity".
        scoring: "quantile" or "mean".
        quantile: in percent, for "quantile".
        threshold: agglomeration score, 0 to 1.
        mean_threshold: the same where contacts are scored by their mean although `scoring` is another, as the blockwise
            decoder does; None if that was not looked at.
    """

    fragments: str = "sections"
    scoring: str = "quantile"
    quantile: int = 50
    threshold: float = 0.5
    mean_threshold: float | None = None

    def threshold_of(self, scoring: str) -> float:
        """The threshold for another scoring than the recommended one, too.

        Raises:
            DecodingError: the model knows none for it.
        """
        if scoring == self.scoring:
            return self.threshold
        if scoring == "mean" and self.mean_threshold is not None:
            return self.mean_threshold
        raise DecodingError(
            f"the model recommends a threshold for scores by {self.scoring}, none by {scoring}",
            where="--threshold",
            remedy="give one from 0 to 1 (0.8 is a start for means); fgnet-eval tells which is best",
        )


@dataclass(frozen=True)
class Graphs:
    """The ONNX files of one precision: static shapes, uint8 in and out.

    Attributes:
        precision: of weights and arithmetic, as far as the graph says.
        decoder: gray (D, y, x) uint8 where the network needs it, and the features of D sections, each
            (D, channels, h, w) -> affinities (3, D, y, x) uint8, 255 is 1.0, channels (z, y, x).
        encoder: gray (n, y, x) uint8 -> features (n, channels, h, w), under the names that the decoder reads them by;
            None for a network that computes nothing section by section.
    """

    precision: Precision
    decoder: str
    encoder: str | None

    @property
    def files(self) -> tuple[str, ...]:
        """The names of the files."""
        return (self.decoder,) if self.encoder is None else (self.encoder, self.decoder)


@dataclass(frozen=True)
class Engine:
    """A TensorRT plan, which is valid for one kind of GPU and one version of TensorRT only.

    Attributes:
        backend: `tensorrt` or `tensorrt-rtx`.
        version: of that library, as it prints it.
        architecture: compute capability that it was built for, such as "sm89".
        precision: of the graph that it was built from.
        graph: that ONNX file.
        plan: the file of the plan.
    """

    backend: str
    version: str
    architecture: str
    precision: Precision
    graph: str
    plan: str


@dataclass(frozen=True)
class BundleManifest:
    """What `manifest.json` says.

    Attributes:
        name: of the model.
        config: the network's configuration, as plain data.
        patch: (z, y, x) voxels of a block, static in every graph.
        sections: that one call of the encoder takes, static.
        stride: (z, y, x) voxels between patches unless told otherwise.
        voxel_sizes: nm (z, y, x) of what it was trained on; empty if unknown.
        files: sha256 of each file beside the manifest.
        graphs: the ONNX files of each precision, the first one the default.
        single: the whole network as one plain fp32 graph, gray (1, 1, z, y, x) uint8 -> affinities (1, 3, z, y, x)
            float32, if it is in the bundle.
        engines: TensorRT plans built beforehand.
        checkpoint: the checkpoint that it was made from, if it is in the bundle.
        normalisation: what happens to gray, and where.
        decoding: recommended decoder settings.
        parity: one report for each backend and precision that was compared with eager PyTorch, as plain data.
        provenance: data, training and versions, as plain data.
    """

    name: str
    config: dict[str, Any]
    patch: Triple
    stride: Triple
    voxel_sizes: tuple[tuple[float, float, float], ...]
    files: dict[str, str]
    sections: int
    graphs: tuple[Graphs, ...]
    single: str | None = None
    engines: tuple[Engine, ...] = ()
    checkpoint: str | None = None
    normalisation: str = "in the graph: gray / 255, then the encoder's mean and standard deviation"
    decoding: Decoding = field(default_factory=Decoding)
    parity: tuple[dict[str, Any], ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def members(self) -> tuple[str, ...]:
        """Every file that the manifest relies on."""
        optional = [name for name in (self.single, self.checkpoint) if name is not None]
        graphs = [name for graphs in self.graphs for name in graphs.files]
        return (*graphs, *optional, *(engine.plan for engine in self.engines))

    def to_json(self) -> str:
        """The text of `manifest.json`."""
        return json.dumps({"format": FORMAT, "version": VERSION, **asdict(self)}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, where: Path) -> Self:
        """Read a manifest.

        Raises:
            BundleError: no JSON, of another format or version, or with entries that are missing or make no sense.
        """
        remedy = "export the model again, or copy the bundle again"
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise BundleError(f"the manifest is no JSON ({error})", where=where, remedy=remedy) from error
        if not isinstance(data, dict) or data.pop("format", None) != FORMAT:
            raise BundleError("not the manifest of an fgnet bundle", where=where, remedy="give a bundle's folder")
        if (version := data.pop("version", None)) != VERSION:
            raise BundleError(
                f"bundle version {version}, this fgnet reads {VERSION}",
                where=where,
                remedy="use the version of fgnet that wrote it",
            )
        try:
            data["patch"] = as_triple(data["patch"], "patch")
            data["stride"] = as_triple(data["stride"], "stride")
            PatchGrid(data["patch"], data["patch"], data["stride"])
            data["voxel_sizes"] = tuple(as_lengths(size, "voxel size") for size in data["voxel_sizes"])
            data["decoding"] = Decoding(**data["decoding"])
            data["graphs"] = tuple(Graphs(**entry) for entry in data["graphs"])
            data["engines"] = tuple(Engine(**entry) for entry in data["engines"])
            data["parity"] = tuple(data["parity"])
            manifest = cls(**data)
            _require_types(manifest, _TYPES)
            _require_types(manifest.decoding, _DECODING_TYPES)
            for entry in (*manifest.graphs, *manifest.engines):
                _require_types(entry, _FILE_TYPES)
            for report in manifest.parity:
                if not isinstance(report, dict):
                    raise TypeError(f"a report of parity is {report!r}")
            if not manifest.graphs or not 1 <= manifest.sections <= manifest.patch[0]:
                raise ValueError(f"{len(manifest.graphs)} graphs for {manifest.sections} sections")
            return manifest
        except KeyError as error:
            raise BundleError(f"the manifest lacks the entry {error}", where=where, remedy=remedy) from error
        except (TypeError, ValueError, GeometryError, VolumeError) as error:
            raise BundleError(f"the manifest makes no sense ({error})", where=where, remedy=remedy) from error


# A manifest may be edited by hand: what it says is used long after it was read.
_TYPES: dict[str, tuple[type, ...]] = {
    "name": (str,),
    "config": (dict,),
    "files": (dict,),
    "sections": (int,),
    "single": (str, type(None)),
    "checkpoint": (str, type(None)),
    "normalisation": (str,),
    "provenance": (dict,),
}
_DECODING_TYPES: dict[str, tuple[type, ...]] = {
    "fragments": (str,),
    "scoring": (str,),
    "quantile": (int,),
    "threshold": (int, float),
    "mean_threshold": (int, float, type(None)),
}
_FILE_TYPES: dict[str, tuple[type, ...]] = {
    "encoder": (str, type(None)),
    "decoder": (str,),
    **dict.fromkeys(("backend", "version", "architecture", "graph", "plan"), (str,)),
}


def _require_types(entry: object, types: dict[str, tuple[type, ...]]) -> None:
    for name, allowed in types.items():
        if hasattr(entry, name) and not isinstance(value := getattr(entry, name), allowed):
            raise TypeError(f"{name} is {value!r}")
    if (precision := getattr(entry, "precision", PRECISIONS[0])) not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}")


@dataclass(frozen=True)
class Bundle:
    """A bundle whose files were found to be what the manifest says.

    Attributes:
        path: the folder.
        manifest: what it says.
    """

    path: Path
    manifest: BundleManifest

    def graphs(self, precision: Precision | None = None) -> Graphs:
        """The graphs of a precision, or the bundle's default.

        Raises:
            BundleError: the bundle holds none of this precision.
        """
        for graphs in self.manifest.graphs:
            if precision in (None, graphs.precision):
                return graphs
        held = ", ".join(graphs.precision for graphs in self.manifest.graphs)
        raise BundleError(
            f"no graphs of precision {precision}, only {held}",
            where=self.path,
            remedy=f"export the model with --precision {precision}",
        )

    @property
    def checkpoint(self) -> Path:
        """The checkpoint that it was made from.

        Raises:
            BundleError: the bundle was written without.
        """
        if self.manifest.checkpoint is None:
            raise BundleError("the bundle holds no checkpoint", where=self.path, remedy="export it with its checkpoint")
        return self.path / self.manifest.checkpoint


def load_bundle(path: Path) -> Bundle:
    """Open a bundle and check every file against its hash.

    Raises:
        BundleError: no bundle, another version, or a file that is missing, truncated or altered.
    """
    file = path / MANIFEST
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(
            f"no bundle here: {MANIFEST} cannot be read ({error.__class__.__name__})",
            where=path,
            remedy="give the folder that fgnet-export wrote",
        ) from error
    manifest = BundleManifest.from_json(text, file)
    for name in sorted({*manifest.files, *manifest.members}):
        member = path / name
        if member.parent != path or name not in manifest.files:
            raise BundleError(f"the manifest names a file without hash or outside the bundle: {name}", where=file)
        if not member.is_file():
            raise BundleError("the file is missing", where=member, remedy="copy the whole bundle again")
        if sha256(member) != manifest.files[name]:
            raise BundleError(
                "the file is not the one that was exported (its sha256 differs)",
                where=member,
                remedy="it was altered or truncated; copy the bundle again, or export it again",
            )
    return Bundle(path, manifest)


def default_bundle() -> Path:
    """The folder of the model that ships with fgnet (`nano`)."""
    return Path(str(resources.files("fgnet.engine"))) / "models" / "nano"


def sha256(path: Path) -> str:
    """The hash of a file, read a piece at a time.

    Raises:
        BundleError: the file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while piece := file.read(_READ):
                digest.update(piece)
    except OSError as error:
        raise BundleError(f"the file cannot be read ({error.strerror})", where=path) from error
    return digest.hexdigest()
