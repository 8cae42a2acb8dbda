"""Who makes the affinities of fgnet-run: this process, or several that share the run's tiles."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from fgnet.cli.console import optional_packages
from fgnet.volumes.errors import BackendError

if TYPE_CHECKING:
    from fgnet.engine.backends import Choice
    from fgnet.engine.bundle import Bundle
    from fgnet.engine.pipeline import OneProcess, Streamer, StreamJob
    from fgnet.engine.runner import Runner
    from fgnet.engine.streaming import StreamState
    from fgnet.engine.torch_runner import EagerNetwork

Say = Callable[[str], None]


def build_network(bundle: Bundle) -> EagerNetwork:
    """The eager network of a bundle, for PyTorch's backends."""
    with optional_packages("train"):
        from fgnet.network.checkpoint import load_checkpoint

        return load_checkpoint(bundle.checkpoint).build()


def open_streamer(
    bundle: Bundle, choices: Iterable[Choice], *, threads: int | None, processes: int, say: Say
) -> tuple[Streamer, dict[str, Any], Callable[[], None]]:
    """A streamer, what it runs on as plain data, and what gives back what it holds.

    Args:
        bundle: the model.
        choices: backend, precision and device; the first that starts is taken.
        threads: of one call on the CPU, of each process; all cores, shared equally, by default.
        processes: how many share a run; on GPUs each has one of its own.
        say: told what is taken, and what the user may have to wait for.

    Raises:
        BackendError: no backend starts, or there are fewer GPUs.
    """
    from fgnet.engine.backends import open_first

    if processes > 1 and threads is None:
        threads = max(1, len(os.sched_getaffinity(0)) // processes)
    # With several processes it is opened here too, so that what is built for a GPU is built once, and found by them.
    choice, runner = open_first(choices, bundle, build_network, threads=threads, say=say)
    described = runner.describe()
    identity = _identity(bundle, described)
    if processes == 1:
        return _one_process(runner, identity), described, runner.close
    runner.close()
    environments = _gpus(processes) if choice.device == "cuda" else [{}] * processes
    return SharedProcesses(bundle, choice, identity, threads, environments, say), described, lambda: None


class SharedProcesses:
    """Streams by processes of their own, each of which opens the volume and the network.

    Args:
        bundle: the model.
        choice: backend, precision and device.
        identity: which network it is and what runs it.
        threads: of one call on the CPU.
        environments: of each process, beside this one's.
        say: told what they have to say.
    """

    def __init__(
        self,
        bundle: Bundle,
        choice: Choice,
        identity: dict[str, Any],
        threads: int | None,
        environments: list[dict[str, str]],
        say: Say,
    ) -> None:
        self.patch, self.identity = bundle.manifest.patch, identity
        self.shares = len(environments)
        self._bundle, self._choice, self._threads = bundle, choice, threads
        self._environments, self._say = environments, say

    def __call__(self, job: StreamJob) -> StreamState:
        """Compute all chunks that the journal has not."""
        from fgnet.engine.run_journal import finished_chunks
        from fgnet.engine.shared_streaming import Share, stream_shared

        order = {
            "plan": job.plan.to_dict(),
            "volume": str(job.volume.address),
            "mask": None if job.mask is None else str(job.mask.address),
            "rescale": job.options.rescale,
            "grid": None if job.grid is None else job.grid.to_dict(),
            "bundle": str(self._bundle.path.resolve()),
            "choice": asdict(self._choice),
            "threads": self._threads,
            "output": str(job.options.output),
            "segmentation": job.outputs.segmentation is not None,
        }
        state = stream_shared(
            job.plan,
            [Share(environment, order) for environment in self._environments],
            [sys.executable, "-m", "fgnet.cli.run_worker"],
            lock=job.journal.lock,
            stop=job.stop,
            progress=job.progress,
            say=self._say,
        )
        if missing := set(job.plan.chunks_of(job.plan.region)) - finished_chunks(job.options.output):
            raise BackendError(
                f"the processes have ended, and {len(missing)} chunks are not finished",
                where=job.options.output,
                remedy="those that are finished are kept, --resume goes on from them",
            )
        return state


def _one_process(runner: Runner, identity: dict[str, Any]) -> OneProcess:
    from fgnet.engine.pipeline import OneProcess

    return OneProcess(runner, identity)


def _identity(bundle: Bundle, described: dict[str, Any]) -> dict[str, Any]:
    """What the network's affinities depend on."""
    from fgnet.engine.bundle import MANIFEST, sha256

    return {
        "model": bundle.manifest.name,
        "bundle sha256": sha256(bundle.path / MANIFEST),
        **{key: described.get(key) for key in ("backend", "version", "device", "precision", "threads")},
    }


def _gpus(count: int) -> list[dict[str, str]]:
    """The environments of processes that each see one GPU."""
    from fgnet.engine.gpu_driver import gpu_count

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = [str(i) for i in range(gpu_count())] if visible is None else visible.split(",")
    if count > len(devices):
        raise BackendError(
            f"{count} processes need as many GPUs, there are {len(devices)}",
            where="--processes",
            remedy=f"give at most {len(devices)}",
        )
    return [{"CUDA_VISIBLE_DEVICES": device} for device in devices[:count]]
