from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fgnet.network.augment import PRESETS
from fgnet.network.data import CropSampler, LabelledVolume
from fgnet.network.orientation import orient
from fgnet.volumes.space import Space


@given(seed=st.integers(0, 1000), square=st.booleans())
@settings(max_examples=60, deadline=None)
def test_raw_and_labels_turn_together_and_z_stays_z(seed: int, square: bool) -> None:
    shape = (2, 4, 4) if square else (2, 4, 5)
    raw = np.arange(np.prod(shape)).reshape(shape)
    turned, labels = orient((raw, raw + 1000), np.random.default_rng(seed))
    np.testing.assert_array_equal(labels, turned + 1000)
    assert turned.shape == shape
    # A section's voxels stay together, in a section.
    assert {tuple(sorted(section.ravel())) for section in turned} == {tuple(sorted(s.ravel())) for s in raw}


def test_all_sixteen_orientations_are_drawn() -> None:
    raw = np.arange(2 * 3 * 3).reshape(2, 3, 3)
    seen = {orient([raw], np.random.default_rng(seed))[0].tobytes() for seed in range(300)}
    assert len(seen) == 16


def test_a_crop_of_a_volume_as_long_as_itself_is_turned_too() -> None:
    """It has one voxel more along the axis that has room for it, and is cut to size later."""
    raw = np.arange(2 * 3 * 4).reshape(2, 3, 4)
    for square, count in ((True, 16), (None, 8), (False, 8)):
        seen = {orient([raw], np.random.default_rng(seed), square=square)[0].tobytes() for seed in range(300)}
        assert len(seen) == count
    volume = LabelledVolume(
        "v", raw.astype(np.uint8)[:, :, :3].repeat(32, 1)[:, :32].repeat(12, 2)[:, :, :36],
        np.arange(2 * 32 * 36, dtype=np.uint32).reshape(2, 32, 36), Space((30.0, 6.0, 6.0)),
    )  # fmt: skip
    sampler = CropSampler([volume], (2, 32, 32), PRESETS["none"], 0)
    assert {sampler.sample(0, index).gray.shape for index in range(20)} == {(1, 2, 32, 32)}
