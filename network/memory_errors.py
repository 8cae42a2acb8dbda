"""What is said where memory is short: by PyTorch, by its allocators, or by nobody, of a process that was killed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from fgnet.volumes.errors import TrainingError

# Of a GPU, of its libraries, of a CPU, and of a loader that the system has ended.
_SIGNS = ("out of memory", "ALLOC_FAILED", "can't allocate memory", "DataLoader worker (pid")


@contextmanager
def memory_explained(when: str, remedy: str) -> Iterator[None]:
    """Tells where memory was short inside.

    Args:
        when: of a run, for the message.
        remedy: likewise.

    Raises:
        TrainingError: it was.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        text = str(error) or "the machine's memory is full"
        if isinstance(error, RuntimeError) and not any(sign in text for sign in _SIGNS):
            raise
        raise TrainingError(f"memory was short {when}: {text.splitlines()[0]}", remedy=remedy) from error
