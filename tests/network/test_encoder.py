"""The section encoder: SAM2's variants as they are, one section at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from fgnet.network.config import ENCODERS, EncoderName, preset
from fgnet.network.encoder import SectionEncoder, build_image_encoder


def sections(count: int, height: int, width: int) -> torch.Tensor:
    return torch.rand(count, 1, height, width, generator=torch.Generator().manual_seed(1))


def encoder_of(name: EncoderName, **changes: Any) -> SectionEncoder:
    torch.manual_seed(0)
    encoder = SectionEncoder(preset(name, **changes)).eval()
    for parameter in encoder.parameters():
        # SAM2 initialises its position embeddings with zeros: anything else shows what depends on them.
        if not parameter.any() and parameter.requires_grad:
            nn.init.trunc_normal_(parameter, std=0.02)
    return encoder


@pytest.mark.parametrize("name", ENCODERS)
def test_every_variant_encodes_a_section_to_strides_4_8_16_of_its_own_input(name: EncoderName) -> None:
    config = preset(name)
    encoder = encoder_of(name)
    with torch.inference_mode():
        features = encoder(sections(1, 64, 64))
    assert encoder.channels == (64 if name == "nano" else 256)
    sides = [64 // stride for stride in config.level_strides[1:]]
    assert [tuple(level.shape) for level in features] == [(1, encoder.channels, side, side) for side in sides]


@pytest.mark.parametrize("name", ["nano", "tiny"])
def test_each_section_is_encoded_on_its_own(name: EncoderName) -> None:
    encoder = encoder_of(name)
    stack = sections(3, 32, 64)
    with torch.inference_mode():
        together = encoder(stack)
        for index in range(3):
            for level, alone in zip(together, encoder(stack[index : index + 1]), strict=True):
                torch.testing.assert_close(level[index : index + 1], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["nano", "tiny"])
@pytest.mark.parametrize("scale", [1, 2, 4])
def test_the_transformation_is_bilinear_enlargement_and_imagenet_normalisation(name: EncoderName, scale: int) -> None:
    encoder = encoder_of(name, input_scale=scale, patch=(4, 32, 32))
    gray = sections(1, 32, 32)
    image = gray if scale == 1 else nn.Upsample(scale_factor=scale, mode="bilinear", align_corners=False)(gray)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    image = torch.cat([(image - m) / s for m, s in zip(mean, std, strict=True)], dim=1)
    with torch.inference_mode():
        expected = encoder.image_encoder(image)["backbone_fpn"]
        for level, plain in zip(encoder(gray), expected, strict=True):
            torch.testing.assert_close(level, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["nano", "tiny"])
@pytest.mark.parametrize("sides", [(32, 96), (64, 160)])
def test_sections_that_no_window_divides_are_encoded(name: EncoderName, sides: tuple[int, int]) -> None:
    encoder = encoder_of(name)
    with torch.inference_mode():
        features = encoder(sections(1, *sides))
    for level, stride in zip(features, preset(name).level_strides[1:], strict=True):
        assert tuple(level.shape[2:]) == (sides[0] // stride, sides[1] // stride)
        assert level.isfinite().all()


@pytest.mark.parametrize("name", ["nano", "tiny"])
def test_the_finest_levels_do_not_depend_on_how_many_are_read(name: EncoderName) -> None:
    by_depth = {depth: encoder_of(name, depth=depth) for depth in (3, 4, 5)}
    gray = sections(1, 64, 64)
    features = {}
    for depth, encoder in by_depth.items():
        encoder.load_state_dict(by_depth[5].state_dict())
        with torch.inference_mode():
            features[depth] = encoder(gray)
        assert len(features[depth]) == depth - 1
    for depth in (3, 4):
        for level, deepest in zip(features[depth], features[5], strict=False):
            torch.testing.assert_close(level, deepest)
    coarsest = 64 * preset(name).input_scale // 32
    assert tuple(features[5][3].shape[2:]) == (coarsest, coarsest)


def test_what_depth_3_does_not_read_of_sam2_is_not_trained() -> None:
    encoder = encoder_of("tiny", depth=3)
    sum(level.square().mean() for level in encoder(sections(1, 32, 32))).backward()
    for name, parameter in encoder.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    trunk = encoder.image_encoder.trunk
    trained = [all(p.requires_grad for p in block.parameters()) for block in trunk.blocks]
    assert trained == [index <= trunk.stage_ends[1] for index in range(len(trained))]


def test_nanos_background_position_stays_zero_and_untrained() -> None:
    trunk: Any = build_image_encoder("nano").trunk
    assert not trunk.pos_embed.requires_grad
    assert not trunk.pos_embed.any()
    assert trunk.pos_embed_window.requires_grad


def test_nano_encodes_a_part_of_a_section_as_it_encodes_the_whole_within_windows() -> None:
    # No token is padded and no position is absolute: shifting by whole windows shifts the trunk's tokens.
    encoder = encoder_of("nano")
    trunk: Any = encoder.image_encoder.trunk
    wide = torch.rand(1, 3, 128, 384, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        left, right = trunk(wide[..., :256])[0], trunk(wide[..., 128:])[0]
    # The patch embedding reaches three pixels over: the first window beside the cut differs.
    torch.testing.assert_close(left[..., 40:56], right[..., 8:24], rtol=1e-4, atol=1e-4)
