from pathlib import Path

import numpy as np
import pytest
import zarr

from fgnet.postproc import comparison
from fgnet.postproc.comparison import Comparison
from fgnet.postproc.metrics import score
from fgnet.postproc.object_report import largest_merges, largest_splits
from fgnet.postproc.protocols import PROTOCOLS, border_mask
from fgnet.volumes.errors import VolumeError
from fgnet.volumes.geometry import Box
from fgnet.volumes.reading import open_volume

NM = (30.0, 6.0, 6.0)


def store(path: Path, values, chunks=(4, 16, 16), resolution=NM):
    array = zarr.create_array(str(path), shape=values.shape, chunks=chunks, dtype=values.dtype)
    array[:] = values
    if resolution:
        array.attrs["resolution"] = list(resolution)
    return path


@pytest.fixture(scope="module")
def ids():
    rng = np.random.default_rng(2)
    truth = rng.integers(0, 7, (5, 3, 3)).repeat(3, 0).repeat(10, 1).repeat(10, 2).astype(np.uint32)
    segments = rng.integers(1, 6, truth.shape).astype(np.uint64)
    return np.where(rng.random(truth.shape) < 0.8, truth, segments).astype(np.uint64), truth


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("slab", [1, 2500, 10**9], ids=["strips of sections", "some chunks", "all"])
def test_what_is_read_in_parts_scores_and_lies_as_the_whole(ids, tmp_path, monkeypatch, protocol, slab):
    segments, truth = ids
    monkeypatch.setattr(comparison, "_SLAB", slab)
    monkeypatch.setattr(comparison, "_LARGEST_SLAB", max(slab, 500))
    region, shift = Box((1, 2, 0), (14, 30, 28)), (-1, 0, 0)
    found, labels = store(tmp_path / "s.zarr", segments[1:]), store(tmp_path / "t.zarr", truth)
    with open_volume(found) as one, open_volume(labels) as other:
        compared = Comparison(one, other, region, region.shift(shift), PROTOCOLS[protocol], 40, 13.0)
        a, b = segments[region.slices], truth[region.slices]
        # Boundaries beside the region count as those inside it do.
        mask = border_mask(truth, 13.0, NM)[region.slices]
        assert compared.scores == score(a, b, protocol=protocol, min_size=40, border_mask=mask)
        splits, merges = largest_splits(compared.overlaps, 3), largest_merges(compared.overlaps, 3)
        for error, place in zip(splits, compared.split_places(splits), strict=True):
            assert (truth[place.voxel], segments[place.voxel]) == (error.whole, error.parts[1])
        for error, place in zip(merges, compared.merge_places(merges), strict=True):
            assert (segments[place.voxel], truth[place.voxel]) == (error.whole, error.parts[1])


def test_a_border_needs_a_voxel_size(ids, tmp_path):
    path = store(tmp_path / "t.zarr", ids[1], resolution=None)
    with open_volume(path) as truth, pytest.raises(VolumeError, match="--border 0"):
        Comparison(truth, truth, truth.box, truth.box, PROTOCOLS["cremi"], border=25.0)


def test_a_boundary_just_outside_of_a_crop_masks_what_lies_near_it(tmp_path):
    truth = np.ones((4, 40, 40), np.uint32)
    truth[:, :, 10:] = 2
    region = Box((0, 0, 10), (4, 40, 40))
    with open_volume(store(tmp_path / "t.zarr", truth)) as opened:
        compared = Comparison(opened, opened, region, region, PROTOCOLS["cremi"], border=25.0)
        # Voxels 10 to 14 lie within 25 nm of the first one.
        assert compared.scores.voxels == 4 * 40 * 25
