"""Which chunks of a run are finished, for whoever follows it and waits for the next ones, in any process or host."""

from __future__ import annotations

import fcntl
import threading
import time
from pathlib import Path

from fgnet.engine.run_journal import chunk_of, journal_path
from fgnet.engine.run_plan import RunPlan
from fgnet.volumes.errors import DecodingError
from fgnet.volumes.geometry import Box, Triple

_POLL_SECONDS = 0.1

_ALIVE_SECONDS = 2.0
"""How often it is looked whether the run goes on at all; each time its lock is touched."""


class RunEndedError(DecodingError):
    """Affinities that are waited for are no longer made."""


class FinishedChunks:
    """The chunks that the journal of a run names, read on as it grows; for several threads.

    Args:
        output: of the run; its journal lies beside it.
        run: its plan.
    """

    def __init__(self, output: Path, run: RunPlan) -> None:
        self.output, self.run = output, run
        self._done: set[Triple] = set()
        self._read = 0
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[FinishedChunks], tuple[Path, RunPlan]]:
        return FinishedChunks, (self.output, self.run)

    def wait_for(self, box: Box) -> None:
        """Wait until all voxels of a box of the region, which begins at 0, are on the disk.

        Raises:
            RunEndedError: the run has ended without them.
        """
        needed = set(self.run.chunks_of(box.shift(self.run.region.start)))
        looked = time.monotonic()
        while not self._has(needed):
            if time.monotonic() - looked > _ALIVE_SECONDS:
                looked = time.monotonic()
                # It may have finished them, and ended, in between.
                if not self._goes_on() and not self._has(needed):
                    raise RunEndedError(
                        "the run that makes the affinities has ended",
                        where=journal_path(self.output),
                        remedy="--resume goes on with both",
                    )
            time.sleep(_POLL_SECONDS)

    def _has(self, needed: set[Triple]) -> bool:
        with self._lock:
            if needed <= self._done:
                return True
            try:
                with journal_path(self.output).open("rb") as file:
                    file.seek(self._read)
                    text = file.read()
            except OSError:
                return False
            whole = text[: text.rfind(b"\n") + 1]
            self._done.update(chunk for chunk in map(chunk_of, whole.splitlines()) if chunk is not None)
            self._read += len(whole)
            return needed <= self._done

    def _goes_on(self) -> bool:
        """Whether somebody holds the journal's lock."""
        try:
            with journal_path(self.output).open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except OSError:
            return True
        return False
