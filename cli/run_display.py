"""How fgnet-run tells what it is doing: a live line for people, or lines of JSON for servers; both on stderr."""

from __future__ import annotations

import json
import sys
import time
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from fgnet.cli.console import VoxelProgress, say, voxel_progress

if TYPE_CHECKING:
    from fgnet.engine.streaming import StreamState

_PHASES = {
    "pyramid": "coarser levels of the affinities",
    "agglomeration": "agglomerating",
    "writing": "writing the segmentation",
}
_SECONDS_BETWEEN_LINES = 2.0


class RunDisplay(Protocol):
    """What a run reports to."""

    def say(self, text: str) -> None:
        """A line for whoever reads along."""
        ...

    def event(self, name: str, **values: Any) -> None:
        """Something happened; for servers."""
        ...

    def phase(self, name: str, state: StreamState) -> None:
        """How the run is doing."""
        ...

    def decoding(self, stage: str, done: int, units: int) -> None:
        """How the blockwise decoder is doing."""
        ...

    def __enter__(self) -> RunDisplay: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


class LiveDisplay(AbstractContextManager["LiveDisplay"]):
    """A bar with voxels/s, the time left and how busy everything is; where stderr is no terminal, a line now and then.

    Args:
        voxels: of the region.
        title: of the bar.
    """

    def __init__(self, voxels: int, title: str) -> None:
        self._voxels = voxels
        self._bar: VoxelProgress = voxel_progress(title, voxels)
        self._phase, self._spoken = "affinities", 0.0

    def __enter__(self) -> LiveDisplay:
        self._bar.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.__exit__(kind, error, traceback)

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self._bar.say(text)

    def event(self, name: str, **values: Any) -> None:
        """People are told by other means."""

    def phase(self, name: str, state: StreamState) -> None:
        """Move the bar, or name the phase that begins."""
        from fgnet.engine.run_record import utilisation

        if name == "affinities":
            shares = utilisation(state)
            note = "  ".join(f"{resource.removeprefix('the ')} {share:.0%}" for resource, share in shares.items())
            self._bar.update(self._voxels * state.done // max(state.blocks, 1), note)
        elif name != self._phase:
            self._bar.say(_PHASES[name])
        self._phase = name

    def decoding(self, stage: str, done: int, units: int) -> None:
        """Tell it beside the bar, which is full by now, every two seconds."""
        now = time.monotonic()
        if now - self._spoken >= _SECONDS_BETWEEN_LINES:
            self._spoken = now
            self._bar.update(self._voxels, f"{stage} {done}/{units}")


class JsonDisplay(AbstractContextManager["JsonDisplay"]):
    """One JSON object a line: time (UTC), event, and what belongs to it."""

    def __init__(self, voxels: int) -> None:
        self._voxels, self._spoken, self._phase = voxels, 0.0, ""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        import typer

        if error is not None and not isinstance(error, typer.Exit):
            self.event("error", error=type(error).__name__, message=str(error))

    def say(self, text: str) -> None:
        """As an event."""
        self.event("message", text=text)

    def event(self, name: str, **values: Any) -> None:
        """Print a line."""
        line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": name, **values}
        print(json.dumps(line, allow_nan=False), file=sys.stderr, flush=True)

    def phase(self, name: str, state: StreamState) -> None:
        """Print a line at each new phase, and every two seconds while affinities are made."""
        from fgnet.engine.run_record import utilisation

        now = time.monotonic()
        last = name == "affinities" and state.done == state.blocks
        if name == self._phase and not last and now - self._spoken < _SECONDS_BETWEEN_LINES:
            return
        self._phase, self._spoken = name, now
        self.event(
            "progress",
            phase=name,
            blocks=state.blocks,
            done=state.done,
            voxels_per_second=round(self._voxels * state.done / max(state.blocks, 1) / max(state.seconds, 1e-9)),
            busy={resource: round(share, 3) for resource, share in utilisation(state).items()},
        )

    def decoding(self, stage: str, done: int, units: int) -> None:
        """Print a line when a stage begins or ends, and every two seconds between."""
        now = time.monotonic()
        if 0 < done < units and now - self._spoken < _SECONDS_BETWEEN_LINES:
            return
        self._spoken = now
        self.event("progress", phase="agglomeration", stage=stage, done=done, units=units)


def open_display(voxels: int, *, as_json: bool, title: str = "affinities") -> RunDisplay:
    """A display for a `with` statement.

    Args:
        voxels: of the region.
        as_json: whether a program reads along.
        title: of a bar for people.
    """
    return JsonDisplay(voxels) if as_json else LiveDisplay(voxels, title)


def say_before(text: str, *, as_json: bool) -> None:
    """Tell something before the run starts."""
    if as_json:
        JsonDisplay(0).say(text)
    else:
        say(text)
