"""Decoding that is stopped, killed, refused, or fails half-way."""

import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from fgnet.postproc.blockwise_decoder import (
    ArrayAffinities,
    ArraySink,
    BlockPlan,
    BlockwiseOptions,
    decode_array,
    decode_blockwise,
)
from fgnet.postproc.blockwise_merge import merge_level
from fgnet.postproc.blockwise_steps import cut_block, join_block
from fgnet.postproc.sidecar import Sidecar
from fgnet.postproc.watershed import WatershedOptions
from fgnet.volumes.errors import DecodingError
from fgnet.volumes.geometry import Box


def whole(affinities, **options):
    return decode_array(affinities, BlockwiseOptions(block=affinities.shape[1:], **options))


@dataclass
class Interrupted:
    """A source that fails from a certain read on."""

    array: np.ndarray
    reads: int
    boxes: list[Box] = field(default_factory=list)

    @property
    def shape(self):
        return self.array.shape[1:]

    def affinities(self, box):
        self.boxes.append(box)
        if len(self.boxes) > self.reads:
            raise OSError("the disk went away")
        return self.array[(slice(None), *box.slices)]


def test_what_was_stopped_goes_on_where_it_was(tmp_path):
    affinities = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 16), dtype=np.uint8)
    options = BlockwiseOptions(block=(8, 8, 8))
    labels = np.zeros((16, 16, 16), np.uint64)
    with pytest.raises(OSError, match="went away"):
        decode_blockwise(Interrupted(affinities, 3), [ArraySink(labels)], options, folder=tmp_path / "sidecar")
    again = Interrupted(affinities, 5)
    decode_blockwise(again, [ArraySink(labels)], options, folder=tmp_path / "sidecar")
    assert len(again.boxes) == 5, "three of eight blocks were done"
    np.testing.assert_array_equal(labels, whole(affinities)[0])

    def broken(box, labels):
        raise OSError("the output went away")

    with pytest.raises(OSError, match="output"):
        decode_blockwise(again, [broken], options, folder=tmp_path / "sidecar")
    assert len(again.boxes) == 5


KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from fgnet.postproc.blockwise_decoder import *
from fgnet.volumes.errors import DecodingError

class Deadly:
    shape = (16, 16, 16)

    def affinities(self, box):
        if box.stop[0] > 15 and os.environ.get("DEADLY"):
            os.kill(os.getpid(), signal.SIGKILL)
        whole = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 16), dtype=np.uint8)
        return np.ascontiguousarray(whole[(slice(None), *box.slices)])

if __name__ == "__main__":
    labels = np.lib.format.open_memmap(sys.argv[2], "w+", np.uint64, (16, 16, 16))
    options = BlockwiseOptions(block=(3, 8, 8), watershed=WatershedOptions(0))
    try:
        decode_blockwise(Deadly(), [ArraySink(labels)] if sys.argv[3] == "threads" else [print], options,
                         folder=Path(sys.argv[1]), pool=sys.argv[3], memory=0)
    except DecodingError as error:
        sys.exit(str(error))
"""


@pytest.mark.parametrize("pool", ["threads", "processes"])
def test_a_process_killed_half_way_loses_nothing(tmp_path, monkeypatch, pool):
    script = tmp_path / "killed.py"
    script.write_text(KILLED.replace("import *", "import *\nfrom fgnet.postproc.watershed import WatershedOptions", 1))
    command = [sys.executable, script, tmp_path / "sidecar", tmp_path / "labels.npy"]
    monkeypatch.setenv("DEADLY", "yes")
    done = subprocess.run([*command, pool], capture_output=True, text=True, check=False)
    assert done.returncode == (-9 if pool == "threads" else 1)
    assert ("a worker was killed" in done.stderr) == (pool == "processes")
    cut = {path: path.stat().st_mtime_ns for path in (tmp_path / "sidecar").rglob("*.npz")}
    assert cut
    monkeypatch.delenv("DEADLY")
    subprocess.run([*command, "threads"], check=True)
    assert all(path.stat().st_mtime_ns == time for path, time in cut.items()), "what was done was kept"
    affinities = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 16), dtype=np.uint8)
    expected = whole(affinities, watershed=WatershedOptions(0))[0]
    np.testing.assert_array_equal(np.load(tmp_path / "labels.npy"), expected)


def test_a_folder_of_another_decoding_is_refused(tmp_path):
    source = ArrayAffinities(np.ones((3, 4, 4, 4), np.uint8))
    sinks = [lambda box, labels: None]
    decode_blockwise(source, sinks, BlockwiseOptions(), folder=tmp_path / "a", identity="x")
    decode_blockwise(source, sinks, BlockwiseOptions(), folder=tmp_path / "a", identity="x")
    for options, identity in (
        (BlockwiseOptions(), "y"),
        (BlockwiseOptions((0.4,)), "x"),
        (BlockwiseOptions(tree_threshold=0.6), "x"),
        (BlockwiseOptions(block=(2, 4, 4)), "x"),
        (BlockwiseOptions(watershed=WatershedOptions(7)), "x"),
    ):
        with pytest.raises(DecodingError, match="other affinities or options"):
            decode_blockwise(source, sinks, options, folder=tmp_path / "a", identity=identity)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.tex").touch()
    with pytest.raises(DecodingError, match="holds files"):
        decode_blockwise(source, sinks, BlockwiseOptions(), folder=tmp_path / "b")


def test_a_folder_serves_other_thresholds_and_sizes_without_reading_affinities(tmp_path):
    affinities = np.random.default_rng(0).integers(0, 256, (3, 9, 10, 11), dtype=np.uint8)
    block, folder = (4, 5, 6), tmp_path / "sidecar"
    labels = np.zeros((9, 10, 11), np.uint64)
    first = BlockwiseOptions((0.5,), block, tree_threshold=0.8)
    decode_blockwise(ArrayAffinities(affinities), [ArraySink(labels)], first, folder=folder)
    for threshold, min_size in ((0.8, 0), (0.5, 3), (0.2, 0), (0.2, 4), (0.5, 0)):
        options = BlockwiseOptions((threshold,), block, None, min_size, tree_threshold=0.8)
        decode_blockwise(Interrupted(affinities, 0), [ArraySink(labels)], options, folder=folder)
        np.testing.assert_array_equal(labels, whole(affinities, thresholds=(threshold,), min_size=min_size)[0])


def test_files_that_are_missing_damaged_or_cannot_be_written_are_named(tmp_path):
    plan = BlockPlan((4, 4, 8), BlockwiseOptions(block=(4, 4, 4)))
    source, sidecar = ArrayAffinities(np.ones((3, 4, 4, 8), np.uint8)), Sidecar(tmp_path / "sidecar")
    sidecar.claim("this")
    cut_block(plan, (0, 0, 1), source, sidecar)
    with pytest.raises(DecodingError, match=r"borders/0-0-0\.npz: this step was not done"):
        join_block(plan, (0, 0, 1), sidecar)
    sidecar.path("borders", (0, 0, 0)).write_bytes(b"not a zip")
    with pytest.raises(DecodingError, match="cannot be read"):
        join_block(plan, (0, 0, 1), sidecar)
    with pytest.raises(DecodingError, match="was not done"):
        merge_level(plan, 1, None, sidecar, (0, 0, 0))
    Path(tmp_path / "file").touch()
    with pytest.raises(DecodingError, match="cannot be written"):
        cut_block(plan, (0, 0, 0), source, Sidecar(tmp_path / "file"))


@pytest.mark.parametrize("memory", [None, 0])
def test_every_damaged_file_is_named_and_made_again_once_it_is_removed(tmp_path, memory):
    affinities = np.random.default_rng(1).integers(0, 256, (3, 8, 8, 9), dtype=np.uint8)
    options, labels = BlockwiseOptions(block=(3, 3, 3), min_size=2), np.zeros((8, 8, 9), np.uint64)
    arguments = {"options": options, "folder": tmp_path / "s", "memory": memory}
    decode_blockwise(ArrayAffinities(affinities), [ArraySink(labels)], **arguments)
    expected = labels.copy()
    files = sorted((tmp_path / "s").rglob("*.npz"))
    for path in np.random.default_rng(0).choice(np.array(files, object), 25):
        whole_file = path.read_bytes()
        for content in (b"", whole_file[: len(whole_file) // 2], b"\0" * len(whole_file)):
            path.write_bytes(content)
            where = failing(lambda: decode_blockwise(ArrayAffinities(affinities), [ArraySink(labels)], **arguments))
            if where is None:
                path.write_bytes(whole_file)
                continue
            assert where == str(path)
            path.unlink()
            labels[:] = 0
            decode_blockwise(ArrayAffinities(affinities), [ArraySink(labels)], **arguments)
            assert path.read_bytes() == whole_file
            np.testing.assert_array_equal(labels, expected)


def failing(work):
    """Where an error was, if there was one."""
    try:
        work()
    except DecodingError as error:
        return error.where
    return None


def test_outputs_that_are_named_are_written_once_and_others_each_time(tmp_path):
    affinities = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 8), dtype=np.uint8)
    boxes = []

    def sink(box, labels):
        boxes.append(box)
        if len(boxes) == 5:
            raise OSError("the output went away")

    options = BlockwiseOptions(block=(4, 4, 4))
    arguments = {"options": options, "folder": tmp_path / "s"}
    with pytest.raises(OSError, match="output"):
        decode_blockwise(ArrayAffinities(affinities), [sink], outputs=["a.zarr"], **arguments)
    decode_blockwise(ArrayAffinities(affinities), [sink], outputs=["a.zarr"], **arguments)
    assert len(boxes) == 9, "four of eight blocks were written, one failed"
    decode_blockwise(ArrayAffinities(affinities), [sink], outputs=["a.zarr"], **arguments)
    assert len(boxes) == 9
    decode_blockwise(ArrayAffinities(affinities), [sink], outputs=["b.zarr"], **arguments)
    decode_blockwise(ArrayAffinities(affinities), [sink], **arguments)
    assert len(boxes) == 25


def test_nothing_but_finished_files_is_left_by_a_full_disk(tmp_path, monkeypatch):
    sidecar = Sidecar(tmp_path)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(DecodingError, match="No space left on device"):
        sidecar.save("step", (0, 0, 0), {})
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_process_killed_anywhere_goes_on_to_the_same_labels(tmp_path, monkeypatch):
    script = tmp_path / "killed.py"
    script.write_text(KILLED.replace("import *", "import *\nfrom fgnet.postproc.watershed import WatershedOptions", 1))
    command = [sys.executable, script, tmp_path / "sidecar", tmp_path / "labels.npy", "threads"]
    monkeypatch.delenv("DEADLY", raising=False)
    rng = np.random.default_rng(0)
    for steps in ("borders", "pieces-1", "labels-*/segments-0", "labels-*/ids-0"):
        process = subprocess.Popen(command)
        files = rng.integers(1, 9)
        while process.poll() is None and len(list((tmp_path / "sidecar").glob(f"{steps}/*.npz"))) < files:
            time.sleep(0.001)
        process.kill()
        process.wait()
    subprocess.run(command, check=True)
    affinities = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 16), dtype=np.uint8)
    expected = whole(affinities, watershed=WatershedOptions(0))[0]
    np.testing.assert_array_equal(np.load(tmp_path / "labels.npy"), expected)
