"""Labels of a merge tree: another threshold or size, another process, kept as Zarr, against decoding anew."""

import shutil
import tempfile
import tracemalloc

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from fgnet.postproc.blockwise_decoder import (
    ArrayAffinities,
    ArraySink,
    BlockwiseOptions,
    decode_array,
    decode_blockwise,
    decode_in_turn,
    relabel,
)
from fgnet.postproc.blockwise_graph import forget_unsaved, load_graph, save_graph
from fgnet.postproc.blockwise_labels import Labelling
from fgnet.postproc.blockwise_numbers import count_segments
from fgnet.postproc.blockwise_tree import open_tree
from fgnet.postproc.merge_tree import components
from fgnet.postproc.sidecar import Sidecar
from fgnet.postproc.watershed import WatershedOptions
from fgnet.postproc.waterz_decoder import compact_ids, remove_small
from fgnet.volumes.errors import DecodingError


def relabelled(tree, thresholds, **options):
    results = [np.zeros(tree.plan.shape, np.uint64) for _ in thresholds]
    relabel(tree, [ArraySink(result) for result in results], thresholds, **options)
    return results


def decoded(folder, affinities, **options):
    """A decoding whose labels nobody wants."""
    source, options = ArrayAffinities(affinities), BlockwiseOptions((0.1,), tree_threshold=0.9, **options)
    decode_blockwise(source, [lambda box, labels: None], options, folder=folder, memory=0)
    return open_tree(folder)


def from_zarr_alone(path, threshold, min_size):
    """As the documentation of the kept tree says, with no more than zarr and numpy."""
    group = zarr.open_group(path, mode="r")
    merges, links = group["merges"], group["links"]
    merged = 255 * merges["counts"][:] - merges["sums"][:] < threshold * 255 * merges["counts"][:] - 1e-6
    pairs = [np.concatenate([merges[end][:][merged], links[end][:]]).astype(np.int64) for end in "ab"]
    _, segments = components(group["sizes"].shape[0], np.stack(pairs))
    fragments = group["fragments"][:]
    np.testing.assert_array_equal(np.bincount(fragments.ravel().astype(np.int64))[1:], group["sizes"][1:])
    assert (fragments.ravel()[group["first"][1:]] == np.arange(1, group["sizes"].shape[0])).all()
    return compact_ids(remove_small(np.where(fragments > 0, segments[fragments] + 1, 0).astype(np.uint64), min_size))


@settings(deadline=None, max_examples=60)
@given(
    st.tuples(*[st.integers(1, 12)] * 3),
    st.sampled_from([2, 3, 5, 256]),
    st.tuples(*[st.integers(3, 7)] * 3),
    st.sampled_from(["affinity", "sections"]),
    st.lists(st.sampled_from([0.0, 0.2, 0.4, 0.5, 0.75, 0.9]), min_size=1, max_size=3, unique=True),
    st.integers(0, 5),
    st.integers(0, 2**32 - 1),
)
def test_labels_of_a_tree_are_those_of_decoding_anew(
    tmp_path_factory, shape, levels, block, flow, thresholds, size, seed
):
    values = np.random.default_rng(seed).integers(0, levels, (3, *shape)) * (255 // (levels - 1))
    watershed = WatershedOptions(1, flow=flow, radius=2)
    affinities, folder = values.astype(np.uint8), tmp_path_factory.mktemp("tree")
    tree = decoded(folder / "sidecar", affinities, block=block, watershed=watershed)
    options = BlockwiseOptions(tuple(thresholds), shape, min_size=size, watershed=watershed)
    expected = decode_array(affinities, options)
    np.testing.assert_array_equal(relabelled(tree, thresholds, min_size=size), expected)
    for number, threshold in enumerate(thresholds):
        assert count_segments(tree, Labelling(threshold, size), tree.sidecar) == expected[number].max()
    save_graph(tree, folder / "kept.zarr")
    kept = load_graph(folder / "kept.zarr")
    np.testing.assert_array_equal(relabelled(kept, thresholds, min_size=size, workers=2), expected)
    np.testing.assert_array_equal(from_zarr_alone(folder / "kept.zarr", thresholds[0], size), expected[0])


@pytest.fixture
def affinities():
    return np.random.default_rng(0).integers(0, 256, (3, 12, 13, 14), dtype=np.uint8)


def test_a_kept_tree_serves_without_its_sidecar_in_other_processes(tmp_path, affinities):
    tree = decoded(tmp_path / "sidecar", affinities, block=(5, 5, 5))
    save_graph(tree, tmp_path / "kept.zarr")
    (tmp_path / "sidecar").rename(tmp_path / "gone")
    kept = load_graph(tmp_path / "kept.zarr")
    labels = zarr.create_array(tmp_path / "labels.zarr", shape=(12, 13, 14), chunks=(5, 5, 5), dtype="uint64")
    relabel(kept, [ArraySink(labels)], [0.6], min_size=3, workers=2, pool="processes", folder=tmp_path / "again")
    (expected,) = decode_array(affinities, BlockwiseOptions((0.6,), min_size=3))
    np.testing.assert_array_equal(labels[:], expected)
    attributes = zarr.open_group(tmp_path / "kept.zarr").attrs
    assert attributes["tree_threshold"] == 0.9
    assert attributes["plan"]["options"]["block"] == [5, 5, 5]
    assert len(attributes["identity"]) == 64


def test_thresholds_above_that_of_the_tree_are_refused(tmp_path, affinities):
    tree = decoded(tmp_path / "sidecar", affinities)
    save_graph(tree, tmp_path / "kept.zarr")
    for known in (tree, load_graph(tmp_path / "kept.zarr")):
        with pytest.raises(DecodingError, match=r"merge tree ends at 0\.9"):
            relabelled(known, [0.5, 0.91])
        with pytest.raises(DecodingError, match="from 0 to 1"):
            relabelled(known, [-0.1])
        with pytest.raises(DecodingError, match="min_size"):
            relabelled(known, [0.5], min_size=-1)


def test_folders_without_a_finished_tree_are_refused(tmp_path, affinities):
    with pytest.raises(DecodingError, match="no decoding has begun"):
        open_tree(tmp_path)
    tree = decoded(tmp_path / "sidecar", affinities, block=(5, 5, 5))
    for path in (tmp_path / "sidecar").glob("pieces-2/*"):
        path.unlink()
    with pytest.raises(DecodingError, match="not merged yet"):
        open_tree(tmp_path / "sidecar")
    (tmp_path / "kept.zarr").mkdir()
    with pytest.raises(DecodingError, match="exists already"):
        save_graph(tree, tmp_path / "kept.zarr")
    for path in (tmp_path / "kept.zarr", tmp_path / "nowhere.zarr"):
        with pytest.raises(DecodingError, match="no Zarr group"):
            load_graph(path)
    zarr.create_group(tmp_path / "other.zarr")
    with pytest.raises(DecodingError, match="no merge tree"):
        load_graph(tmp_path / "other.zarr")


def test_labels_of_one_tree_are_not_taken_for_those_of_another(tmp_path, affinities):
    save_graph(decoded(tmp_path / "a", affinities), tmp_path / "a.zarr")
    save_graph(decoded(tmp_path / "b", affinities // 2), tmp_path / "b.zarr")
    relabelled(load_graph(tmp_path / "a.zarr"), [0.5], folder=tmp_path / "labels")
    with pytest.raises(DecodingError, match="other affinities or options"):
        relabelled(load_graph(tmp_path / "b.zarr"), [0.5], folder=tmp_path / "labels")


def test_a_tree_that_cannot_be_kept_leaves_nothing(tmp_path, affinities, monkeypatch):
    tree = decoded(tmp_path / "sidecar", affinities, block=(5, 5, 5))
    before = sorted(tmp_path.iterdir())

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(zarr.Array, "append", full)
    with pytest.raises(DecodingError, match="No space left on device"):
        save_graph(tree, tmp_path / "kept.zarr")
    assert sorted(tmp_path.iterdir()) == before


def test_a_damaged_file_of_a_tree_is_named(tmp_path, affinities):
    tree = decoded(tmp_path / "sidecar", affinities, block=(5, 5, 5))
    path = Sidecar(tmp_path / "sidecar").path("pieces-0", (0, 1, 0))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DecodingError, match=r"pieces-0/0-1-0\.npz: it cannot be read"):
        relabelled(tree, [0.5])


def test_segmentations_in_turn_are_those_of_all_at_once_and_take_the_room_of_one(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    affinities = np.random.default_rng(0).integers(0, 256, (3, 8, 64, 64)).astype(np.uint8)
    options = BlockwiseOptions(tuple(np.linspace(0.1, 0.9, 30)), block=(8, 32, 32), min_size=2)
    expected = decode_array(affinities, options)
    tracemalloc.start()
    try:
        for labels, segmentation in zip(decode_in_turn(affinities, options), expected, strict=True):
            np.testing.assert_array_equal(labels, segmentation)
            assert not list(tmp_path.glob("*/labels-*"))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < len(expected) * labels.nbytes / 2
    assert not list(tmp_path.iterdir())


def test_what_a_kill_leaves_of_a_kept_tree_goes_with_the_next_try_and_with_no_one_elses(tmp_path, monkeypatch):
    affinities = np.random.default_rng(0).integers(0, 256, (3, 4, 8, 8)).astype(np.uint8)
    ours, theirs = (decoded(tmp_path / name, affinities, block=(4, 4, 4)) for name in ("ours", "theirs"))
    trees = tmp_path / "trees"

    def killed(*_, **__):
        raise KeyboardInterrupt

    for tree in (ours, theirs):
        with monkeypatch.context() as patch:
            patch.setattr("fgnet.postproc.blockwise_graph.put_in_place", killed)
            patch.setattr(shutil, "rmtree", lambda *_, **__: None)
            with pytest.raises(KeyboardInterrupt):
                save_graph(tree, trees / "kept.zarr")
    left = set(trees.iterdir())
    assert len(left) == 2
    # As another process.
    monkeypatch.setattr("os.getpid", lambda: 1)
    save_graph(ours, trees / "kept.zarr")
    assert len(left & set(trees.iterdir())) == 1
    forget_unsaved(theirs, trees / "kept.zarr")
    assert list(trees.iterdir()) == [trees / "kept.zarr"]
