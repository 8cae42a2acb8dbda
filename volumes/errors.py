"""The errors a user can cause; the commands print them without a traceback and exit non-zero."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


class FGNetError(Exception):
    """What was wrong, where, and what to do about it.

    Args:
        what: one sentence that says what is wrong.
        where: the path, dataset, block or option concerned.
        remedy: what the user can do.
    """

    def __init__(self, what: str, *, where: object | None = None, remedy: str | None = None) -> None:
        self.what = what
        self.where = None if where is None else str(where)
        self.remedy = remedy
        text = what if self.where is None else f"{self.where}: {what}"
        super().__init__(text if remedy is None else f"{text} ({remedy})")


@contextlib.contextmanager
def located(where: object) -> Iterator[None]:
    """Adds the place to errors that are raised inside without one."""
    try:
        yield
    except FGNetError as error:
        if error.where is not None:
            raise
        raise type(error)(error.what, where=where, remedy=error.remedy) from error


class AddressError(FGNetError):
    """An address that names no readable array."""


class VolumeError(FGNetError):
    """A volume whose shape, dtype, values or chunks cannot be used."""


class OutputError(FGNetError):
    """An output that exists already, cannot be created or cannot be written."""


class GeometryError(FGNetError):
    """A box, patch, stride or region of interest that makes no sense."""


class BundleError(FGNetError):
    """A bundle that is missing, incomplete, altered or of another version."""


class BackendError(FGNetError):
    """A backend that is not installed, or that cannot run this bundle."""


class CheckpointError(FGNetError):
    """A checkpoint that is missing, unsafe, or of another network."""


class DecodingError(FGNetError):
    """Affinities or decoder options from which no segmentation can be made."""


class TrainingError(FGNetError):
    """Training data or options from which nothing can be learned, or a training run that diverged."""
