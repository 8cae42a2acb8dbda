"""Which chunks of an output are finished, on disk, so that a run that was killed at any moment goes on from there.

A file beside the output: one line that says what the run is, then one line for each chunk, written once the chunk is on
disk. A line that a kill or a full disk cut short does not count: its chunk is made again. The file is locked by the run
that writes it (the lock ends with the process, however it ends), and removed when the output is complete.
"""

from __future__ import annotations

import errno
import json
import os
import threading
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from fgnet.volumes.durability import sync_folder
from fgnet.volumes.errors import OutputError
from fgnet.volumes.file_lock import lock_file
from fgnet.volumes.geometry import Triple
from fgnet.volumes.output_store import explained

_FORMAT = "fgnet-journal"
_VERSION = 1


def journal_path(output: Path) -> Path:
    """Where the journal of an output lies."""
    place = output.resolve()
    return place.with_name(place.name + ".journal")


def differences(held: dict[str, Any], asked: dict[str, Any]) -> str:
    """The fields in which two runs differ, in words; nothing where they are the same."""
    asked = json.loads(json.dumps(asked))
    return "; ".join(
        f"{name} was {held.get(name)!r} and is {asked.get(name)!r}"
        for name in sorted({*held, *asked})
        if held.get(name) != asked.get(name)
    )


def finished_chunks(output: Path) -> set[Triple]:
    """Indices of the chunks that the journal of a run names.

    Raises:
        OutputError: it cannot be read.
    """
    with explained(journal_path(output)):
        return _parse(journal_path(output).read_text(encoding="utf-8"))[-1]


def chunk_of(line: str | bytes) -> Triple | None:
    """The chunk that a line of a journal names; None for its first line, and for one that was cut short."""
    try:
        told = json.loads(line)
    except ValueError:
        return None
    if not isinstance(told, list) or len(told) != 3 or not all(isinstance(place, int) for place in told):
        return None
    z, y, x = told
    return z, y, x


class JournalWriter:
    """Adds finished chunks to a journal that another process holds the lock of.

    Args:
        output: the Zarr store.

    Raises:
        OutputError: the file cannot be written.
    """

    def __init__(self, output: Path) -> None:
        self.path = journal_path(output)
        self._lock = threading.Lock()
        with explained(self.path):
            self._file = self._open()

    def finished(self, index: Triple) -> None:
        """Note that a chunk is on disk."""
        with explained(self.path), self._lock:
            self._append(json.dumps(index))

    def close(self) -> None:
        """Let go of the file; once is enough, and twice does no harm."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _open(self) -> IO[str]:
        # Appending, so that processes that share a run do not write over each other's lines.
        return self.path.open("a+", encoding="utf-8")

    def _append(self, line: str) -> None:
        file = self._file.fileno()
        size = os.fstat(file).st_size
        # A process that shares the run may have been cut short, and this line is not to be a part of its line.
        torn = size > 0 and os.pread(file, 1, size - 1) != b"\n"
        data = b"\n" * torn + f"{line}\n".encode()
        if os.write(file, data) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(file)


class RunJournal(JournalWriter):
    """The journal of an output, locked until `close`.

    Args:
        output: the Zarr store.
        anew: whether what the file holds does not matter, for the output is to be replaced.

    Attributes:
        run: what the run is that the journal is of, as `begin` was told; None where it has not begun.
        tree: likewise, the merge tree that it may replace; None for none.
        done: indices of the chunks that were finished when it was opened.

    Raises:
        OutputError: another run writes this output, or the file cannot be read or written.
    """

    def __init__(self, output: Path, *, anew: bool = False) -> None:
        self.run: dict[str, Any] | None = None
        self.tree: dict[str, Any] | None = None
        self.done: set[Triple] = set()
        super().__init__(output)
        if not anew:
            try:
                with explained(self.path):
                    self._read()
            except BaseException:
                self.close()
                raise

    @property
    def lock(self) -> int:
        """File descriptor that holds the lock, for processes that share the run."""
        return self._file.fileno()

    @property
    def empty(self) -> bool:
        """Whether the file holds nothing, neither of this run nor of an earlier one."""
        with explained(self.path):
            return os.fstat(self._file.fileno()).st_size == 0

    def require(self, run: dict[str, Any]) -> None:
        """Refuse to go on with another run's chunks.

        Args:
            run: what this run is.

        Raises:
            OutputError: it differs from what the journal is of; the fields that do are named.
        """
        if different := differences(self.run or {}, run):
            raise OutputError(
                f"the unfinished run cannot be continued: {different}",
                where=self.path,
                remedy="give the same input, model and options, or start anew with --overwrite",
            )

    def clear(self) -> None:
        """Drop what the journal holds, before the output that it is of is replaced."""
        with explained(self.path):
            os.ftruncate(self._file.fileno(), 0)
        self.run, self.tree, self.done = None, None, set()

    def begin(self, run: dict[str, Any], *, tree: dict[str, Any] | None = None) -> None:
        """Start a run whose output was created.

        Args:
            run: what it is.
            tree: what tells the merge tree that it may replace at its end, after a kill too; None for none.
        """
        self.clear()
        with explained(self.path):
            self._append(json.dumps({"format": _FORMAT, "version": _VERSION, "run": run, "tree": tree}))
            # Without it nothing of the output can be gone on with.
            sync_folder(self.path.parent)
        self.run, self.tree = json.loads(json.dumps([run, tree]))

    def remove(self) -> None:
        """Delete the file: the output is complete."""
        with explained(self.path):
            self.path.unlink(missing_ok=True)

    def _open(self) -> IO[str]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            return lock_file(self.path)
        except BlockingIOError:
            raise OutputError(
                "another run is writing this output",
                where=self.path,
                remedy="wait for it or stop it, or choose another output",
            ) from None

    def _read(self) -> None:
        self._file.seek(0)
        text = self._file.read()
        try:
            self.run, self.tree, self.done = _parse(text)
        except (ValueError, KeyError, TypeError) as error:
            raise OutputError(
                f"this is no journal of this version of fgnet ({error})",
                where=self.path,
                remedy="start anew with --overwrite, which replaces it",
            ) from error
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            os.ftruncate(self._file.fileno(), len(whole.encode()))


def _parse(text: str) -> tuple[dict[str, Any] | None, dict[str, Any] | None, set[Triple]]:
    """What a journal is of, the tree it may replace, and the chunks; what has no line break was cut short."""
    header, *lines = text[: text.rfind("\n") + 1].splitlines() or [""]
    if not header:
        return None, None, set()
    told = json.loads(header)
    if (told["format"], told["version"]) != (_FORMAT, _VERSION):
        raise ValueError("another format or version")
    return dict(told["run"]), told.get("tree"), {chunk for chunk in map(chunk_of, lines) if chunk is not None}
