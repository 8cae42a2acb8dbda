"""Where do the steps of a blockwise decoder leave what they found, so that a kill loses nothing?

Every file is written under another name and renamed once it is whole and on disk: a file that exists is finished. Two
workers that write the same one write the same content, so the last rename changes nothing.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from fgnet.volumes.durability import sync_folder
from fgnet.volumes.errors import DecodingError
from fgnet.volumes.geometry import Triple

Arrays = dict[str, npt.NDArray[Any]]

PLAN = "plan.json"


class SidecarGoneError(DecodingError):
    """The folder was deleted: the decoding that wanted the pieces has ended, or another one has taken its place."""


@dataclass(frozen=True)
class Sidecar:
    """A folder of intermediate results, shared by all workers of one decoding.

    Attributes:
        folder: on a disk that all workers see, where renaming a file is atomic.
        durable: the content of files outlives a power cut too, not just a kill, which takes milliseconds for each.
            Their names may not, which would take as long again: a step whose file is gone is done again.
    """

    folder: Path
    durable: bool = True

    def claim(self, description: str) -> None:
        """Bind the folder to a decoding, or make sure that it belongs to it.

        Raises:
            DecodingError: if it holds the results of another decoding, or cannot be written.
        """
        path = self.folder / PLAN
        remedy = "choose another folder, or remove this one"
        if path.exists():
            if path.read_text() != description:
                raise DecodingError(
                    "it holds pieces of a decoding of other affinities or options", where=path, remedy=remedy
                )
            return
        if self.folder.exists() and any(entry.suffix != ".part" for entry in self.folder.iterdir()):
            raise DecodingError(f"the folder holds files, but no {PLAN}", where=self.folder, remedy=remedy)
        with _told(path):
            self.folder.mkdir(parents=True, exist_ok=True)
        self._write(path, lambda file: file.write(description.encode()))
        if self.durable:
            # Pieces whose plan is gone would be refused.
            with contextlib.suppress(OSError):
                sync_folder(self.folder)

    def claimed(self) -> str:
        """The description of the decoding that the folder is bound to.

        Raises:
            DecodingError: if there is none.
        """
        path = self.folder / PLAN
        try:
            return path.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise DecodingError("no decoding has begun here", where=path, remedy="give the folder of one") from error

    def path(self, step: str, block: Triple) -> Path:
        """The file of one block, or of another unit of work, after one step."""
        z, y, x = block
        return self.folder / step / f"{z}-{y}-{x}.npz"

    def has(self, step: str, block: Triple) -> bool:
        """Whether a step is done for a block."""
        return self.path(step, block).exists()

    def save(self, step: str, block: Triple, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Store the arrays of one block after one step, all or nothing.

        Raises:
            SidecarGoneError: if the folder is not there any more; it is not made anew.
            DecodingError: if they cannot be written.
        """
        self._write(self.path(step, block), lambda file: np.savez(file, allow_pickle=False, **arrays))

    def load(self, step: str, block: Triple, *names: str) -> Arrays:
        """Read the arrays of one block after one step: those of these names, or all.

        Raises:
            DecodingError: if the step is not done, or its file cannot be read.
        """
        path = self.path(step, block)
        try:
            with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
                return {name: file[name] for name in names or file.files}
        except FileNotFoundError as error:
            raise DecodingError("this step was not done for this block", where=path, remedy="do it first") from error
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise DecodingError(
                f"it cannot be read: {error}", where=path, remedy="remove it, and do its step again"
            ) from error

    def forget(self, steps: str, *, but: str | None = None) -> None:
        """Remove what some steps have left, of all blocks.

        Args:
            steps: a pattern of their names.
            but: the one that is kept, if any is.

        Raises:
            DecodingError: if it cannot be removed.
        """
        for folder in self.folder.glob(steps):
            if but is not None and folder == self.folder / but:
                continue
            try:
                shutil.rmtree(folder)
            except FileNotFoundError:
                # Another worker was there first.
                pass
            except OSError as error:
                raise DecodingError(
                    f"it cannot be removed: {error.strerror or error}",
                    where=folder,
                    remedy="mend the permissions, and run again: what is finished is kept",
                ) from error

    def _write(self, path: Path, fill: Callable[[IO[bytes]], object]) -> None:
        part = path.with_name(f"{path.name}.{os.uname().nodename}-{os.getpid()}-{threading.get_ident()}.part")
        with _told(path):
            try:
                # Not the folder itself: a worker that outlives its run would leave one that nobody removes.
                for parent in reversed(path.parents):
                    if self.folder in parent.parents:
                        parent.mkdir(exist_ok=True)
                try:
                    with part.open("wb") as file:
                        fill(file)
                        if self.durable:
                            # Renamed before its content is on disk, a file could be found empty after a power cut.
                            file.flush()
                            os.fsync(file.fileno())
                    part.replace(path)
                finally:
                    part.unlink(missing_ok=True)
            except FileNotFoundError as error:
                if self.folder.exists():
                    raise
                raise SidecarGoneError(
                    "the folder of this decoding is not there any more",
                    where=self.folder,
                    remedy="its run has ended or was started anew; --resume goes on with the present one",
                ) from error


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """Turns an OSError into a DecodingError that says what cannot be written."""
    try:
        yield
    except OSError as error:
        raise DecodingError(
            f"it cannot be written: {error.strerror or error}",
            where=path,
            remedy="free some space or mend the permissions, and run again: what is finished is kept",
        ) from error
