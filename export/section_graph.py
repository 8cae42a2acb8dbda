"""The encoder's graph: all that depends on one section only.

Inference strides z by half a patch, so that every section lies in two blocks. What depends on one section only is
therefore computed once (`SectionGraph`, encoder.onnx), kept, and read by both blocks (`BlockGraph`, decoder.onnx).
Which tensors travel depends on the network: the features S_i themselves, or, where S_i is only read by the DW blocks
of the guides, the outputs of these blocks' first 1x1 convolutions, into which the neck's last 1x1 convolution folds (a
linear map of a linear map); and the fine-grained levels that no kernel over z has touched yet.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from fgnet.export.window_attention import PaddingFreeBlock
from fgnet.network.blocks import DWBlock
from fgnet.network.encoder import SectionEncoder
from fgnet.network.guidance import FeatureGuidedGate, Guide
from fgnet.network.model import FGNet


@dataclass(frozen=True)
class Cut:
    """Where a network is cut.

    Attributes:
        composed: the guides' first convolutions belong to the sections' graph; otherwise S_i travel.
        fine: levels G_0 .. of the fine-grained encoder that belong to the sections' graph: 0, or 2 (G_0 and G~_1).
        gray: whether the blocks' graph reads gray as well.
    """

    composed: bool
    fine: int
    gray: bool


def cut_of(network: FGNet) -> Cut:
    """Where a network is cut: as late as its receptive field stays within one section."""
    config = network.config
    if network.fine is None:
        return Cut(composed=False, fine=0, gray=False)
    per_section = config.context_sections == 0 and config.finest_depth_kernel == 1
    guides = cast("list[Guide]", [] if network.fine.guides is None else list(network.fine.guides))
    composed = bool(guides) and all(
        guide.attention is None and (guide.gate is None or isinstance(guide.gate, FeatureGuidedGate))
        for guide in guides
    )
    return Cut(composed=composed, fine=2 if per_section else 0, gray=not per_section)


class SectionGraph(nn.Module):
    """What depends on one section only: gray sections -> features, in the order of `names`.

    Args:
        network: an inference copy; its layers are shared.
    """

    def __init__(self, network: FGNet, cut: Cut) -> None:
        super().__init__()
        self.cut = cut
        config = network.config
        self.scale = config.input_scale
        self.names: list[str] = []
        self.trunk: Trunk | None = None
        self.neck: Neck | None = None
        size = (config.patch[1] * self.scale, config.patch[2] * self.scale)
        if network.encoder is not None:
            self.trunk = Trunk(network.encoder, size)
            guides = network.fine.guides if network.fine is not None and cut.composed else None
            self.neck = Neck(network.encoder, cast("list[Guide] | None", guides and list(guides)))
            self.names += self.neck.names
        self.stem, self.down = None, None
        if cut.fine:
            assert network.fine is not None  # noqa: S101 - a cut with fine levels has them
            self.stem, self.down = network.fine.stem, network.fine.downs[0]
            self.names += ["fine_0", "fine_1"]

    def forward(self, gray: Tensor) -> tuple[Tensor, ...]:
        """(n, y, x) uint8 -> features, each (n, channels, h, w)."""
        stack = gray.to(torch.float32).unsqueeze(1) / 255
        features: list[Tensor] = []
        if self.trunk is not None and self.neck is not None:
            image = stack
            if self.scale > 1:
                image = functional.interpolate(image, scale_factor=self.scale, mode="bilinear", align_corners=False)
            features += self.neck(self.trunk(image))
        if self.stem is not None and self.down is not None:
            fine = self.stem(stack, 1)
            features += [fine, self.down(fine, 1)]
        return tuple(features)


class Trunk(nn.Module):
    """Hiera for gray sections of a static size: no padded tokens; positions, mean and deviation baked.

    Gray stands on all three channels, so the patch embedding sums its kernels over them. What the mean subtracts is the
    same at every voxel and 0 in the padding around the section: one constant map, added to the positions.
    """

    positions: Tensor
    kernel: Tensor

    def __init__(self, encoder: SectionEncoder, size: tuple[int, int]) -> None:
        super().__init__()
        trunk = encoder.image_encoder.trunk
        embed = trunk.patch_embed.proj
        self.stride, self.padding = embed.stride, embed.padding
        grid = (size[0] // self.stride[0], size[1] // self.stride[1])
        with torch.no_grad():
            scaled = embed.weight / encoder.std
            mean = (-encoder.mean / encoder.std).expand(1, 3, *size)
            shift = functional.conv2d(mean, embed.weight, embed.bias, self.stride, self.padding)
            self.register_buffer("kernel", scaled.sum(dim=1, keepdim=True))
            self.register_buffer("positions", trunk._get_pos_embed(grid) + shift.permute(0, 2, 3, 1))  # noqa: SLF001
        self.ends = set(trunk.stage_ends)
        self.blocks = nn.ModuleList()
        for block in trunk.blocks:
            placed = PaddingFreeBlock(block, grid)
            self.blocks.append(placed)
            grid = placed.out_grid

    def forward(self, image: Tensor) -> list[Tensor]:
        """(N, 1, H, W) in [0, 1] -> the tokens (N, rows, columns, dim) at the end of each stage, finest first."""
        embedded = functional.conv2d(image, self.kernel, None, self.stride, self.padding)
        tokens = embedded.permute(0, 2, 3, 1) + self.positions
        stages = []
        for i, block in enumerate(self.blocks):
            tokens = block(tokens)
            if i in self.ends:
                stages.append(tokens)
        return stages


class Neck(nn.Module):
    """Tokens of the stages -> S_i, or what the guides' first convolutions make of S_i.

    Args:
        encoder: whose neck it is.
        guides: of every level, if their first convolutions are composed with the neck's.
    """

    def __init__(self, encoder: SectionEncoder, guides: list[Guide] | None) -> None:
        super().__init__()
        neck = encoder.image_encoder.neck
        if neck.fuse_type != "sum":
            raise ValueError(f"a neck that fuses by {neck.fuse_type}")
        self.mode = neck.fpn_interp_model
        self.levels = encoder.levels
        stages = len(neck.convs)
        self.top_down = [i in neck.fpn_top_down_levels and i < stages - 1 for i in range(stages)]
        self.names: list[str] = []
        self.laterals = nn.ModuleList()
        for i in range(stages):
            conv = neck.convs[stages - 1 - i].conv
            linear = nn.Linear(conv.in_channels, conv.out_channels)
            linear.weight, linear.bias = nn.Parameter(conv.weight[:, :, 0, 0]), nn.Parameter(conv.bias)
            self.laterals.append(linear)
        self.firsts: nn.ModuleList | None = None
        if guides is None:
            self.names = [f"features_{i + 1}" for i in range(self.levels)]
            return
        self.firsts = nn.ModuleList()
        for i, guide in enumerate(guides):
            lateral = cast(nn.Linear, self.laterals[i])
            products = nn.ModuleList()
            for role, block in dw_blocks(guide).items():
                expand = block.expand
                products.append(_composed(expand.weight[:, :, 0, 0], expand.bias, lateral, self.top_down[i]))
                products.append(_composed(_shortcut(block), None, lateral, self.top_down[i]))
                self.names += [f"{role}_hidden_{i + 1}", f"{role}_shortcut_{i + 1}"]
            self.firsts.append(products)

    def forward(self, stages: list[Tensor]) -> list[Tensor]:
        """Tokens (N, h, w, dim) of the stages, finest first -> features (N, channels, h, w)."""
        summed: dict[int, Tensor] = {}

        def level(i: int) -> Tensor:
            if i not in summed:
                own = self.laterals[i](stages[i])
                summed[i] = own + self._up(level(i + 1)).permute(0, 2, 3, 1) if self.top_down[i] else own
            return summed[i]

        if self.firsts is None:
            return [level(i).permute(0, 3, 1, 2) for i in range(self.levels)]
        features = []
        # A product for each feature: one for all would be split along the fastest axis, which copies everything.
        for i, products in enumerate(cast(Any, self.firsts)):
            for number, (own, coarse) in enumerate(products):
                # Hidden channels and shortcuts in turn; the ReLU of the former beside what computes them.
                rectify = functional.relu if number % 2 == 0 else nn.Identity()
                tokens = own(stages[i])
                if self.top_down[i]:
                    features.append(rectify(tokens.permute(0, 3, 1, 2) + self._up(coarse(level(i + 1)))))
                else:
                    features.append(rectify(tokens).permute(0, 3, 1, 2))
        return features

    def _up(self, tokens: Tensor) -> Tensor:
        """Tokens (N, h, w, dim) -> (N, dim, 2 h, 2 w)."""
        return functional.interpolate(tokens.permute(0, 3, 1, 2), scale_factor=2.0, mode=self.mode)


def dw_blocks(guide: Guide) -> dict[str, DWBlock]:
    """The DW blocks that read S_i, by what they are for: of the gate, if there is one, and of the bias."""
    gate = guide.gate
    return {**({"gate": gate.block} if isinstance(gate, FeatureGuidedGate) else {}), "bias": guide.bias}


def _composed(weight: Tensor, bias: Tensor | None, lateral: nn.Linear, top_down: bool) -> nn.ModuleList:
    """A product of S_i as those of what S_i is the sum of: the stage's tokens, and the coarser level."""
    own = weight @ lateral.bias
    return nn.ModuleList(
        [
            _linear(weight @ lateral.weight, own if bias is None else own + bias),
            _linear(weight, None) if top_down else nn.Identity(),
        ]
    )


def _shortcut(block: DWBlock) -> Tensor:
    if isinstance(block.shortcut, nn.Conv2d):
        return block.shortcut.weight[:, :, 0, 0]
    return torch.eye(block.expand.in_channels)


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    linear.weight = nn.Parameter(weight)
    if bias is not None:
        linear.bias = nn.Parameter(bias)
    return linear
