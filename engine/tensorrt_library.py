"""TensorRT or TensorRT for RTX, which of the two is asked for: one API, two Python modules."""

from __future__ import annotations

import contextlib
from collections import deque
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any, Literal, get_args

from fgnet.volumes.errors import BackendError

TensorRTName = Literal["tensorrt", "tensorrt-rtx"]
TENSORRT_NAMES: tuple[TensorRTName, ...] = get_args(TensorRTName)

# The metapackage of TensorRT for RTX re-exports its bindings, which may be installed without it.
_MODULES: dict[TensorRTName, tuple[str, ...]] = {
    "tensorrt": ("tensorrt",),
    "tensorrt-rtx": ("tensorrt_rtx_bindings", "tensorrt_rtx"),
}
_KEPT = 50


@dataclass(frozen=True)
class Library:
    """One of the two modules, loaded.

    Attributes:
        name: the backend that it serves, as `--backend` names it.
        version: as the library prints it; a plan is valid for this one only.
        trt: the Python module.
        logger: to be passed to everything that the module makes.
        messages: the last warnings and errors that the library logged, oldest first.
    """

    name: TensorRTName
    version: str
    trt: Any
    logger: Any
    messages: deque[str]

    @property
    def architectures(self) -> tuple[str, ...]:
        """Those that it builds for on a machine without GPU, such as ("sm75", "sm89"); empty for TensorRT itself."""
        known = getattr(self.trt, "ComputeCapability", None)
        names = [] if known is None else list(known.__members__)
        return tuple(sorted((name.lower() for name in names if name.startswith("SM")), key=_number))

    @property
    def compiles_at_run_time(self) -> bool:
        """Whether a plan holds kernels to be compiled on the GPU at hand, rather than kernels timed on it."""
        return hasattr(self.trt, "IRuntimeCache")

    def failure(self, what: str, *, where: object, remedy: str | None = None) -> BackendError:
        """An error of the library, with what it logged."""
        said = "; ".join(dict.fromkeys(self.messages))
        self.messages.clear()
        return BackendError(f"{what} ({self.name} {self.version}: {said or 'no message'})", where=where, remedy=remedy)

    def make(self, kind: str, *arguments: Any) -> Any:
        """An object of the library, such as its `Builder`, which takes the logger as its last argument.

        Raises:
            BackendError: it cannot be made, as a rule for want of a GPU or of a driver that is new enough.
        """
        # Where the C++ side gives nothing, pybind11 raises a TypeError that says so little; the log says why.
        with contextlib.suppress(TypeError):
            made = getattr(self.trt, kind)(*arguments, self.logger)
            if made is not None:
                return made
        raise self.failure(
            f"the library gives no {kind}",
            where=f"backend {self.name}",
            remedy="it needs an NVIDIA GPU and its driver; use --backend onnxruntime where there is none",
        )


@cache
def open_library(name: TensorRTName) -> Library:
    """Load the module of a backend; once, for the library keeps the first logger that it is given.

    Raises:
        BackendError: it is not installed, or cannot be loaded.
    """
    remedy = "pip install 'fgnet[gpu]'"
    where = f"backend {name}"
    for module in _MODULES[name]:
        try:
            trt = import_module(module)
        except ModuleNotFoundError:
            continue
        # OSError and RuntimeError come from its loaders of shared libraries.
        except (ImportError, OSError, RuntimeError) as error:
            raise BackendError(f"{module} cannot be loaded ({error})", where=where, remedy=remedy) from error
        messages: deque[str] = deque(maxlen=_KEPT)
        return Library(name, str(trt.__version__), trt, _collecting_logger(trt, messages), messages)
    raise BackendError(f"{name} is not installed", where=where, remedy=remedy)


def _collecting_logger(trt: Any, messages: deque[str]) -> Any:
    class CollectingLogger(trt.ILogger):
        """Keeps what is worth quoting in an error instead of printing it."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.ERROR:
                messages.append(" ".join(message.split()))

    return CollectingLogger()


def _number(architecture: str) -> int:
    return int(architecture.removeprefix("sm"))
