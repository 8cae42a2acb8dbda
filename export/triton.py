"""A bundle as a model repository of the Triton Inference Server: a folder that the server is started on."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from fgnet.engine.bundle import Bundle, Engine, Graphs, Precision
from fgnet.export.graph_file import Port, graph_ports, read_graph, weight_files
from fgnet.export.triton_config import BACKENDS, DATA_TYPES, DEVICES, MARK, Backend, Device, ModelConfig
from fgnet.export.triton_readme import Served, readme_text
from fgnet.volumes.durability import put_in_place
from fgnet.volumes.errors import BackendError, BundleError, OutputError

README = "README.md"
CONFIG = "config.pbtxt"

_VERSION = "1"
_FILES = {"onnxruntime": "model.onnx", "tensorrt": "model.plan"}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_WRITTEN = re.compile(rf"{_VERSION}(/(model\.onnx|model\.plan|[^/]+\.data))?|{re.escape(CONFIG)}")


@dataclass(frozen=True)
class _Model:
    """One model of the repository.

    Attributes:
        config: what its `config.pbtxt` says.
        files: where each file of its version folder comes from.
    """

    config: ModelConfig
    files: dict[str, Path]


def write_triton_repository(
    bundle: Bundle,
    folder: Path,
    *,
    backend: Backend = "onnxruntime",
    precision: Precision | None = None,
    device: Device = "gpu",
    instances: int = 1,
    name: str | None = None,
    architecture: str | None = None,
    version: str | None = None,
    overwrite: bool = False,
) -> list[Path]:
    """Write a model repository: `NAME_encoder`, `NAME_decoder`, `NAME` for the bundle's single graph, and a README.

    The models know no batches: shapes are static, and features of sections are kept by the client, as the README shows.
    The folder appears complete or not at all.

    Args:
        bundle: what to serve.
        folder: of the repository; what `tritonserver --model-repository` is given.
        backend: Triton's: "onnxruntime" takes the graphs as they are, "tensorrt" the plans that the bundle holds.
        precision: of the graphs; the bundle's default if left out.
        device: that the models run on; "cpu" for onnxruntime only.
        instances: of each model on each device.
        name: of the models; the bundle's by default, other characters than letters, digits, "_", "." and "-" replaced.
        architecture: of the plans, such as "sm90", where the bundle holds them for several.
        version: of TensorRT that the plans were built with, likewise.
        overwrite: whether an earlier repository of fgnet is replaced.

    Returns:
        The files, those of the README and of every model, sorted.

    Raises:
        BackendError: the backend does not serve these graphs: no plans were built for it, it does not run on the
            device, or it lacks a type; or onnx is not installed.
        BundleError: the bundle holds no graphs of the precision, or one that cannot be read.
        OutputError: the folder exists, cannot be written, or the name cannot be a model's.
    """
    if backend not in BACKENDS or device not in DEVICES or instances < 1:
        raise BackendError(
            f"no {instances} instances of backend {backend} on {device}",
            where=folder,
            remedy=f"backends are {' and '.join(BACKENDS)}, devices {' and '.join(DEVICES)}",
        )
    if (backend, device) == ("tensorrt", "cpu"):
        raise BackendError("TensorRT runs on GPUs only", where=folder, remedy="choose the backend onnxruntime")
    prefix = _model_name(bundle.manifest.name) if name is None else name
    if not _NAME.fullmatch(prefix):
        raise OutputError(
            f"a model cannot be called {prefix!r}", where=folder, remedy='use letters, digits, "_", "." and "-"'
        )
    graphs = bundle.graphs(precision)
    plans = _plans(bundle, graphs, architecture, version) if backend == "tensorrt" else None
    maker = _Maker(bundle, backend, device, instances, plans)
    encoder = None if graphs.encoder is None else maker.model(f"{prefix}_encoder", graphs.encoder, graphs.precision)
    decoder = maker.model(f"{prefix}_decoder", graphs.decoder, graphs.precision)
    plain = bundle.manifest.single
    single = None if plain is None or (plans and plain not in plans) else maker.model(prefix, plain, "fp32")
    _require_free(folder, overwrite)
    served = Served(
        bundle.manifest,
        None if encoder is None else encoder.config,
        decoder.config,
        None if single is None else single.config,
        None if plans is None else plans[graphs.decoder],
    )
    models = [model for model in (encoder, decoder, single) if model is not None]
    _write(folder, models, readme_text(served))
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _model_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", name).strip("_.-") or "fgnet"


def _plans(bundle: Bundle, graphs: Graphs, architecture: str | None, version: str | None) -> dict[str, Engine]:
    """The plans of one version of TensorRT and one architecture, by graph."""
    built: dict[tuple[str, str], dict[str, Engine]] = {}
    for engine in bundle.manifest.engines:
        wanted = architecture in (None, engine.architecture) and version in (None, engine.version)
        if engine.backend == "tensorrt" and wanted:
            built.setdefault((engine.version, engine.architecture), {})[engine.graph] = engine
    built = {key: plans for key, plans in built.items() if plans.keys() >= set(graphs.files)}
    if not built:
        asked = (architecture and f" for {architecture}", version and f" of TensorRT {version}")
        raise BackendError(
            f"the bundle holds no TensorRT plans of precision {graphs.precision}" + "".join(filter(None, asked)),
            where=bundle.path,
            remedy="build them on the server's kind of GPU with the server's TensorRT, or choose onnxruntime",
        )
    if len(built) > 1:
        held = "; ".join(f"TensorRT {version} for {architecture}" for version, architecture in sorted(built))
        raise BackendError(
            f"the bundle holds plans of several kinds: {held}",
            where=bundle.path,
            remedy="say which one is to be served: --architecture, or the version in Python",
        )
    return next(iter(built.values()))


@dataclass(frozen=True)
class _Maker:
    """Makes the models of one repository, which differ in their graphs only."""

    bundle: Bundle
    backend: Backend
    device: Device
    instances: int
    plans: dict[str, Engine] | None

    def model(self, name: str, graph: str, precision: Precision) -> _Model:
        manifest = self.bundle.manifest
        path = self.bundle.path / graph
        content = read_graph(path)
        inputs, outputs = graph_ports(content, path)
        for port in (*inputs, *outputs):
            _require_type(port, self.backend, path)
        # Keys with a prefix: some of Triton's backends read parameters of their own.
        parameters = {
            "fgnet.model": manifest.name,
            "fgnet.precision": precision,
            "fgnet.patch": json.dumps(manifest.patch),
            "fgnet.stride": json.dumps(manifest.stride),
            "fgnet.sections": str(manifest.sections),
            "fgnet.voxel_sizes_nm": json.dumps(manifest.voxel_sizes),
            "fgnet.graph": graph,
            "fgnet.graph_sha256": manifest.files[graph],
        }
        if self.plans is None:
            files = {_FILES[self.backend]: path}
            files |= {file: _beside(self.bundle, file, path) for file in weight_files(content)}
        else:
            engine = self.plans[graph]
            files = {_FILES[self.backend]: self.bundle.path / engine.plan}
            parameters |= {
                "fgnet.plan_sha256": manifest.files[engine.plan],
                "fgnet.tensorrt": engine.version,
                "fgnet.architecture": engine.architecture,
            }
        config = ModelConfig(name, self.backend, inputs, outputs, self.device, self.instances, parameters)
        return _Model(config, files)


def _require_type(port: Port, backend: Backend, where: Path) -> None:
    known = port.dtype in DATA_TYPES
    # Triton's onnxruntime backend refuses such a model when it is loaded (triton-inference-server/server, issue 8464).
    if known and (backend, port.dtype) != ("onnxruntime", "bfloat16"):
        return
    raise BackendError(
        f"Triton's backend {backend} cannot take or give {port.name} as {port.dtype}",
        where=where,
        remedy="serve another precision" + (", or TensorRT plans" if known else ""),
    )


def _beside(bundle: Bundle, file: str, graph: Path) -> Path:
    """A file of weights, found by the graph under the same name wherever both are copied to."""
    if PurePosixPath(file).name != file or file not in bundle.manifest.files:
        raise BundleError(
            f"the graph's weights lie in a file that the manifest does not name: {file}",
            where=graph,
            remedy="export the model again",
        )
    return bundle.path / file


def _require_free(folder: Path, overwrite: bool) -> None:
    if not folder.exists():
        return
    if not overwrite:
        raise OutputError("exists already", where=folder, remedy="choose another folder, or pass --overwrite")
    if not folder.is_dir() or (other := _not_ours(folder)) is not None:
        what = "it is no folder" if not folder.is_dir() else f"it holds {other}, which fgnet did not write"
        raise OutputError(f"overwriting would delete it, but {what}", where=folder, remedy="choose another folder")


def _not_ours(folder: Path) -> Path | None:
    """The first thing in a folder that no export to Triton wrote."""
    for entry in sorted(folder.iterdir()):
        if entry.is_dir() and not entry.is_symlink():
            config = entry / CONFIG
            if not (config.is_file() and _marked(config)):
                return entry
            for path in sorted(entry.rglob("*")):
                if path.is_symlink() or not _WRITTEN.fullmatch(path.relative_to(entry).as_posix()):
                    return path
        elif entry.name != README or not _marked(entry):
            return entry
    return None


def _marked(path: Path) -> bool:
    try:
        with path.open(encoding="utf-8") as file:
            return MARK.removeprefix("# ") in file.readline()
    except (OSError, UnicodeDecodeError):
        return False


def _write(folder: Path, models: list[_Model], readme: str) -> None:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
            made = Path(temporary) / "repository"
            made.mkdir()
            (made / README).write_text(readme, encoding="utf-8")
            for model in models:
                target = made / model.config.name / _VERSION
                target.mkdir(parents=True)
                (target.parent / CONFIG).write_text(model.config.to_text(), encoding="utf-8")
                for file, source in model.files.items():
                    shutil.copyfile(source, target / file)
            put_in_place(made, folder, Path(temporary) / "replaced")
    except OSError as error:
        raise OutputError(
            f"the repository cannot be written ({error.strerror or error})",
            where=folder,
            remedy="free space or choose another folder",
        ) from error
