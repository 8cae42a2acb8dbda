"""The network as it is deployed: uint8 gray in, affinities out, nothing in it that only training needs."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from fgnet.network.blocks import DWBlock
from fgnet.network.model import FGNet


class Deployment(nn.Module):
    """FGNet with a static patch: left decoder dropped, normalisation inside, batch norms folded, positions baked.

    Args:
        network: a trained network; it is copied, not changed.
    """

    def __init__(self, network: FGNet) -> None:
        super().__init__()
        self.network = inference_copy(network)
        self.depth = network.config.patch[0]
        if self.network.encoder is not None:
            _bake_positions(self.network)

    def forward(self, gray: Tensor) -> Tensor:
        """(1, 1, z, y, x) uint8 -> affinities (1, 3, z, y, x) float32 in [0, 1]."""
        stack = gray.to(torch.float32).flatten(0, 1).transpose(0, 1) / 255
        logits = self.network.refine(stack, self.network.encode(stack), self.depth)
        return torch.sigmoid(logits).transpose(0, 1).unsqueeze(0)


def inference_copy(network: FGNet) -> FGNet:
    """A copy in evaluation mode without what only training needs: batch norms folded, the left decoder dropped."""
    kept = copy.deepcopy(network).eval().requires_grad_(False)
    if kept.refined is not None:
        kept.coarse = None
    fold_batch_norms(kept)
    return kept


def fold_batch_norms(network: nn.Module) -> None:
    """Fold every batch norm of a network in evaluation mode into the convolution before it, in place."""
    for block in [module for module in network.modules() if isinstance(module, DWBlock)]:
        block.expand, block.norm1 = fuse_conv_bn_eval(block.expand, block.norm1), nn.Identity()  # type: ignore[assignment]
        block.project, block.norm3 = fuse_conv_bn_eval(block.project, block.norm3), nn.Identity()  # type: ignore[assignment]
        norm = block.norm2
        assert norm.running_mean is not None and norm.running_var is not None  # noqa: S101, PT018 - DW blocks track both
        scale = norm.weight.detach() / torch.sqrt(norm.running_var + norm.eps)
        block.depthwise.weight = nn.Parameter(block.depthwise.weight.detach() * scale[:, None, None, None, None])
        block.depthwise.bias = nn.Parameter(norm.bias.detach() - norm.running_mean * scale)
        block.norm2 = nn.Identity()  # type: ignore[assignment]


def _bake_positions(network: FGNet) -> None:
    """Replace the trunk's interpolated position embedding by the one of this patch's section size."""
    assert network.encoder is not None  # noqa: S101 - asked by the caller
    trunk: Any = network.encoder.image_encoder.trunk
    stride = trunk.patch_embed.proj.stride
    _, height, width = network.config.patch
    scale = network.config.input_scale
    with torch.no_grad():
        baked = trunk._get_pos_embed((height * scale // stride[0], width * scale // stride[1])).clone()  # noqa: SLF001
    trunk._get_pos_embed = lambda _: baked  # noqa: SLF001
