"""The decoder's graph: all that looks across the sections of a block, from their features to its affinities."""

from __future__ import annotations

import itertools
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from fgnet.export.section_graph import Cut, dw_blocks
from fgnet.network.blocks import DepthwiseConv, DWBlock, enlarge
from fgnet.network.guidance import Guide
from fgnet.network.model import AffinityDecoder, FGNet


class BlockGraph(nn.Module):
    """What looks across sections: features of a block's sections, and its gray where needed -> affinities.

    Args:
        network: an inference copy; its layers are shared.
    """

    def __init__(self, network: FGNet, cut: Cut) -> None:
        super().__init__()
        self.cut = cut
        self.network = network
        for module in [module for module in network.modules() if isinstance(module, DWBlock)]:
            if module.depthwise.weight.shape[2] > 1:
                module.depthwise = OneBlockDepthwise(module.depthwise)  # type: ignore[assignment]
        self.depth, *self.size = network.config.patch
        self.head = None if network.refined is None else QuadrupleHead(network.refined.head)
        self.guides = nn.ModuleList()
        if cut.composed:
            assert network.fine is not None and network.fine.guides is not None  # noqa: S101, PT018 - the cut says so
            self.guides.extend(ComposedGuide(cast(Guide, guide)) for guide in network.fine.guides)

    def forward(self, *inputs: Tensor) -> Tensor:
        """[(D, y, x) uint8,] features (D, channels, h, w) -> (3, D, y, x) uint8, 255 is 1.0."""
        given = list(inputs)
        gray = given.pop(0).to(torch.float32).unsqueeze(1) / 255 if self.cut.gray else None
        if self.network.fine is None:
            return _quantised(self._coarse(given))
        levels = self._levels(gray, given)
        refined = cast(AffinityDecoder, self.network.refined)
        stack = refined.bottom(refined.laterals[-1](levels[-1]), self.depth)
        for i in range(len(refined.blocks) - 1, 0, -1):
            stack = refined.rise(i, stack, levels[i], self.depth)
        return _quantised(cast(QuadrupleHead, self.head)(refined.rise(0, stack, levels[0], self.depth)))

    def _coarse(self, features: list[Tensor]) -> Tensor:
        assert self.network.coarse is not None  # noqa: S101 - without FGE it is the result
        return enlarge(self.network.coarse(features, self.depth), (self.size[0], self.size[1]))

    def _levels(self, gray: Tensor | None, features: list[Tensor]) -> list[Tensor]:
        fine = self.network.fine
        assert fine is not None  # noqa: S101 - asked by the caller
        levels = features[len(features) - self.cut.fine :]
        if gray is not None:
            levels = [fine.stem(fine.context_of(gray, self.depth), self.depth)]
        base = levels[:1]
        for i, down in enumerate(fine.downs):
            level = levels[i + 1] if i + 1 < len(levels) else down(base[-1], self.depth)
            if self.cut.composed:
                guide = cast(ComposedGuide, self.guides[i])
                level = guide(level, *features[i * guide.reads : (i + 1) * guide.reads], depth=self.depth)
            elif fine.guides is not None:
                level = fine.guides[i](level, features[i], self.depth)
            base.append(level)
        return base


class ComposedGuide(nn.Module):
    """G_i = a_i * G~_i + b_i from the hidden channels and the shortcut of each of its DW blocks."""

    def __init__(self, guide: Guide) -> None:
        super().__init__()
        blocks = dw_blocks(guide).values()
        self.gated = guide.gate is not None
        self.depthwises = nn.ModuleList(OneBlockDepthwise(block.depthwise) for block in blocks)
        self.projects = nn.ModuleList(block.project for block in blocks)
        self.reads = 2 * len(blocks)

    def forward(self, fine: Tensor, *features: Tensor, depth: int) -> Tensor:
        """G~_i (D, C, h, w) and, of each block, hidden (D, its channels, h, w) and shortcut (D, C, h, w) -> G_i."""
        ends = [
            project(functional.relu(depthwise(hidden, depth))) + shortcut
            for depthwise, project, hidden, shortcut in zip(
                self.depthwises, self.projects, features[::2], features[1::2], strict=True
            )
        ]
        if self.gated:
            fine = torch.sigmoid(ends[0]) * fine
        guided: Tensor = fine + ends[-1]
        return guided


class QuadrupleHead(nn.Module):
    """The last 3x3 convolution, four voxels at a time.

    Backends compute 8 or 16 channels at once, whatever the number asked for: three affinities of a voxel waste most of
    that. The twelve of 2 x 2 voxels, from the 4x4 voxels that they depend on, are the same numbers in less time.

    Args:
        head: 3x3, to 3 channels.
    """

    def __init__(self, head: nn.Conv2d) -> None:
        super().__init__()
        outputs, inputs, *_ = head.weight.shape
        weight = head.weight.new_zeros(outputs, 2, 2, inputs, 4, 4)
        for row, column in itertools.product(range(2), repeat=2):
            weight[:, row, column, :, row : row + 3, column : column + 3] = head.weight.detach()
        self.weight = nn.Parameter(weight.flatten(0, 2))
        self.bias = nn.Parameter(cast(Tensor, head.bias).detach().repeat_interleave(4))

    def forward(self, stack: Tensor) -> Tensor:
        """(sections, C, y, x) -> (sections, 3, y, x)."""
        return functional.pixel_shuffle(functional.conv2d(stack, self.weight, self.bias, stride=2, padding=1), 2)


class OneBlockDepthwise(nn.Module):
    """A 3x3x3 depthwise convolution of one block, as three 2-D ones whose inputs are shifted by a section each.

    A stack of one block needs no fifth axis to be shifted. That matters: a backend that keeps images with their
    channels last, or in groups of 16, has to undo that around every change of the number of axes.

    Args:
        conv: with its batch norm folded into it.
    """

    def __init__(self, conv: DepthwiseConv) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias
        self.size, self.stride = conv.size, conv.stride

    def forward(self, stack: Tensor, depth: int) -> Tensor:  # noqa: ARG002 - called as what it stands for
        """(depth, C, H, W) -> (depth, C, H / r, W / r)."""
        # A padding, not a concatenation with zeros: those would be stored in the graph, one for each convolution.
        before = functional.pad(stack[:-1], (0, 0, 0, 0, 0, 0, 1, 0))
        after = functional.pad(stack[1:], (0, 0, 0, 0, 0, 0, 0, 1))
        return self._plane(before, 0) + self._plane(stack, 1) + self._plane(after, 2)

    def _plane(self, stack: Tensor, k: int) -> Tensor:
        return functional.conv2d(
            stack,
            self.weight[:, :, k],
            self.bias if k == 1 else None,
            stride=self.stride,
            padding=self.size // 2,
            groups=len(self.weight),
        )


def _quantised(logits: Tensor) -> Tensor:
    """Logits (sections, 3, y, x) -> affinities (3, sections, y, x) uint8."""
    # TensorRT takes uint8 at the very ends of a network only: the cast comes last.
    return torch.round(torch.sigmoid(logits) * 255).transpose(0, 1).to(torch.uint8)
