"""SIGINT and SIGTERM as a request: the first one is to be heeded when it suits, the second one interrupts."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """What came in.

    Attributes:
        number: of the first signal; None before.
    """

    def __init__(self, told: Callable[[], None]) -> None:
        self.number: int | None = None
        self._told = told

    def __call__(self) -> bool:
        """Whether to stop."""
        return self.number is not None

    def handle(self, number: int, _: FrameType | None) -> None:
        """Remember the first signal."""
        if self.number is not None:
            raise KeyboardInterrupt
        self.number = number
        self._told()


@contextmanager
def stop_signals(told: Callable[[], None]) -> Iterator[StopSignals]:
    """Heed signals within the block; outside of the main thread, where none arrive, do nothing.

    Args:
        told: called when the first one comes in.
    """
    signals = StopSignals(told)
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return
    before = {number: signal.signal(number, signals.handle) for number in _SIGNALS}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
