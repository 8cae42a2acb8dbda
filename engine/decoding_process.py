"""A decoding by worker processes beside this one: started early, it follows the affinities as they are made."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any, Self

from fgnet.engine.decoding_crew import Crew, failure_of, forget_failure
from fgnet.engine.decoding_job import DecodingJob
from fgnet.engine.streaming import RunStoppedError
from fgnet.volumes.errors import DecodingError

_POLL_SECONDS = 0.2
_LAST_SECONDS = 10.0


class DecodingProcess:
    """The scheduler of a decoding, in a process that ends with this one; as a context manager it ends it.

    Args:
        job: what is decoded.
        crew: who works on it.
    """

    def __init__(self, job: DecodingJob, crew: Crew) -> None:
        self._told: SimpleQueue[dict[str, Any] | None] = SimpleQueue()
        self._folder, self._crew = job.folder, crew
        self._error: str | None = None
        self._ended = threading.Event()
        order = json.dumps({"job": job.to_json(), "crew": asdict(crew)})
        forget_failure(job.folder)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "fgnet.engine.decode_scheduler"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # a group of its own, and Ctrl-C is for this process
        )
        assert self._process.stdin is not None  # noqa: S101 - a pipe
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(order + "\n")
            self._process.stdin.flush()
        threading.Thread(target=self._listen, daemon=True).start()

    @property
    def number(self) -> int:
        """Of the scheduler's process."""
        return self._process.pid

    def failure(self) -> DecodingError | None:
        """What it, or a worker, has failed of so far; None while it goes on, and once it is done."""
        code = self._process.poll()
        if code == 0:
            return None
        if self._error is not None:
            return DecodingError(self._error)
        if given_up := failure_of(self._folder, self._crew):
            return given_up
        # An error is told before the end.
        if code is None or (code > 0 and not self._ended.is_set()):
            return None
        ended = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        return DecodingError(
            f"the process that schedules the decoding {ended}",
            remedy="what is finished is kept, --resume goes on from there",
        )

    def wait(self, progress: Callable[[str, int, int], None], stop: Callable[[], bool]) -> None:
        """Wait until all is decoded.

        Args:
            progress: told the stage, how many of its units are done, and of how many.
            stop: asked every now and then whether to stop.

        Raises:
            DecodingError: it failed, or was killed.
            RunStoppedError: `stop` said so.
        """
        while True:
            if stop():
                self.close()
                raise RunStoppedError("stopped on request; what is finished is kept", remedy="--resume continues it")
            try:
                line = self._told.get(timeout=_POLL_SECONDS)
            except Empty:
                if failure := self.failure():
                    raise failure from None
                continue
            if line is None:
                break
            progress(line["stage"], line["done"], line["units"])
        if self._error is None:
            self._process.wait()
        if failure := self.failure():
            raise failure

    def close(self) -> None:
        """End the scheduler and its workers; what they have finished is kept."""
        assert self._process.stdin is not None  # noqa: S101 - a pipe
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(_LAST_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _listen(self) -> None:
        assert self._process.stdout is not None  # noqa: S101 - another pipe
        try:
            with self._process.stdout as lines:
                for line in lines:
                    # A kill may cut the last one short.
                    told: dict[str, Any] = json.loads(line) if line.endswith("\n") else {}
                    if "error" in told:
                        self._error = self._error or told["error"]
                        self._told.put(None)
                    elif told:
                        self._told.put(told)
        finally:
            self._ended.set()
            self._told.put(None)
