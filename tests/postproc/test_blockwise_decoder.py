"""Blocks against the whole volume, and decoding that is stopped, refused, or fails half-way."""

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from fgnet.postproc.agglomeration import agglomerate
from fgnet.postproc.blockwise_decoder import (
    ArrayAffinities,
    ArraySink,
    BlockPlan,
    BlockwiseOptions,
    decode_array,
    decode_blockwise,
)
from fgnet.postproc.blockwise_merge import merge_blocks
from fgnet.postproc.blockwise_steps import block_labels, cut_block, join_block
from fgnet.postproc.metrics import score
from fgnet.postproc.region_graph import region_graph
from fgnet.postproc.sidecar import Sidecar
from fgnet.postproc.targets import affinities_from_labels, widen_borders
from fgnet.postproc.watershed import WatershedOptions, watershed
from fgnet.postproc.waterz_decoder import WaterzOptions, compact_ids, decode_waterz, remove_small
from fgnet.volumes.errors import DecodingError, GeometryError
from fgnet.volumes.geometry import Box

THRESHOLDS = (0.3, 0.6)


def whole(affinities, **options):
    return decode_array(affinities, BlockwiseOptions(block=affinities.shape[1:], **options))


def predicted_affinities(labels, noise=0.06, seed=0):
    """uint8 affinities like those of a network: blurred, with noise fine and coarse, a third of them saturated."""
    rng = np.random.default_rng(seed)
    truth = affinities_from_labels(widen_borders(labels)).astype(np.float32)
    predicted = np.stack([gaussian_filter(channel, 1) for channel in truth])
    for sigma, strength in ((1, noise), (4, 2 * noise)):
        texture = np.stack([gaussian_filter(rng.standard_normal(labels.shape), sigma) for _ in range(3)])
        predicted += strength * texture / texture.std()
    return np.clip(np.rint(255 * predicted), 0, 255).astype(np.uint8)


def real_labels(shared_data, region):
    with h5py.File(shared_data("fib25_t2.h5")) as file:
        return file["labels"][region]


@st.composite
def volumes(draw):
    """uint8 affinities, most with few levels: ties and plateaus everywhere, and background."""
    shape = draw(st.tuples(*[st.integers(1, 13)] * 3))
    levels = draw(st.sampled_from([2, 3, 5, 256]))
    values = np.random.default_rng(draw(st.integers(0, 2**32 - 1))).integers(0, levels, (3, *shape))
    return (values * (255 // (levels - 1))).astype(np.uint8)


@st.composite
def divisions(draw, shape):
    """A block shape that makes a few dozen blocks at most, and more of a halo than it takes."""
    parts = st.sampled_from([(1, 1), (1, 1), (2, 3), (3, 5)])
    block = tuple(draw(parts.flatmap(lambda p, n=n: st.integers(-(-n // p[1]), -(-n // p[0])))) for n in shape)
    return block, draw(st.integers(0, 3)), draw(st.integers(1, 3))


def decode_in_order(affinities, options, seed, sidecar):
    """The steps by hand: blocks cut in a random order, each a second time, and joined in another one."""
    source = ArrayAffinities(affinities)
    plan = BlockPlan(source.shape, options)
    blocks = [list(plan)[i] for i in np.random.default_rng(seed).permutation(len(list(plan)))]
    for block in blocks:
        cut_block(plan, block, source, sidecar)
        cut_block(plan, block, source, sidecar)
    for block in reversed(blocks):
        join_block(plan, block, sidecar)
    results = []
    for number in range(len(options.thresholds)):
        merge_blocks(plan, number, sidecar)
        results.append(np.empty(source.shape, np.uint64))
        for block in blocks:
            results[-1][plan.box(block).slices] = block_labels(block, number, sidecar)
    return results


@settings(deadline=None, max_examples=130)
@given(volumes(), st.integers(0, 3), st.integers(0, 6), st.sampled_from([(0, 255), (60, 200), None]), st.data())
def test_every_division_into_blocks_gives_the_ids_of_the_whole(
    tmp_path_factory, affinities, steps, min_size, limits, data
):
    """Four divisions of each of 130 volumes: 520 configurations. Without limits, fragments of sections."""
    thresholds = data.draw(st.sampled_from([(0.3,), (0.5,), (0.8,), (0.9, 0.4)]))
    radius = data.draw(st.integers(1, 5))
    watershed = WatershedOptions(steps, *limits) if limits else WatershedOptions(steps, flow="sections", radius=radius)
    common = {"thresholds": thresholds, "min_size": min_size, "watershed": watershed}
    expected = whole(affinities, **common)
    shape = affinities.shape[1:]
    for number in range(4):
        block, extra, workers = data.draw(divisions(shape))
        halo = tuple(np.add(watershed.halo, (extra, 0, extra)).tolist())
        options = BlockwiseOptions(block=block, halo=halo, **common)
        if number:
            results = decode_array(affinities, options, workers=workers)
        else:
            sidecar = Sidecar(tmp_path_factory.mktemp("sidecar"), durable=False)
            results = decode_in_order(affinities, options, data.draw(st.integers(0, 99)), sidecar)
        np.testing.assert_array_equal(results, expected)


@settings(deadline=None, max_examples=60)
@given(volumes(), st.integers(0, 5), st.sampled_from([0.0, 0.4, 1.0]))
def test_ids_are_compact_in_the_order_of_first_voxels_without_dust(affinities, min_size, threshold):
    (everything,) = whole(affinities, thresholds=(threshold,))
    (result,) = whole(affinities, thresholds=(threshold,), min_size=min_size)
    assert result.dtype == np.uint64
    np.testing.assert_array_equal(result, compact_ids(remove_small(everything, min_size)))
    fragments, _ = watershed(affinities)
    np.testing.assert_array_equal(everything == 0, fragments == 0)
    if threshold == 0.0:
        np.testing.assert_array_equal(everything, fragments)


@pytest.mark.parametrize("flow", ["affinity", "sections"])
@pytest.mark.parametrize("block", [(12, 20, 20), (48, 3, 64), (13, 37, 29)])
def test_blocks_of_real_neurons_give_the_ids_of_the_whole(shared_data, block, flow):
    affinities = predicted_affinities(real_labels(shared_data, np.s_[100:148, 60:140, 60:140]))
    options = {"thresholds": (0.3, 0.5, 0.7), "min_size": 20, "watershed": WatershedOptions(flow=flow)}
    results = decode_array(affinities, BlockwiseOptions(block=block, **options), workers=2)
    np.testing.assert_array_equal(results, whole(affinities, **options))


def test_noisy_real_neurons_are_decoded_as_well_as_by_waterz(shared_data):
    # On average: which of two equal affinities is followed decides single large merges, for better or worse.
    thresholds = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75)
    options = WaterzOptions(fragments="affinity", scoring="mean", discretize_queue=0)
    ours, theirs = [], []
    for first in range(0, 250, 50):
        labels = real_labels(shared_data, np.s_[first : first + 50, :128, :128])
        affinities = predicted_affinities(labels)
        theirs.append(min(score(result, labels).voi for result in decode_waterz(affinities, thresholds, options)))
        ours.append(min(score(result, labels).voi for result in decode_array(affinities, BlockwiseOptions(thresholds))))
    assert np.mean(ours) < np.mean(theirs) + 0.02


def test_plateaus_without_a_limit_give_the_segments_of_waterz_but_for_ties(shared_data):
    labels = real_labels(shared_data, np.s_[100:140, :128, :128])
    affinities = predicted_affinities(labels)
    fragments, count = watershed(affinities, WatershedOptions(None))
    graph = region_graph(affinities, fragments, count)
    options = WaterzOptions(fragments="affinity", scoring="mean", discretize_queue=0)
    # Thresholds of use; below, where most contacts are still small, many means are equal.
    thresholds = (0.5, 0.65)
    for threshold, theirs in zip(thresholds, decode_waterz(affinities, thresholds, options), strict=True):
        ours = agglomerate(graph, threshold).roots[fragments]
        assert abs(score(ours, labels).voi - score(theirs, labels).voi) < 0.02
        assert score(ours, theirs).voi < 0.1


@pytest.mark.parametrize(("value", "segments"), [(0, 0), (1, 1), (255, 1)])
@pytest.mark.parametrize("threshold", [0.0, 0.5])
def test_constant_affinities_are_background_or_one_segment(value, segments, threshold):
    affinities = np.full((3, 20, 90, 100), value, np.uint8)
    (result,) = decode_array(affinities, BlockwiseOptions((threshold,), block=(8, 40, 40)), workers=2)
    assert (result == segments).all()


@pytest.mark.parametrize(("value", "segments"), [(0, 0), (1, 20), (255, 20)])
def test_sections_of_constant_affinities_are_background_or_a_segment_each(value, segments):
    affinities = np.full((3, 20, 90, 100), value, np.uint8)
    options = BlockwiseOptions((0.0,), block=(8, 40, 40), watershed=WatershedOptions(flow="sections"))
    (result,) = decode_array(affinities, options, workers=2)
    np.testing.assert_array_equal(result[:, 0, 0], np.arange(1, 21) if segments else np.zeros(20))
    assert (result == result[:, :1, :1]).all()


def test_processes_give_what_threads_give(tmp_path):
    affinities = np.random.default_rng(0).integers(0, 256, (3, 20, 24, 24), dtype=np.uint8)
    stored = zarr.create_array(
        tmp_path / "affinities.zarr", shape=affinities.shape, dtype="uint8", chunks=(3, 8, 12, 12)
    )
    stored[:] = affinities
    common = {"shape": (20, 24, 24), "chunks": (10, 12, 12), "dtype": "uint64"}
    labels = [zarr.create_array(tmp_path / f"{number}.zarr", **common) for number in range(2)]
    options = BlockwiseOptions(THRESHOLDS, block=(10, 12, 12))
    sinks = [ArraySink(array) for array in labels]
    decode_blockwise(ArrayAffinities(stored), sinks, options, workers=2, pool="processes")
    np.testing.assert_array_equal([array[:] for array in labels], whole(affinities, thresholds=THRESHOLDS))


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
    options = BlockwiseOptions(block=(3, 16, 16), watershed=WatershedOptions(0))
    try:
        decode_blockwise(Deadly(), [ArraySink(labels)] if sys.argv[3] == "threads" else [print], options,
                         folder=Path(sys.argv[1]), pool=sys.argv[3])
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
        (BlockwiseOptions(min_size=2), "x"),
    ):
        with pytest.raises(DecodingError, match="other affinities or options"):
            decode_blockwise(source, sinks, options, folder=tmp_path / "a", identity=identity)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.tex").touch()
    with pytest.raises(DecodingError, match="holds files"):
        decode_blockwise(source, sinks, BlockwiseOptions(), folder=tmp_path / "b")


def test_files_that_are_missing_damaged_or_cannot_be_written_are_named(tmp_path):
    plan = BlockPlan((4, 4, 8), BlockwiseOptions(block=(4, 4, 4)))
    source, sidecar = ArrayAffinities(np.ones((3, 4, 4, 8), np.uint8)), Sidecar(tmp_path / "sidecar")
    cut_block(plan, (0, 0, 1), source, sidecar)
    with pytest.raises(DecodingError, match=r"borders/0-0-0\.npz: this step was not done"):
        join_block(plan, (0, 0, 1), sidecar)
    sidecar.path("borders", (0, 0, 0)).write_bytes(b"not a zip")
    with pytest.raises(DecodingError, match="cannot be read"):
        join_block(plan, (0, 0, 1), sidecar)
    with pytest.raises(DecodingError, match="was not done"):
        merge_blocks(plan, 0, sidecar)
    Path(tmp_path / "file").touch()
    with pytest.raises(DecodingError, match="cannot be written"):
        cut_block(plan, (0, 0, 0), source, Sidecar(tmp_path / "file"))


def test_nothing_but_finished_files_is_left_by_a_full_disk(tmp_path, monkeypatch):
    sidecar = Sidecar(tmp_path)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(DecodingError, match="No space left on device"):
        sidecar.save("step", (0, 0, 0), {})
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("affinities", "message"),
    [
        (np.zeros((3, 2, 2, 2), np.float32), "dtype float32"),
        (np.full((3, 2, 2, 2), np.nan), "dtype float64"),
        (np.zeros((3, 2, 2, 2), np.uint16), "dtype uint16"),
        (np.zeros((2, 2, 2, 2), np.uint8), "shape"),
        (np.zeros((12, 2, 2, 2), np.uint8), "shape"),
        (np.zeros((3, 0, 2, 2), np.uint8), "shape"),
        (np.zeros((2, 2, 2), np.uint8), "shape"),
    ],
)
def test_other_affinities_are_refused(affinities, message):
    with pytest.raises(DecodingError, match=message):
        decode_array(affinities, BlockwiseOptions())


@pytest.mark.parametrize("given", [np.zeros((3, 3, 4, 4), np.uint8), np.full((3, 4, 4, 4), np.nan, np.float32)])
def test_a_source_that_gives_something_else_is_refused_naming_the_box(given):
    class Wrong:
        shape = (4, 4, 4)

        def affinities(self, box):
            return given

    with pytest.raises(DecodingError, match="box 0:4,0:4,0:4"):
        decode_blockwise(Wrong(), [print], BlockwiseOptions())


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"thresholds": ()}, DecodingError),
        ({"thresholds": (1.2,)}, DecodingError),
        ({"thresholds": (float("nan"),)}, DecodingError),
        ({"thresholds": (0.5, 0.5)}, DecodingError),
        ({"min_size": -1}, DecodingError),
        ({"watershed": WatershedOptions(None)}, DecodingError),
        ({"block": (0, 4, 4)}, GeometryError),
        ({"block": (4, 4)}, GeometryError),
        ({"halo": (12, 12, 11)}, GeometryError),
    ],
)
def test_options_that_make_no_sense_are_refused(options, error):
    with pytest.raises(error):
        BlockwiseOptions(**options)


@pytest.mark.parametrize("arguments", [{"workers": 0}, {"sinks": []}])
def test_wrong_workers_and_sinks_are_refused(arguments):
    arguments = {"sinks": [print], "workers": 1, **arguments}
    with pytest.raises(DecodingError, match=r"workers|sinks"):
        decode_blockwise(ArrayAffinities(np.ones((3, 2, 2, 2), np.uint8)), options=BlockwiseOptions(), **arguments)


def test_blocks_tile_the_volume_and_know_their_neighbours():
    plan = BlockPlan((5, 9, 4), BlockwiseOptions(block=(2, 4, 8)))
    assert plan.counts == (3, 3, 1)
    covered = np.zeros(plan.shape, int)
    for block in plan:
        covered[plan.box(block).slices] += 1
        for axis in range(3):
            after = plan.after(block, axis)
            assert after is None or plan.before(after, axis) == block
    assert (covered == 1).all()
    assert plan.region((1, 1, 0)) == Box((0, 0, 0), (5, 9, 4))
    with pytest.raises(GeometryError, match="cannot be decoded"):
        BlockPlan((2**21, 2**21, 2**21), BlockwiseOptions())
