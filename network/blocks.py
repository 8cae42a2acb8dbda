"""The convolutional pieces of FGNet, on stacks of sections.

A block of shape (B, C, D, H, W) is kept as B * D images (B * D, C, H, W), sections of one block next to each other.
Nothing in FGNet strides z, so every operation is a 2-D one plus, for kernels that reach into neighbouring sections,
a sum of shifted 2-D ones: the same numbers as 3-D convolutions, in the form that every backend runs fastest.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


def shift_sections(stack: Tensor, depth: int, by: int) -> Tensor:
    """Section d of the result is section d - by of the stack, zeros where there is none.

    Args:
        stack: (B * depth, C, H, W).
        depth: sections per block.
        by: +1 or -1.
    """
    blocks = stack.unflatten(0, (-1, depth))
    # Padding in z of (B, depth, C, H, W): before the first section, or behind the last.
    kept, padding = (blocks[:, :-1], (1, 0)) if by == 1 else (blocks[:, 1:], (0, 1))
    shifted = functional.pad(kept, (0, 0, 0, 0, 0, 0, *padding))
    return shifted.flatten(0, 1)


class DepthwiseConv(nn.Module):
    """A depthwise convolution with a kernel (kz, 3, 3), kz 1 or 3, padded to the same size, (1, r, r)-strided."""

    def __init__(self, channels: int, depth_kernel: int, stride: int = 1) -> None:
        super().__init__()
        # A stride of r needs a kernel of at least r, or voxels would be dropped unseen.
        self.size = max(3, stride + 1 - stride % 2)
        self.stride = stride
        self.weight = nn.Parameter(torch.empty(channels, 1, depth_kernel, self.size, self.size))
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")
        # Training needs none, a batch norm follows; it is there for the batch norm that export folds into the kernel.
        self.bias: nn.Parameter | None = None

    def forward(self, stack: Tensor, depth: int) -> Tensor:
        """(B * depth, C, H, W) -> (B * depth, C, H / r, W / r)."""
        channels, _, depth_kernel, _, _ = self.weight.shape
        # The bias belongs to the section itself, the one plane that every voxel of the sum has.
        planes = [
            functional.conv2d(
                stack,
                self.weight[:, :, k],
                self.bias if k == depth_kernel // 2 else None,
                stride=self.stride,
                padding=self.size // 2,
                groups=channels,
            )
            for k in range(depth_kernel)
        ]
        if depth_kernel == 1:
            return planes[0]
        before, here, after = planes
        return shift_sections(before, depth, 1) + here + shift_sections(after, depth, -1)


class DWBlock(nn.Module):
    """Inverted residual: 1x1x1, norm, act, depthwise, norm, act, 1x1x1, norm, + shortcut (spec: DW block)."""

    def __init__(self, inputs: int, outputs: int, depth_kernel: int, *, expansion: int, stride: int = 1) -> None:
        super().__init__()
        # A strided block widens only after its stride: before it, voxels are r * r times as many.
        hidden = expansion * (inputs if stride > 1 else outputs)
        self.expand = nn.Conv2d(inputs, hidden, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(hidden)
        self.depthwise = DepthwiseConv(hidden, depth_kernel, stride)
        self.norm2 = nn.BatchNorm2d(hidden)
        self.project = nn.Conv2d(hidden, outputs, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(outputs)
        self.pool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.shortcut = nn.Conv2d(inputs, outputs, 1, bias=False) if inputs != outputs else nn.Identity()

    def forward(self, stack: Tensor, depth: int) -> Tensor:
        """(B * depth, inputs, H, W) -> (B * depth, outputs, H / r, W / r)."""
        hidden = functional.relu(self.norm1(self.expand(stack)))
        hidden = functional.relu(self.norm2(self.depthwise(hidden, depth)))
        result: Tensor = self.shortcut(self.pool(stack)) + self.norm3(self.project(hidden))
        return result


def enlarge(stack: Tensor, size: tuple[int, int]) -> Tensor:
    """Trilinear upsampling (align_corners=False) of a block whose z is not enlarged, section by section."""
    if stack.shape[-2:] == size:
        return stack
    return functional.interpolate(stack, size=size, mode="bilinear", align_corners=False)
