"""Hiera without padded tokens against sam2's own, in double precision: the same numbers, whatever the grid."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the export needs the extra fgnet[train]")
pytest.importorskip("sam2", reason="the export needs the extra fgnet[train]")

from fgnet.export.section_graph import Trunk  # noqa: E402
from fgnet.export.window_attention import PaddingFreeBlock, Span, spans  # noqa: E402
from fgnet.network.config import ENCODERS  # noqa: E402
from fgnet.network.encoder import MEAN, STD, build_image_encoder  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_torch_thread")

ThinTrunk = Callable[[str], Any]
# Of tokens: multiples of some windows, of none, smaller than a window, odd, one row.
GRIDS = [(8, 8), (16, 16), (32, 16), (14, 28), (12, 20), (6, 10), (15, 29), (17, 9), (13, 11), (2, 4), (1, 23)]


@pytest.fixture(scope="module")
def thin_trunk() -> ThinTrunk:
    """The trunk of a variant with all its blocks, windows and heads, but 16 channels for each head."""
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    from fgnet.network import encoder

    held: dict[str, Any] = {}

    def make(variant: str) -> Any:
        if variant in held:
            return held[variant]
        torch.manual_seed(0)
        if variant == "nano":
            trunk = build_image_encoder("nano").trunk
        else:
            folder = encoder.resources.files("sam2") / "configs" / "sam2.1"
            text = (folder / f"sam2.1_hiera_{encoder._CONFIG_FILES[variant]}.yaml").read_text()
            described = OmegaConf.create(text).model.image_encoder.trunk
            trunk = instantiate(described, embed_dim=16 * described.num_heads)
        with torch.no_grad():
            for name, parameter in trunk.named_parameters():
                if "norm" in name:
                    parameter.uniform_(0.5, 1.5)
                elif name.endswith("bias") or "pos_embed" in name:
                    parameter.normal_()
        held[variant] = trunk.double().eval().requires_grad_(False)
        return held[variant]

    return make


def kinds(trunk: Any) -> dict[tuple[Any, ...], Any]:
    """One block of each kind that a trunk has."""
    return {(b.dim, b.dim_out, b.window_size, b.q_stride, b.attn.num_heads): b for b in trunk.blocks}


@pytest.mark.parametrize("variant", ENCODERS)
def test_every_kind_of_block_gives_the_tokens_of_sam2_on_any_grid(thin_trunk: ThinTrunk, variant: str) -> None:
    generator = torch.Generator().manual_seed(1)
    padded = pooled = everywhere = 0
    for block in kinds(thin_trunk(variant)).values():
        for grid in GRIDS:
            if block.q_stride is not None and any(extent % block.window_size == 1 for extent in grid):
                # A single token, pooled with padding: sam2 itself ends in an error.
                continue
            tokens = torch.randn((2, *grid, block.dim), generator=generator, dtype=torch.float64)
            with torch.inference_mode():
                expected, placed = block(tokens), PaddingFreeBlock(block, grid)
                found = placed(tokens)
            assert tuple(found.shape[1:3]) == placed.out_grid
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
            padded += block.window_size > 0 and any(extent % block.window_size for extent in grid)
            pooled += block.q_stride is not None
            everywhere += block.window_size == 0
    assert min(padded, pooled) > 0
    assert (everywhere > 0) == (variant != "nano")


@pytest.mark.parametrize("variant", ENCODERS)
@pytest.mark.parametrize("size", [(64, 64), (96, 160), (128, 32)], ids=str)
def test_the_trunk_gives_the_stages_of_sam2_with_positions_and_normalisation_baked(
    thin_trunk: ThinTrunk, variant: str, size: tuple[int, int]
) -> None:
    trunk = thin_trunk(variant)
    mean, std = (torch.tensor(values, dtype=torch.float64).view(1, 3, 1, 1) for values in (MEAN, STD))
    encoder: Any = SimpleNamespace(image_encoder=SimpleNamespace(trunk=trunk), mean=mean, std=std)
    image = torch.rand((2, 1, *size), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    with torch.inference_mode():
        expected = trunk((image - mean) / std)
        found = Trunk(encoder, size)(image)
    assert len(found) == len(expected) == 4
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.permute(0, 3, 1, 2), theirs, rtol=1e-8, atol=1e-8)


def test_windows_are_the_full_ones_and_the_rest() -> None:
    assert spans(16, 14) == [Span(0, 1, 14), Span(14, 1, 2)]
    assert spans(32, 8) == [Span(0, 4, 8)]
    assert spans(3, 8) == [Span(0, 1, 3)]
    assert spans(20, 0) == [Span(0, 1, 20)]


@pytest.mark.parametrize(("window", "stride"), [(7, (2, 2)), (9, (3, 3)), (8, (2, 1))])
def test_queries_pooled_across_windows_are_refused(window: int, stride: tuple[int, int]) -> None:
    from sam2.modeling.backbones.hieradet import MultiScaleBlock

    block = MultiScaleBlock(dim=8, dim_out=16, num_heads=2, q_stride=stride, window_size=window)
    with pytest.raises(ValueError, match="queries pooled by"):
        PaddingFreeBlock(block, (18, 18))
