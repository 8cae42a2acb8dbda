"""Attention maps are the network's own gates, at their places."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fgnet.network.attention_maps import attention_maps, save_attention_maps
from fgnet.network.config import preset
from fgnet.network.model import FGNet, restack
from fgnet.volumes.errors import OutputError, TrainingError

pytestmark = pytest.mark.usefixtures("one_torch_thread")


def network(**changes: Any) -> FGNet:
    torch.manual_seed(0)
    return FGNet(preset("nano", widths=(4, 6, 8, 8), patch=(4, 64, 64), **changes)).eval()


@pytest.fixture(scope="module")
def gray() -> Any:
    return np.random.default_rng(0).integers(0, 256, (4, 64, 96), dtype=np.uint8)


def test_maps_are_the_means_of_the_gates(gray: Any) -> None:
    built = network()
    maps = attention_maps(built, gray)
    assert [level.shape for level in maps] == [(4, 16, 24), (4, 8, 12), (4, 4, 6)]
    assert built.fine is not None
    assert built.fine.guides is not None
    stack = restack(torch.from_numpy(gray[None, None]).float() / 255)
    with torch.inference_mode():
        features = built.encode(stack)
        for i, level in enumerate(maps):
            gate = built.fine.guides[i].gate
            expected = gate(features[i], 4).mean(dim=1)  # type: ignore[operator, union-attr]
            np.testing.assert_allclose(level, expected.numpy(), atol=1e-6)
            assert not gate._forward_hooks  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"guidance": "se"}, "guidance by se has no factor for each voxel"),
        ({"guidance": "cross_attention"}, "guidance by cross_attention"),
        ({"modules": "without_fga"}, "without_fga guides nothing"),
        ({"modules": "without_fge"}, "without_fge guides nothing"),
        ({"modules": "without_sam2"}, "without_sam2 guides nothing"),
    ],
)
def test_a_network_without_maps_is_refused(gray: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        attention_maps(network(**changes), gray)


def test_cbam_has_maps_and_a_block_that_cannot_be_halved_is_refused(gray: Any) -> None:
    assert len(attention_maps(network(guidance="cbam"), gray)) == 3
    with pytest.raises(TrainingError, match="multiples of 32"):
        attention_maps(network(), gray[:, :40])


def test_the_picture_shows_each_level_in_its_own_row(tmp_path: Path, gray: Any) -> None:
    maps = [np.zeros((4, 16, 24), np.float32), np.ones((4, 8, 12), np.float32)]
    maps[0][:, :8] = 1  # the upper half
    save_attention_maps(tmp_path / "maps.png", gray, maps, first=7)
    with Image.open(tmp_path / "maps.png") as drawn:
        picture = np.asarray(drawn.convert("RGB")).astype(int)
    yellow = abs(picture - (253, 231, 37)).sum(-1) < 20
    rows = np.flatnonzero(yellow[:, : int(0.8 * picture.shape[1])].any(1))
    # Of the second of three rows, the upper half.
    assert 0.3 < rows.min() / picture.shape[0] < 0.42
    assert rows.max() / picture.shape[0] < 0.56
    with pytest.raises(OutputError, match="cannot be written"):
        save_attention_maps(tmp_path / "maps.png" / "below.png", gray, maps)
