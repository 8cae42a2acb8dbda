import numpy as np
import pytest
from scipy import ndimage
from skimage.measure import label

from fgnet.postproc.fragments import section_fragments
from fgnet.volumes.errors import DecodingError


def smooth_affinities(shape=(3, 6, 40, 44), seed=0):
    noise = np.random.default_rng(seed).random(shape, dtype=np.float32)
    smooth = ndimage.gaussian_filter(noise, (0, 0, 2, 2))
    return (smooth - smooth.min()) / np.ptp(smooth)


def with_boundary(boundary):
    """Affinities of one section whose boundary map is this."""
    return np.stack([np.zeros_like(boundary), 1 - boundary, 1 - boundary])[:, None].astype(np.float32)


def test_every_voxel_is_filled_and_ids_are_unique_over_sections():
    fragments = section_fragments(smooth_affinities())
    ids = [set(np.unique(section)) for section in fragments]
    assert fragments.dtype == np.uint64
    assert set.union(*ids) == set(range(1, sum(map(len, ids)) + 1))


def test_fragments_are_connected_within_their_section():
    for section in section_fragments(smooth_affinities()):
        for fragment in np.unique(section):
            assert label(section == fragment, connectivity=1).max() == 1


@pytest.mark.parametrize("threads", [2, 3, 9])
def test_any_number_of_threads_gives_the_same_fragments(threads):
    affinities = smooth_affinities()
    for mask in (None, 0.4):
        alone, together = (section_fragments(affinities, mask_threshold=mask, threads=n) for n in (1, threads))
        assert np.array_equal(alone, together)


def test_two_rooms_with_a_wall_are_two_fragments():
    boundary = np.zeros((7, 15))
    boundary[:, 7] = 1.0
    fragments = section_fragments(with_boundary(boundary))[0]
    assert len(np.unique(fragments[:, :7])) == 1
    assert len(np.unique(fragments[:, 8:])) == 1
    assert fragments[0, 0] != fragments[0, -1]
    assert fragments[0, 7] in (fragments[0, 0], fragments[0, -1])


def test_a_plateau_of_the_distance_is_one_seed():
    boundary = np.zeros((5, 21))
    boundary[[0, -1]] = 1.0
    assert section_fragments(with_boundary(boundary)).max() == 1


@pytest.mark.parametrize("value", [100, 255])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_a_section_of_one_value_is_one_fragment(value, dtype):
    affinities = np.full((3, 2, 5, 6), value if dtype == np.uint8 else value / 255, dtype)
    fragments = section_fragments(affinities)
    np.testing.assert_array_equal(fragments, np.broadcast_to([[[1]], [[2]]], fragments.shape))


def test_8_bit_values_at_half_are_decided_exactly():
    affinities = np.zeros((3, 1, 3, 9), np.uint8)
    affinities[1, :, :, [0, 1, 2, 6, 7, 8]] = 127
    affinities[2, :, :, :3] = 129
    affinities[2, :, :, 6:] = 128  # adds up to 255, a boundary of exactly one half
    assert section_fragments(affinities).max() == 1, "only the left room lies below one half"
    affinities[2, :, :, 6:] = 129
    assert section_fragments(affinities).max() == 2


def test_the_z_channel_is_not_read():
    affinities = smooth_affinities()
    expected = section_fragments(affinities)
    affinities[0] = 0
    np.testing.assert_array_equal(section_fragments(affinities), expected)


@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32, np.float64])
def test_masking_empties_exactly_the_voxels_below_the_threshold(dtype):
    affinities = smooth_affinities()
    affinities = (affinities * 255).astype(np.uint8) if dtype == np.uint8 else affinities.astype(dtype)
    masked = section_fragments(affinities, mask_threshold=0.35)
    scale = 255 if dtype == np.uint8 else 1
    mean = (affinities[1].astype(np.float32) + affinities[2].astype(np.float32)) / scale / 2
    np.testing.assert_array_equal(masked == 0, mean < 0.35)
    np.testing.assert_array_equal(masked[masked > 0], section_fragments(affinities)[masked > 0])


@pytest.mark.parametrize(
    ("affinities", "message"),
    [
        (np.zeros((2, 4, 4, 4), np.float32), r"shape \(2, 4, 4, 4\)"),
        (np.zeros((3, 4, 4), np.float32), r"shape \(3, 4, 4\)"),
        (np.zeros((3, 0, 4, 4), np.float32), r"shape \(3, 0, 4, 4\)"),
        (np.zeros((3, 4, 4, 4), np.int32), "dtype int32"),
        (np.full((3, 4, 4, 4), np.nan, np.float16), "NaN"),
        (np.full((3, 4, 4, 4), -4.0), "range from -4 to -4"),
        (np.full((3, 4, 4, 4), 255.0, np.float32), "range from 255 to 255"),
    ],
)
def test_what_is_no_affinities_is_refused(affinities, message):
    with pytest.raises(DecodingError, match=message):
        section_fragments(affinities)


def test_an_impossible_mask_threshold_is_refused():
    with pytest.raises(DecodingError, match="mask threshold is 40"):
        section_fragments(smooth_affinities(), mask_threshold=40)
