"""Worker processes decode what threads decode, wherever they run and whatever is killed."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import zarr

from fgnet.engine import decoding_crew
from fgnet.engine.blockwise_run import decode_by_threads, segment_counts
from fgnet.engine.decoding_crew import Crew
from fgnet.engine.decoding_job import DecodingJob, StoredLabels
from fgnet.engine.decoding_process import DecodingProcess
from fgnet.engine.run_journal import RunJournal
from fgnet.engine.run_plan import make_plan
from fgnet.postproc.blockwise_decoder import BlockwiseOptions, decode_array
from fgnet.postproc.blockwise_stages import Stage
from fgnet.postproc.sidecar import PLAN
from fgnet.volumes import multiscale_writer
from fgnet.volumes.errors import DecodingError
from fgnet.volumes.geometry import Box
from fgnet.volumes.space import Space
from fgnet.volumes.writing import create_labels

pytest.importorskip("daisy", reason="worker processes need the extra fgnet[cluster]")

SHAPE = (16, 64, 64)
OPTIONS = BlockwiseOptions((0.6, 0.5), block=(16, 16, 16))


@pytest.fixture(scope="module")
def affinities(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of few levels, so that there are many ties."""
    values = np.random.default_rng(0).integers(0, 5, (3, *SHAPE)).astype(np.uint8) * 63
    path = tmp_path_factory.mktemp("affinities") / "a.zarr"
    zarr.create_array(str(path), shape=values.shape, chunks=(3, 16, 16, 16), dtype="u1")[:] = values
    return path


@pytest.fixture(scope="module")
def expected(affinities: Path) -> list[npt.NDArray[np.uint64]]:
    values = np.asarray(zarr.open_array(str(affinities), mode="r")[:])
    return decode_array(values, BlockwiseOptions(OPTIONS.thresholds, block=SHAPE))


@pytest.fixture
def job(affinities: Path, tmp_path: Path) -> DecodingJob:
    groups = (None, "thresholds/0.5")
    for group in groups:
        create_labels(tmp_path / "out.zarr", group=group, shape=SHAPE, chunks=(16, 16, 16), space=Space((1, 1, 1)))
    outputs = tuple(StoredLabels(tmp_path / "out.zarr", group, SHAPE) for group in groups)
    names = tuple(output.name() for output in outputs)
    return DecodingJob(tmp_path / "sidecar", outputs, names, OPTIONS, affinities, identity="these")


def decode(job: DecodingJob, crew: Crew) -> list[tuple[str, int, int]]:
    told: list[tuple[str, int, int]] = []
    with DecodingProcess(job, crew) as process:
        process.wait(lambda *state: told.append(state), lambda: False)
    return told


def require_written(job: DecodingJob, expected: list[npt.NDArray[np.uint64]]) -> None:
    for output, labels in zip(job.outputs, expected, strict=True):
        found = zarr.open_array(str(output.path / (output.group or "") / "0"), mode="r")[:]
        np.testing.assert_array_equal(found, labels)
    assert segment_counts(job) == [labels.max() for labels in expected]


def test_processes_write_what_threads_write(job: DecodingJob, expected: list[npt.NDArray[np.uint64]]) -> None:
    told = decode(job, Crew(2))
    require_written(job, expected)
    assert ("cut", 16, 16) in told
    assert ("write", 16, 16) in told
    # Nothing is left to do for anybody else.
    again: list[tuple[str, int, int]] = []
    decode_by_threads(job, 1, lambda *state: again.append(state))
    assert [stage for stage, _, _ in again if stage == "write"] == ["write", "write"]


def test_a_job_is_the_same_after_a_way_through_text(job: DecodingJob, expected: list[npt.NDArray[np.uint64]]) -> None:
    copy = DecodingJob.from_json(job.to_json())
    assert copy == job
    assert [stage.name for stage in copy.stages()] == [stage.name for stage in job.stages()]
    decode_by_threads(copy, 2, lambda *_: None)
    require_written(job, expected)


def _family(process: int) -> set[int]:
    """A process's descendants."""
    above: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                above[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    found: set[int] = set()
    while more := {child for child, parent in above.items() if parent in {process, *found}} - found:
        found |= more
    return found


def _once(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


def test_a_killed_worker_is_replaced(job: DecodingJob, expected: list[npt.NDArray[np.uint64]]) -> None:
    with DecodingProcess(job, Crew(2)) as process:
        _once(lambda: any((job.folder / "fragments").glob("*.npz")))
        victims = _family(process.number)
        assert victims
        os.kill(min(victims), signal.SIGKILL)
        process.wait(lambda *_: None, lambda: False)
    require_written(job, expected)


def test_after_the_scheduler_was_killed_the_rest_is_done(
    job: DecodingJob, expected: list[npt.NDArray[np.uint64]]
) -> None:
    with DecodingProcess(job, Crew(2)) as process:
        _once(lambda: any((job.folder / "fragments").glob("*.npz")))
        workers = _family(process.number)
        os.kill(process.number, signal.SIGKILL)
        with pytest.raises(DecodingError, match="killed by signal 9"):
            process.wait(lambda *_: None, lambda: False)
        # Workers that have nobody to ask end by themselves.
        _once(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers))
    decode_by_threads(job, 2, lambda *_: None)
    require_written(job, expected)


def test_leaving_early_ends_the_scheduler_and_its_workers(
    job: DecodingJob, expected: list[npt.NDArray[np.uint64]]
) -> None:
    with DecodingProcess(job, Crew(2)) as process:
        _once(lambda: any((job.folder / "fragments").glob("*.npz")))
        family = {process.number, *_family(process.number)}
    _once(lambda: not any(Path(f"/proc/{member}").exists() for member in family))
    decode_by_threads(job, 2, lambda *_: None)
    require_written(job, expected)


def test_what_a_unit_fails_of_is_said(job: DecodingJob, affinities: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.zarr"
    shutil.copytree(affinities, damaged)
    for chunk in damaged.rglob("c/*/*/*/*"):
        chunk.write_bytes(b"not compressed")
    broken = DecodingJob.from_json(job.to_json().replace(str(affinities.resolve()), str(damaged)))
    with pytest.raises(DecodingError, match=r"cut: workers started failed: .*; see .*logs|cut: .*logs"):
        decode(broken, Crew(1))


def test_a_unit_that_fails_is_told_while_others_wait_for_affinities(job: DecodingJob, tmp_path: Path) -> None:
    run = make_plan(SHAPE, (16, 32, 32), chunk=(16, 32, 32))
    unfinished = replace(job, output=tmp_path / "out.zarr", run=run)
    with RunJournal(tmp_path / "out.zarr") as journal:
        journal.begin({})
        with DecodingProcess(unfinished, Crew(2)) as process:
            _once(lambda: job.folder.is_dir() and (job.folder / PLAN).exists())
            assert process.failure() is None
            # Where the first block's fragments would go.
            (job.folder / "fragments").touch()
            journal.finished((0, 0, 0))
            _once(lambda: process.failure() is not None)
            assert "cannot be written" in str(process.failure())
            with pytest.raises(DecodingError, match=r"cut: workers started failed: .*fragments.*cannot be written"):
                process.wait(lambda *_: None, lambda: False)


def test_crews_that_make_no_sense_are_refused() -> None:
    with pytest.raises(DecodingError, match="at least 1"):
        Crew(0)
    with pytest.raises(DecodingError, match="one of local, slurm, lsf"):
        Crew(1, "pbs")  # type: ignore[arg-type]
    with pytest.raises(DecodingError, match="no cluster"):
        Crew(1, options=("--partition=cpu",))


@pytest.mark.parametrize(("cluster", "command"), [("slurm", "srun"), ("lsf", "bsub")])
def test_a_cluster_whose_command_is_not_there_is_refused_before_anything_runs(
    cluster: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DecodingError, match=f"cluster {cluster}.*{command}, which starts the workers, is not on"):
        Crew(1, cluster)  # type: ignore[arg-type]
    _command(tmp_path, command, "")
    assert Crew(1, cluster).cluster == cluster  # type: ignore[arg-type]


def _command(folder: Path, name: str, text: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/bash\n{text}\n")
    (folder / name).chmod(0o755)


@pytest.mark.parametrize(
    ("cluster", "command", "own"),
    [("slurm", "srun", "--ntasks=1 --cpus-per-task=1"), ("lsf", "bsub", "-I -n 1 -J fgnet-decode")],
)
def test_a_cluster_is_asked_for_workers_with_the_options_given(
    job: DecodingJob,
    expected: list[npt.NDArray[np.uint64]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cluster: str,
    command: str,
    own: str,
) -> None:
    # No cluster is at hand: the command notes what it is asked for, and starts it here.
    run = f'echo "$@" >> {tmp_path}/calls; until [[ $1 == {sys.executable} ]]; do shift; done; exec "$@"'
    _command(tmp_path / "bin", command, run)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    decode(job, Crew(1, cluster, ("-q", "short queue"), host="127.0.0.1"))  # type: ignore[arg-type]
    require_written(job, expected)
    calls = (tmp_path / "calls").read_text().splitlines()
    assert len(calls) >= 2, "a worker for each of two stages"
    assert all(call.startswith(own) and "-q short queue" in call for call in calls)


def test_a_cluster_that_starts_nothing_is_named(
    job: DecodingJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _command(tmp_path / "bin", "srun", "echo 'invalid partition' >&2; exit 1")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    with pytest.raises(DecodingError, match=r"srun --ntasks=1.*--resume"):
        decode(job, Crew(1, "slurm", host="127.0.0.1"))


HERE, THERE = "10.211.73.1", "10.211.73.2"


@pytest.fixture
def other_host() -> Iterator[str]:
    """A network namespace with a wire to this one: another host as far as connections can tell."""
    name = f"fgnet{os.getpid() % 10000}"
    steps = [
        f"netns add {name}",
        f"link add {name}a type veth peer name {name}b netns {name}",
        f"addr add {HERE}/30 dev {name}a",
        f"link set {name}a up",
        f"-n {name} addr add {THERE}/30 dev {name}b",
        f"-n {name} link set {name}b up",
    ]
    ip = shutil.which("ip")
    if ip is None:
        pytest.skip("the command ip is needed to make network namespaces")
    try:
        for step in steps:
            done = subprocess.run([ip, *step.split()], capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.skip(f"network namespaces cannot be made here: {done.stderr.strip()}")
        yield name
    finally:
        subprocess.run([ip, "netns", "del", name], capture_output=True, check=False)


def test_two_hosts_decode_one_volume_together(
    job: DecodingJob,
    expected: list[npt.NDArray[np.uint64]],
    other_host: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Every other worker is started on the other host, where this one's loopback is not to be reached.
    run = (
        f"until [[ $1 == {sys.executable} ]]; do shift; done\n"
        f"exec 9> {tmp_path}/turn; flock 9\n"
        f"if [[ $(wc -l < {tmp_path}/hosts) == *[13579] ]]\n"
        f'then echo here >> {tmp_path}/hosts; exec 9>&-; exec "$@"; fi\n'
        f"echo there >> {tmp_path}/hosts; exec 9>&-\n"
        f'exec ip netns exec {other_host} unshare --uts bash -c \'hostname there; exec "$@"\' - "$@"'
    )
    (tmp_path / "hosts").touch()
    _command(tmp_path / "bin", "srun", run)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    decode(job, Crew(2, "slurm", host=HERE))
    require_written(job, expected)
    hosts = (tmp_path / "hosts").read_text().split()
    assert set(hosts) == {"here", "there"}


def test_a_write_that_failed_once_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = (4, 8, 8)
    create_labels(tmp_path / "out.zarr", shape=shape, space=Space((1, 1, 1)))
    sink, box = StoredLabels(tmp_path / "out.zarr", None, shape), Box.from_shape(shape)
    synced = multiscale_writer.sync_file
    fails = iter([True, False])

    def sync(path: Path) -> None:
        if next(fails, False):
            raise OSError(errno.EIO, "this once")
        synced(path)

    monkeypatch.setattr(multiscale_writer, "sync_file", sync)
    monkeypatch.setattr(decoding_crew, "_PAUSE_SECONDS", 0)
    decoding_crew._work(Stage("labels", (1, 1, 1), lambda _: sink(box, np.ones(shape, np.uint64))), (0, 0, 0), tmp_path)
    assert (zarr.open_array(str(tmp_path / "out.zarr/0"), mode="r")[:] == 1).all()
