from __future__ import annotations

import numba
import numpy as np
import pytest
from scipy import ndimage
from skimage.measure import label as connected_components

from fgnet.volumes.errors import FGNetError
from fgnet.volumes.microscope import Microscope, misalignment
from fgnet.volumes.neuropil import Neuropil, NeuropilOptions, make_neuropil, separate_pieces

ISOTROPIC = NeuropilOptions((24, 160, 160), (10.0, 10.0, 10.0), seed=5)
ANISOTROPIC = NeuropilOptions((10, 200, 200), (40.0, 6.0, 6.0), seed=5)


@pytest.fixture(scope="module", params=[ISOTROPIC, ANISOTROPIC], ids=["isotropic", "anisotropic"])
def neuropil(request: pytest.FixtureRequest) -> Neuropil:
    return make_neuropil(request.param)


def test_arrays_have_the_shape_dtype_and_space_asked_for() -> None:
    made = make_neuropil(NeuropilOptions((3, 33, 50), (30.0, 6.0, 6.0)))
    assert made.raw.shape == made.labels.shape == (3, 33, 50)
    assert (made.raw.dtype, made.labels.dtype) == (np.uint8, np.uint32)
    assert made.space.voxel_size == (30.0, 6.0, 6.0)


def test_every_id_is_one_six_connected_piece_and_no_voxel_is_left_out(neuropil: Neuropil) -> None:
    ids = np.unique(neuropil.labels)
    assert ids.tolist() == list(range(1, neuropil.objects + 1))
    assert connected_components(neuropil.labels, connectivity=1).max() == neuropil.objects


def test_membranes_are_at_least_40_gray_levels_darker_than_the_inside_of_neurites(neuropil: Neuropil) -> None:
    section = neuropil.labels.shape[0] // 2
    labels, raw = neuropil.labels[section], neuropil.raw[section].astype(float)
    edge = (ndimage.maximum_filter(labels, 3) != labels) | (ndimage.minimum_filter(labels, 3) != labels)
    inside = ndimage.distance_transform_edt(~edge) * neuropil.space.voxel_size[1] > 40
    assert np.median(raw[edge]) + 40 < np.median(raw[inside])
    assert 60 < np.median(raw[edge]) < 125
    assert 135 < np.median(raw[inside]) < 190


def test_calibres_range_from_thin_axons_to_large_dendrites(neuropil: Neuropil) -> None:
    section = neuropil.labels[neuropil.labels.shape[0] // 2]
    pixel = neuropil.space.voxel_size[1] * neuropil.space.voxel_size[2]
    _, areas = np.unique(section, return_counts=True)
    diameters = 2 * np.sqrt(areas * pixel / np.pi)
    assert len(areas) >= 12
    assert 60 < np.median(diameters) < 400
    assert diameters.max() > 450
    assert areas.max() < 0.6 * section.size


def test_the_same_seed_gives_the_same_bytes_with_any_number_of_threads() -> None:
    options = NeuropilOptions((6, 60, 70), (30.0, 6.0, 6.0), seed=11)
    first = make_neuropil(options)
    threads = numba.get_num_threads()
    try:
        numba.set_num_threads(1)
        second = make_neuropil(options)
    finally:
        numba.set_num_threads(threads)
    assert first.raw.tobytes() == second.raw.tobytes()
    assert first.labels.tobytes() == second.labels.tobytes()


def test_another_seed_gives_other_tissue() -> None:
    first, second = (make_neuropil(NeuropilOptions((4, 40, 40), seed=seed)) for seed in (1, 2))
    assert (first.labels != second.labels).any()
    assert (first.raw != second.raw).mean() > 0.5


def test_only_serial_sections_are_misaligned() -> None:
    rng = np.random.default_rng(0)
    assert not misalignment(Microscope((10.0, 10.0, 10.0)), 50, rng).any()
    drift = misalignment(Microscope((40.0, 4.0, 4.0)), 50, rng)
    assert 0 < np.abs(drift).max() <= 2.5 * 4.0


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 300, 7), (5, 1, 64)])
def test_odd_shapes_work(shape: tuple[int, int, int]) -> None:
    made = make_neuropil(NeuropilOptions(shape))
    assert made.raw.shape == shape
    assert made.labels.min() >= 1


def test_progress_is_reported_up_to_the_last_section() -> None:
    seen: list[int] = []
    make_neuropil(NeuropilOptions((40, 16, 16)), seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == 40


@pytest.mark.parametrize(
    "bad",
    [
        {"shape": (0, 64, 64)},
        {"shape": (8, -1, 64)},
        {"shape": (8, 64)},
        {"shape": (8.5, 64, 64)},
        {"voxel_size": (0.0, 10.0, 10.0)},
        {"voxel_size": (-4.0, 4.0, 4.0)},
        {"voxel_size": (float("nan"), 4.0, 4.0)},
        {"voxel_size": (10.0, 10.0, 1000.0)},
        {"seed": -1},
        {"noise": -1.0},
        {"noise": float("nan")},
    ],
)
def test_bad_options_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(FGNetError):
        NeuropilOptions(**bad)  # type: ignore[arg-type]


def test_separate_pieces_agrees_with_scikit_image() -> None:
    labels = np.random.default_rng(0).integers(1, 4, (5, 12, 13)).astype(np.uint32)
    expected = connected_components(labels, connectivity=1)
    count = separate_pieces(labels, dust=0)
    assert count == expected.max()
    pairs = np.unique(np.stack([labels.ravel(), expected.ravel()]), axis=1)
    assert pairs.shape[1] == count


def test_specks_join_a_piece_beside_them() -> None:
    labels = np.ones((3, 8, 8), dtype=np.uint32)
    labels[1, 4, 4] = 2
    labels[:, :, 6:] = 3
    assert separate_pieces(labels, dust=5) == 2
    assert labels[1, 4, 4] == labels[0, 0, 0] != labels[0, 0, 7]


@pytest.mark.parametrize(
    ("voxel_size", "shape"), [((10.0, 10.0, 10.0), (12, 60, 60)), ((40.0, 4.0, 4.0), (3, 100, 100))]
)
def test_sharing_lists_of_near_cones_in_blocks_agrees_with_a_full_search_for_every_voxel(
    monkeypatch: pytest.MonkeyPatch, voxel_size: tuple[float, float, float], shape: tuple[int, int, int]
) -> None:
    options = NeuropilOptions(shape, voxel_size, seed=1)
    fast = make_neuropil(options)
    monkeypatch.setattr("fgnet.volumes.neuropil.BLOCK_NM", 1.0)
    monkeypatch.setattr("fgnet.volumes.neuropil.REACH_NM", 900.0)
    plain = make_neuropil(options)
    assert np.array_equal(fast.labels, plain.labels)
    assert np.abs(fast.raw.astype(int) - plain.raw).max() <= 1
