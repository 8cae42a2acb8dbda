"""One row of a benchmark in a process of its own, which does nothing while others are measured."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fgnet.benchmarks.rows import Row
from fgnet.engine.bundle import Bundle
from fgnet.volumes.errors import BackendError

_GRACE_SECONDS = 20.0


class RowProcess:
    """The process of a row: its memory, its allocator and its crash are its own.

    Args:
        row: what to run.
        folder: for its files, and for what a compiler leaves behind; of this row alone.
    """

    def __init__(self, row: Row, folder: Path) -> None:
        self.row, self.folder = row, folder
        self.affinities = folder / "affinities.npy"
        self._errors = folder / "stderr.txt"
        # What is told to the allocator from outside would be told to every row. And a compiler shall compile: its cache
        # from an earlier day would make the warm-up look short.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
        environment["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "compiled")
        with self._errors.open("w") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "fgnet.benchmarks.row_worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
                text=True,
                # An interrupt at the keyboard is for the benchmark, which closes its rows.
                start_new_session=True,
            )

    def open(self, bundle: Bundle, gray: Path, threads: int | None) -> dict[str, Any]:
        """Make the row ready and run its first blocks.

        Args:
            bundle: whose files were checked.
            gray: the column, a .npy.
            threads: of one call on the CPU; the backend's own choice by default.

        Returns:
            Version, device and threads; `open_seconds`, `warm_up_seconds`, `peak_memory_bytes`.

        Raises:
            BackendError: the row does not run here.
        """
        order = {
            "row": asdict(self.row),
            "bundle": str(bundle.path),
            "gray": str(gray),
            "affinities": str(self.affinities),
            "threads": threads,
        }
        return self._ask(order)

    def window(self, blocks: int) -> dict[str, Any]:
        """Run the next blocks: `seconds` of them all, `page_faults`, `peak_memory_bytes`.

        Raises:
            BackendError: the row failed.
        """
        return self._ask({"blocks": blocks})

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None and self._process.stdout is not None  # noqa: S101, PT018 - both are pipes
        try:
            self._process.stdin.close()
            self._process.wait(_GRACE_SECONDS)
        except (OSError, subprocess.TimeoutExpired):
            self._kill()
            self._process.wait()
        finally:
            self._process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None and not issubclass(kind, Exception):
            # An interrupt: whoever sent it does not want to wait for the block under way.
            self._kill()
        self.close()

    def _kill(self) -> None:
        """Kill the process and those that it started, such as a compiler's: they share its session."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)

    def _ask(self, order: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None  # noqa: S101, PT018 - both are pipes
        try:
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise BackendError(self._how_it_ended(), where=self.row.name)
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise BackendError(reply["error"], where=self.row.name)
        return reply

    def _how_it_ended(self) -> str:
        try:
            code = self._process.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            return "its process closed its output"
        return how_it_ended(code, self._errors.read_text(errors="replace"))


def how_it_ended(code: int, errors: str) -> str:
    """Why a process gave no result, in words.

    Args:
        code: its exit code; the negative of the signal that ended it.
        errors: what it wrote on stderr.
    """
    if code == -signal.SIGKILL:
        return "its process was killed; the machine's memory may be too small for it"
    ended = f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    # A command draws boxes around what it says of its options.
    last = [line.strip(" │") for line in errors.splitlines() if any(letter.isalnum() for letter in line)]
    return f"its process {ended}" + (f": {last[-1]}" if last else "")
