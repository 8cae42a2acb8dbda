from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgnet.network.config import ENCODERS, GUIDANCES, MODULES, FGNetConfig, preset
from fgnet.volumes.errors import CheckpointError


@given(
    encoder=st.sampled_from(ENCODERS),
    changes=st.fixed_dictionaries(
        {},
        optional={
            "depth": st.sampled_from([3, 4, 5]),
            "input_scale": st.sampled_from([1, 2, 4]),
            "modules": st.sampled_from(MODULES),
            "guidance": st.sampled_from(GUIDANCES),
            "adaptation": st.sampled_from(["frozen", "fine_tuned"]),
            "patch": st.sampled_from([(16, 256, 256), (8, 32, 64)]),
        },
    ),
)
def test_a_configuration_survives_json(encoder: Any, changes: dict[str, Any]) -> None:
    config = preset(encoder, **changes)
    assert FGNetConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("encoder", "huge"),
        ("input_scale", 3),
        ("depth", 6),
        ("modules", "half"),
        ("guidance", "none"),
        ("adaptation", "thawed"),
        ("finest_depth_kernel", 2),
        ("context_sections", 2),
        ("finest_blocks", 0),
        ("expansion", 5),
        ("finest_expansion", 0),
        ("widths", (32, 64, 96)),
        ("widths", (32, 64, 0, 128)),
        ("patch", (16, 256)),
        ("patch", (0, 256, 256)),
        ("patch", (16, 250, 256)),
    ],
)
def test_a_value_that_cannot_be_built_is_refused_naming_the_field(field: str, value: Any) -> None:
    with pytest.raises(CheckpointError, match=field):
        FGNetConfig.from_dict(preset("tiny").to_dict() | {field: value})


def test_an_unknown_field_is_refused_by_name() -> None:
    with pytest.raises(CheckpointError, match="unknown fields bias, flavour"):
        FGNetConfig.from_dict(preset("nano").to_dict() | {"flavour": 1, "bias": 2})


@pytest.mark.parametrize(
    ("changes", "multiple"),
    [
        ({"input_scale": 1}, 32),
        ({"input_scale": 2}, 16),
        ({"input_scale": 4}, 8),
        ({"input_scale": 2, "depth": 3}, 16),
        ({"input_scale": 2, "depth": 5}, 16),
        ({"input_scale": 2, "modules": "without_sam2"}, 8),
        ({"input_scale": 2, "modules": "without_sam2", "depth": 5}, 16),
    ],
)
def test_sections_must_halve_down_to_the_trunks_last_stage(changes: dict[str, Any], multiple: int) -> None:
    assert preset("tiny", **changes, patch=(4, multiple, 3 * multiple)).section_multiple == multiple
    with pytest.raises(CheckpointError, match=f"multiples of {multiple}"):
        preset("tiny", **changes, patch=(4, multiple, multiple // 2))


def test_levels_are_those_of_the_encoder_in_voxels_of_the_input() -> None:
    assert preset("tiny").level_strides == (1, 2, 4, 8)
    assert preset("tiny", input_scale=4, depth=5).level_strides == (1, 1, 2, 4, 8)
    assert preset("nano").level_strides == (1, 4, 8, 16)


def test_a_presets_widths_follow_its_depth() -> None:
    assert preset("tiny", depth=5).widths == (32, 64, 96, 128, 160)
    assert preset("nano", depth=3).widths == (16, 48, 64)
    assert preset("nano", depth=3, widths=(4, 5, 6)).widths == (4, 5, 6)


def test_the_shipped_preset_does_not_change() -> None:
    # Trained checkpoints of it are in use.
    assert preset("nano").to_dict() == {
        "encoder": "nano",
        "input_scale": 1,
        "widths": [16, 48, 64, 96],
        "depth": 4,
        "modules": "full",
        "guidance": "fga",
        "adaptation": "fine_tuned",
        "finest_depth_kernel": 1,
        "context_sections": 1,
        "finest_blocks": 1,
        "expansion": 2,
        "finest_expansion": 1,
        "patch": [16, 256, 256],
    }
