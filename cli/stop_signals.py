"""SIGINT and SIGTERM as a request: the first one is heeded when it suits, the second one interrupts."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """A signal that interrupts at once.

    Attributes:
        number: of the signal, which the exit code is to tell: a preemption (SIGTERM) is no Ctrl-C.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"by {signal.Signals(number).name}")
        self.number = number


class StopSignals:
    """What came in.

    Attributes:
        number: of the first signal that is to be heeded; None before.
        asked: whether somebody asks for it now and then; a signal interrupts at once where nobody does.
    """

    def __init__(self, told: Callable[[], None]) -> None:
        self.number: int | None = None
        self.asked = True
        self._told, self._said = told, False

    def __call__(self) -> bool:
        """Whether to stop."""
        if self.number is not None and not self._said:
            # Not by the handler, which may have come in the middle of another message.
            self._said = True
            self._told()
        return self.number is not None

    def handle(self, number: int, _: FrameType | None) -> None:
        """Remember the first signal.

        Raises:
            Interrupted: nobody asks for it, or it is not the first.
        """
        if self.number is not None or not self.asked:
            raise Interrupted(number)
        self.number = number


@contextmanager
def stop_signals(told: Callable[[], None]) -> Iterator[StopSignals]:
    """Heed signals within the block; outside of the main thread, where none arrive, do nothing.

    Args:
        told: called when the first one is heeded.
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
