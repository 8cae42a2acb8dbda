"""One run shared by several processes of one machine, each with some of its tiles: one for each GPU, or on one CPU.

The process that was started plans, creates the output and holds the journal's lock, which its helpers inherit. They get
their orders as one line of JSON on stdin and tell how they are doing by lines of JSON on stdout; the end of stdin tells
them to stop, so they do not outlive it.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from queue import Empty, Queue
from typing import IO, Any

from fgnet.engine.device import STAGES
from fgnet.engine.run_plan import RunPlan
from fgnet.engine.streaming import RunStoppedError, StreamState
from fgnet.volumes.errors import BackendError

_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Share:
    """What one process is started with.

    Attributes:
        environment: variables beside those of this process, such as CUDA_VISIBLE_DEVICES.
        order: what it is told, beside its tiles; plain data.
    """

    environment: dict[str, str]
    order: dict[str, Any]


def stream_shared(
    plan: RunPlan,
    shares: Sequence[Share],
    command: Sequence[str],
    *,
    lock: int,
    stop: Callable[[], bool],
    progress: Callable[[StreamState], None],
    say: Callable[[str], None],
) -> StreamState:
    """Let processes do the tiles of a plan.

    Args:
        plan: of the run.
        shares: one for each process.
        command: that starts one.
        lock: file descriptor that they inherit.
        stop: asked every now and then whether to stop.
        progress: told how all of them together are doing.
        say: told what one of them has to say.

    Raises:
        BackendError: a process failed, with its message, or was killed.
        RunStoppedError: `stop` said so.
    """
    tiles = [list(range(i, plan.tile_count, len(shares))) for i in range(len(shares))]
    told: Queue[tuple[int, dict[str, Any] | None]] = Queue()
    began = time.perf_counter()
    states: dict[int, StreamState] = {}
    with ExitStack() as cleanup:
        processes: list[subprocess.Popen[str]] = []
        cleanup.callback(_end, processes)
        for number, (share, mine) in enumerate(zip(shares, tiles, strict=True)):
            process = subprocess.Popen(
                list(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, **share.environment},
                pass_fds=[lock],
                start_new_session=True,  # Ctrl-C is for this process, which tells them
            )
            processes.append(process)
            assert process.stdin is not None  # noqa: S101 - a pipe
            assert process.stdout is not None  # noqa: S101 - another one
            # One that has died is noticed by the end of its lines.
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(json.dumps({**share.order, "tiles": mine}) + "\n")
                process.stdin.flush()
            threading.Thread(target=_listen, args=(number, process.stdout, told), daemon=True).start()
        running, stopping = set(range(len(processes))), False
        while running:
            if not stopping and stop():
                stopping = True
                for process in processes:
                    _tell_to_stop(process)
            try:
                number, line = told.get(timeout=_POLL_SECONDS)
            except Empty:
                continue
            if line is None:
                running.discard(number)
                _check(processes[number], stopping=stopping or stop())
                continue
            if "error" in line:
                raise BackendError(line["error"], where=f"process {number + 1} of {len(processes)}")
            if "note" in line:
                say(line["note"])
                continue
            states[number] = StreamState(**line)
            progress(_together(states.values(), len(processes), time.perf_counter() - began))
    if stopping:
        raise RunStoppedError("stopped on request; what is finished is kept", remedy="--resume continues it")
    return _together(states.values(), len(shares), time.perf_counter() - began)


def state_line(state: StreamState) -> str:
    """A state as the line that a process tells it by."""
    return json.dumps(asdict(state))


def _listen(number: int, lines: IO[str], told: Queue[tuple[int, dict[str, Any] | None]]) -> None:
    try:
        with lines:
            for line in lines:
                # A kill may cut the last one short.
                if line.endswith("\n"):
                    told.put((number, json.loads(line)))
    finally:
        told.put((number, None))


def _check(process: subprocess.Popen[str], *, stopping: bool) -> None:
    code = process.wait()
    if code != 0 and not stopping:
        ended = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        raise BackendError(
            f"a process that shares the run {ended}",
            where=f"process {process.pid}",
            remedy="finished chunks are kept, --resume goes on from them; it may have been out of memory",
        )


def _tell_to_stop(process: subprocess.Popen[str]) -> None:
    if process.stdin is not None and not process.stdin.closed:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()


def _end(processes: Sequence[subprocess.Popen[str]]) -> None:
    """Let all finish the block in hand, at the same time."""
    for process in processes:
        _tell_to_stop(process)
    for process in processes:
        process.wait()


def _together(states: Iterable[StreamState], processes: int, seconds: float) -> StreamState:
    """All processes as one: counts added up, and each stage's time the mean."""
    result = StreamState(seconds=seconds, busy=dict.fromkeys(STAGES, 0.0))
    for state in states:
        result.blocks += state.blocks
        result.done += state.done
        result.skipped += state.skipped
        result.chunk_voxels += state.chunk_voxels
        for stage, busy in state.busy.items():
            result.busy[stage] += busy / processes
        for queue, (total, times, longest) in state.queues.items():
            before = result.queues.get(queue, (0, 0, 0))
            result.queues[queue] = (before[0] + total, before[1] + times, max(before[2], longest))
    return result
