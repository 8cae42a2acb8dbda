"""Named ranges on the timeline of NVIDIA's Nsight tools, where the package nvtx is installed; else nothing."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any


def named_range(name: str) -> AbstractContextManager[Any]:
    """A `with` block that appears under this name."""
    annotate = _annotate()
    return nullcontext() if annotate is None else annotate(name, domain="fgnet")


@cache
def _annotate() -> Callable[..., AbstractContextManager[Any]] | None:
    if find_spec("nvtx") is None:
        return None
    annotate: Callable[..., AbstractContextManager[Any]] = import_module("nvtx").annotate
    return annotate
