"""Worker processes for a decoding, scheduled by daisy 2: on this machine, or by Slurm or LSF wherever they put them.

Each stage is a daisy task whose blocks are the numbers of the stage's units, handed out in their order. Workers get
the job from a file in the sidecar and units over TCP; what they do is on disk, whole, before a unit counts as done, so
daisy's own markers are not used. A worker that dies is replaced, and its unit done again once another worker is free:
while affinities are made, all may wait. So a worker tries a unit that fails again itself, and leaves word if it gives
up.
"""

from __future__ import annotations

import math
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, TypeAlias

from fgnet.engine.atomic_file import write_atomically
from fgnet.engine.chunk_waiting import RunEndedError
from fgnet.engine.decoding_job import DecodingJob
from fgnet.postproc.blockwise_decoder import run_stages
from fgnet.postproc.blockwise_stages import Stage
from fgnet.postproc.sidecar import SidecarGoneError
from fgnet.volumes.errors import DecodingError, FGNetError
from fgnet.volumes.geometry import Triple
from fgnet.volumes.kept_memory import keep_memory
from fgnet.volumes.output_store import explained

Cluster: TypeAlias = Literal["local", "slurm", "lsf"]

_LAUNCHERS: dict[str, list[str]] = {
    "local": [],
    # Both wait for what they start, hand it their environment, and end it when they are ended.
    "slurm": ["srun", "--ntasks=1", "--cpus-per-task=1", "--job-name=fgnet-decode"],
    "lsf": ["bsub", "-I", "-n", "1", "-J", "fgnet-decode"],
}

_JOB, _ERROR = "job.json", "error.txt"

# daisy ends a worker that takes longer for a unit, and waiting for affinities counts.
_TIMEOUT_SECONDS = 7 * 24 * 3600

_TRIES, _PAUSE_SECONDS = 3, 0.5


@dataclass(frozen=True)
class Crew:
    """Who works on a decoding.

    Attributes:
        workers: how many processes, each with one thread.
        cluster: who starts them.
        options: for the cluster's own command, such as --partition=cpu.
        host: by which name or address workers reach this machine; found out by default.

    Raises:
        DecodingError: no worker, an unknown cluster, one whose command is not on this machine, or no daisy.
    """

    workers: int
    cluster: Cluster = "local"
    options: tuple[str, ...] = ()
    host: str | None = None

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise DecodingError(f"it is {self.workers}", where="workers", remedy="give at least 1")
        if self.cluster not in _LAUNCHERS:
            raise DecodingError(f"it is {self.cluster!r}", where="cluster", remedy=f"one of {', '.join(_LAUNCHERS)}")
        if find_spec("daisy") is None:
            raise DecodingError("daisy is not installed", where="workers", remedy="pip install 'fgnet[cluster]'")
        if self.options and self.cluster == "local":
            raise DecodingError("there is no cluster to hand them to", where="cluster options", remedy="leave them out")
        # Workers start with the first affinities: too late to find out.
        launcher = _LAUNCHERS[self.cluster]
        if launcher and shutil.which(launcher[0]) is None:
            raise DecodingError(
                f"{launcher[0]}, which starts the workers, is not on this machine's PATH",
                where=f"cluster {self.cluster}",
                remedy="start the run where jobs are submitted from, or take --cluster local",
            )


def run_job(job: DecodingJob, crew: Crew, tell: Callable[[str, int, int], None]) -> None:
    """Do all stages of a decoding.

    Args:
        job: what is done.
        crew: who does it.
        tell: told the name of a stage, how many of its units are done, and of how many.

    Raises:
        DecodingError: a unit failed several times, or its workers could not be started.
    """
    work = job.stages()
    job.sidecar.claim(job.describe())
    path = job.folder / _JOB
    with explained(path):
        write_atomically(path, job.to_json().encode())
    for stage in work:
        units = math.prod(stage.grid)
        tell(stage.name, 0, units)
        # What is little to do is done sooner than a process has started.
        if units > 1 and stage.name.split("-")[0] in ("cut", "merge", "write"):
            _by_daisy(stage, units, path, crew, partial(tell, stage.name))
        else:
            run_stages([stage], crew.workers)
        tell(stage.name, units, units)


def serve(path: Path, name: str) -> None:
    """Do units of a stage until there are none: what a worker process does.

    Args:
        path: of the file that says what the job is.
        name: of the stage.
    """
    keep_memory()
    import daisy

    job = DecodingJob.from_json(path.read_text())
    stage = next(stage for stage in job.stages() if stage.name == name)
    units = list(stage)
    client = daisy.Client()
    while True:
        with client.acquire_block() as block:
            if block is None:
                return
            _work(stage, units[block.write_roi.offset[0]], path.with_name(_ERROR))


def _work(stage: Stage, unit: Triple, told: Path) -> None:
    for tried in range(1, _TRIES + 1):
        try:
            stage.work(unit)
        except (MemoryError, RunEndedError, SidecarGoneError):
            # For a process of its own to try, or for nobody.
            raise
        except Exception as error:
            if tried == _TRIES:
                # What daisy keeps of it is a traceback.
                reason = str(error) if isinstance(error, FGNetError) else f"{type(error).__name__}: {error}"
                write_atomically(told, f"{stage.name}\n{reason}".encode())
                raise
            time.sleep(_PAUSE_SECONDS)
        else:
            return


def forget_failure(folder: Path) -> None:
    """Remove the word that an earlier crew may have left in the folder of a job.

    Raises:
        OutputError: it cannot be removed.
    """
    with explained(folder):
        (folder / _ERROR).unlink(missing_ok=True)


def failure_of(folder: Path, crew: Crew) -> DecodingError | None:
    """What a worker has given up, as it has left word in the folder of its job; None where none has."""
    try:
        stage, _, reason = (folder / _ERROR).read_text().partition("\n")
    except OSError:
        return None
    return _failure(stage, folder, reason, _launcher(crew))


def _launcher(crew: Crew) -> list[str]:
    return [*_LAUNCHERS[crew.cluster], *crew.options]


def _launch(command: Sequence[str]) -> None:
    subprocess.run(list(command), check=True)


def _by_daisy(stage: Stage, units: int, job: Path, crew: Crew, tell: Callable[[int, int], None]) -> None:
    import daisy

    launcher = _launcher(crew)
    if crew.cluster == "local":
        worker: Callable[[], None] = partial(serve, job, stage.name)
    else:
        worker = partial(_launch, [*launcher, sys.executable, "-m", "fgnet.engine.decode_worker", str(job), stage.name])
    daisy.logging.set_log_basedir(job.with_name("logs"))
    # Workers are one thread each, whatever they inherit.
    os.environ["NUMBA_NUM_THREADS"] = "1"
    one = daisy.Roi((0,), (1,))
    task = daisy.Task(
        task_id=stage.name,
        total_roi=daisy.Roi((0,), (units,)),
        read_roi=one,
        write_roi=one,
        process_function=worker,
        read_write_conflict=False,
        max_workers=min(crew.workers, units),
        max_retries=_TRIES - 1,
        max_worker_restarts=_TRIES * crew.workers,
        timeout=_TIMEOUT_SECONDS,
    )
    host = crew.host or ("127.0.0.1" if crew.cluster == "local" else None)
    try:
        states = daisy.run_blockwise(
            task, progress=_Observer(tell), summary=False, return_states=True, host=host, block_tracking=False
        )
    except RuntimeError as error:
        raise failure_of(job.parent, crew) or _failure(stage.name, job.parent, str(error), launcher) from error
    state = states[stage.name]
    if state.completed_count != state.total_block_count:
        reason = state.last_worker_error or state.abandon_reason or "units failed"
        raise failure_of(job.parent, crew) or _failure(stage.name, job.parent, reason, launcher)


def _failure(stage: str, folder: Path, reason: str, launcher: Sequence[str]) -> DecodingError:
    by = f" by {shlex.join(launcher)}" if launcher else ""
    return DecodingError(
        f"workers started{by} failed: {reason.strip().splitlines()[-1]}",
        where=stage,
        remedy=f"see {folder / 'logs'}, and go on with --resume: what is finished is kept",
    )


class _Observer:
    """Hands on how many units are done."""

    def __init__(self, tell: Callable[[int, int], None]) -> None:
        self._tell = tell

    def _told(self, states: dict[str, Any]) -> None:
        for state in states.values():
            self._tell(int(state.completed_count), int(state.total_block_count))

    on_start = on_progress = on_finish = _told
