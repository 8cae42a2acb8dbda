"""How long does a GPU work for each stage? Nothing waits for the answer."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from fgnet.engine.cuda_memory import Cuda
from fgnet.engine.device import STAGES, Stage

_PENDING = 1024


class StageClock:
    """How long the GPU works for each stage, by events before and after what is queued for it.

    Times are read once both events have happened, whenever the next ones are asked for. Nothing waits for them: work
    beyond `pending` pieces of a stream that the GPU has not done yet is not timed.

    Args:
        cuda: has to be current for every call.
        pending: most pieces of work of a stream that are being timed.
    """

    def __init__(self, cuda: Cuda, pending: int = _PENDING) -> None:
        self._cuda, self._most = cuda, pending
        self._lock = threading.Lock()
        self._seconds: dict[Stage, float] = dict.fromkeys(STAGES, 0.0)
        self._idle: list[tuple[int, int]] = []
        # By stream, for within one they happen in this order.
        self._pending: dict[int, deque[tuple[Stage, int, int]]] = {}

    @contextmanager
    def timed(self, stage: Stage, stream: int) -> Iterator[None]:
        """Count what is queued on a stream in this block for a stage, unless an error leaves the block."""
        events = self._take(stream)
        if events is None:
            yield
            return
        try:
            self._cuda.record_event(events[0], stream)
            yield
            self._cuda.record_event(events[1], stream)
        except BaseException:
            with self._lock:
                self._idle.append(events)
            raise
        with self._lock:
            self._pending[stream].append((stage, *events))

    def read(self) -> dict[Stage, float]:
        """Seconds of all work that is done."""
        with self._lock:
            for stream in self._pending:
                self._harvest(stream)
        return self.seconds()

    def seconds(self) -> dict[Stage, float]:
        """Seconds of the work that was read as done before; asks nothing of the GPU."""
        with self._lock:
            return dict(self._seconds)

    def _take(self, stream: int) -> tuple[int, int] | None:
        with self._lock:
            pending = self._pending.setdefault(stream, deque())
            self._harvest(stream)
            if self._idle:
                return self._idle.pop()
            if len(pending) >= self._most:
                return None
            return self._cuda.event(timing=True), self._cuda.event(timing=True)

    def _harvest(self, stream: int) -> None:
        pending = self._pending[stream]
        while pending:
            stage, *events = pending[0]
            milliseconds = self._cuda.elapsed(*events)
            if milliseconds is None:
                return
            self._seconds[stage] += milliseconds / 1000
            self._idle.append((events[0], events[1]))
            pending.popleft()
