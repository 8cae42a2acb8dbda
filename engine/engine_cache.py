"""Where TensorRT plans live: in the bundle, in a cache folder, or, until they are built, nowhere."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from fgnet.engine.atomic_file import write_atomically
from fgnet.engine.bundle import Bundle, Precision

Say = Callable[[str], None]
"""Tells the user what there may be to wait for."""

_FORMAT = 1


@dataclass(frozen=True)
class EngineKey:
    """What a plan is valid for.

    Attributes:
        graph: sha256 of the ONNX file, and of weights that lie beside it.
        architecture: of the GPU, such as "sm89".
        backend: the library.
        version: of the library.
        precision: that the plan was checked for.
        options: of the builder, as plain data.
        device: name of the GPU, where the library times its kernels on it: what is fast on one of the same architecture
            need not run on another. Empty for plans that are compiled where they run.
    """

    graph: str
    architecture: str
    backend: str
    version: str
    precision: Precision
    options: dict[str, Any] = field(default_factory=dict)
    device: str = ""

    @property
    def digest(self) -> str:
        """The sha256 of it all, which names the cached plan."""
        text = json.dumps({"format": _FORMAT, **asdict(self)}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def target(self) -> str:
        """In words: the GPU and the library."""
        gpu = f"{self.device} ({self.architecture})" if self.device else self.architecture
        return f"{gpu} and {self.backend} {self.version}"


@dataclass(frozen=True)
class FoundEngine:
    """A plan that fits its key.

    Attributes:
        plan: the serialized engine.
        origin: where it came from.
        path: its file; None where it was built and could not be kept.
        report: what the builder said of it, as plain data; empty for a plan from the bundle.
    """

    plan: bytes
    origin: Literal["bundle", "cache", "built"]
    path: Path | None
    report: dict[str, Any]


def cache_folder() -> Path:
    """$FGNET_CACHE, or else the user's cache folder of this platform; it need not exist."""
    if given := os.environ.get("FGNET_CACHE"):
        return Path(given).expanduser() / "engines"
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "fgnet" / "engines"


def graph_hash(bundle: Bundle, graph: str) -> str:
    """The sha256 of one of a bundle's graphs with its weights, which may lie beside it in `graph`.data.

    Args:
        bundle: whose files were found to be what its manifest says.
        graph: the ONNX file's name within the bundle.
    """
    files = bundle.manifest.files
    if (weights := f"{graph}.data") not in files:
        return files[graph]
    # Such a graph says where its weights lie, not what they are.
    return hashlib.sha256(f"{files[graph]} {files[weights]}".encode()).hexdigest()


def find_or_build(
    bundle: Bundle,
    graph: str,
    key: EngineKey,
    build: Callable[[], tuple[bytes, dict[str, Any]]],
    *,
    folder: Path | None = None,
    say: Say = lambda _: None,
) -> FoundEngine:
    """The plan of one of a bundle's graphs: the bundle's own, a cached one, or one that is built now and kept.

    A plan for another GPU or version is never used; what there is instead of the right one is said.

    Args:
        bundle: whose files were found to be intact.
        graph: the ONNX file's name within the bundle.
        key: what the plan has to be valid for.
        build: makes the plan and a report of it, as plain data.
        folder: to keep plans in; `cache_folder()` by default.
        say: told what is found, and that something is built, which takes long.

    Raises:
        BackendError: from `build`.
    """
    folder = cache_folder() if folder is None else folder
    return (
        _from_bundle(bundle, graph, key, say)
        or _from_folder(folder, graph, key, say)
        or _build(folder, graph, key, build, say)
    )


def _from_bundle(bundle: Bundle, graph: str, key: EngineKey, say: Say) -> FoundEngine | None:
    others = []
    for engine in bundle.manifest.engines:
        if (engine.graph, engine.precision, engine.backend) != (graph, key.precision, key.backend):
            continue
        if (engine.version, engine.architecture) == (key.version, key.architecture):
            path = bundle.path / engine.plan
            return FoundEngine(path.read_bytes(), "bundle", path, {})
        others.append(f"{engine.architecture} and {engine.backend} {engine.version}")
    if others:
        say(f"{graph}: the bundle's engine is for {' or '.join(others)}, not for {key.target}; it is not used")
    return None


def _from_folder(folder: Path, graph: str, key: EngineKey, say: Say) -> FoundEngine | None:
    path, described = _files(folder, key)
    try:
        description = json.loads(described.read_text(encoding="utf-8"))
        plan = path.read_bytes()
    except FileNotFoundError:
        if path.exists() or described.exists():
            say(f"{graph}: the cached engine {path} is incomplete; it is built again")
        elif others := _others(folder, key):
            say(f"{graph}: the cached engine is for {' or '.join(others)}; it is built again for {key.target}")
        return None
    except (OSError, ValueError) as error:
        say(f"{graph}: the cached engine {path} cannot be read ({error.__class__.__name__}); it is built again")
        return None
    # The description stands beside the plan and could have been copied or edited apart from it.
    if not isinstance(description, dict) or description.get("key") != asdict(key):
        say(f"{graph}: the cached engine {path} is described as another one; it is built again")
        return None
    if hashlib.sha256(plan).hexdigest() != description.get("sha256"):
        say(f"{graph}: the cached engine {path} was altered or truncated; it is built again")
        return None
    return FoundEngine(plan, "cache", path, dict(description.get("report", {})))


def _build(
    folder: Path, graph: str, key: EngineKey, build: Callable[[], tuple[bytes, dict[str, Any]]], say: Say
) -> FoundEngine:
    say(f"{graph}: building an engine for {key.target} in {key.precision}; this is done once and can take minutes")
    plan, report = build()
    path, described = _files(folder, key)
    description = {"key": asdict(key), "sha256": hashlib.sha256(plan).hexdigest(), "report": report}
    try:
        # The plan first: a description vouches for a plan that is there.
        write_atomically(path, plan)
        write_atomically(described, (json.dumps(description, indent=2) + "\n").encode())
    except OSError as error:
        say(f"{graph}: the engine cannot be kept in {folder} ({error.strerror}); it will be built again next time")
        return FoundEngine(plan, "built", None, report)
    return FoundEngine(plan, "built", path, report)


def _files(folder: Path, key: EngineKey) -> tuple[Path, Path]:
    return folder / f"{key.digest}.plan", folder / f"{key.digest}.json"


def _others(folder: Path, key: EngineKey) -> list[str]:
    """What the cached plans of the same graph, precision and library are for."""
    found = set()
    for file in folder.glob("*.json"):
        try:
            other = EngineKey(**json.loads(file.read_text(encoding="utf-8"))["key"])
        except (OSError, ValueError, KeyError, TypeError):
            continue  # no description of ours; it is of no use, and no harm
        if (other.graph, other.precision, other.backend) == (key.graph, key.precision, key.backend):
            found.add(other.target if other.target != key.target else "other options")
    return sorted(found)
