"""Seconds that each stage of a run has worked, counted from several threads."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from fgnet.engine.device import STAGES, Stage


class StageTimes:
    """A counter of seconds by stage."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seconds: dict[Stage, float] = dict.fromkeys(STAGES, 0.0)

    def add(self, stage: Stage, seconds: float) -> None:
        """Count time for a stage."""
        with self._lock:
            self._seconds[stage] += seconds

    def merged(self, others: Mapping[Stage, float]) -> dict[Stage, float]:
        """What was counted here and what a device has counted, added up."""
        with self._lock:
            return {stage: self._seconds[stage] + others.get(stage, 0.0) for stage in STAGES}
