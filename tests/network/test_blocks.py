"""The 2-D formulations are held to PyTorch's own 3-D operations."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from fgnet.network.blocks import DepthwiseConv, DWBlock, enlarge, shift_sections
from fgnet.network.model import restack, unstack


def blocks(batch: int, channels: int, depth: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, channels, depth, height, width, generator=generator)


def conv3d(block: Tensor, conv: DepthwiseConv) -> Tensor:
    """The convolution that DepthwiseConv stands for."""
    channels, _, depth_kernel, size, _ = conv.weight.shape
    padding = (depth_kernel // 2, size // 2, size // 2)
    stride = (1, conv.stride, conv.stride)
    return functional.conv3d(block, conv.weight, conv.bias, stride=stride, padding=padding, groups=channels)


@given(
    batch=st.integers(1, 3),
    channels=st.integers(1, 4),
    depth=st.integers(1, 5),
    cells=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    depth_kernel=st.sampled_from([1, 3]),
    stride=st.sampled_from([1, 2, 4]),
    bias=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_a_depthwise_convolution_on_stacked_sections_equals_the_3d_one(
    batch: int, channels: int, depth: int, cells: tuple[int, int], depth_kernel: int, stride: int, bias: bool
) -> None:
    block = blocks(batch, channels, depth, cells[0] * stride, cells[1] * stride)
    conv = DepthwiseConv(channels, depth_kernel, stride)
    if bias:
        conv.bias = nn.Parameter(torch.arange(1.0, channels + 1))
    result = unstack(conv(restack(block), depth), depth)
    assert result.shape == (batch, channels, depth, *cells)
    torch.testing.assert_close(result, conv3d(block, conv), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_a_strided_kernel_sees_every_voxel_inside_the_section(stride: int) -> None:
    conv = DepthwiseConv(1, 1, stride)
    nn.init.ones_(conv.weight)
    stack = torch.zeros(1, 1, 16, 16, requires_grad=True)
    conv(stack, 1).sum().backward()
    assert stack.grad is not None
    # A kernel of odd size lies off centre over a cell of even size: at stride 4 the last row and column stay out.
    assert (stack.grad[..., :-1, :-1] > 0).all()


@pytest.mark.parametrize("by", [1, -1])
def test_shifted_sections_never_leave_their_block(by: int) -> None:
    block = blocks(2, 1, 3, 2, 2)
    shifted = unstack(shift_sections(restack(block), 3, by), 3)
    expected = torch.zeros_like(block)
    if by == 1:
        expected[:, :, 1:] = block[:, :, :-1]
    else:
        expected[:, :, :-1] = block[:, :, 1:]
    assert torch.equal(shifted, expected)


@pytest.mark.parametrize(("inputs", "outputs", "stride"), [(4, 4, 1), (3, 8, 1), (4, 6, 2), (4, 4, 4)])
@pytest.mark.parametrize("depth_kernel", [1, 3])
def test_a_block_equals_its_layers_written_in_3d(inputs: int, outputs: int, stride: int, depth_kernel: int) -> None:
    block = DWBlock(inputs, outputs, depth_kernel, expansion=2, stride=stride).eval()
    for norm in (block.norm1, block.norm2, block.norm3):
        nn.init.uniform_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 2)
        nn.init.uniform_(norm.weight)
        nn.init.uniform_(norm.bias)
    volume = blocks(2, inputs, 4, 8, 8)

    def conv1(module: nn.Module, x: Tensor) -> Tensor:
        if isinstance(module, nn.Identity):
            return x
        assert isinstance(module, nn.Conv2d)
        return functional.conv3d(x, module.weight.unsqueeze(-1), module.bias)

    def norm3d(module: nn.BatchNorm2d, x: Tensor) -> Tensor:
        return functional.batch_norm(x, module.running_mean, module.running_var, module.weight, module.bias)

    hidden = functional.relu(norm3d(block.norm1, conv1(block.expand, volume)))
    hidden = functional.relu(norm3d(block.norm2, conv3d(hidden, block.depthwise)))
    expected = norm3d(block.norm3, conv1(block.project, hidden))
    expected = expected + conv1(block.shortcut, functional.avg_pool3d(volume, (1, stride, stride)))
    torch.testing.assert_close(unstack(block(restack(volume), 4), 4), expected, rtol=1e-4, atol=1e-4)


@given(
    depth=st.integers(1, 4),
    before=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    factor=st.sampled_from([1, 2, 4]),
)
@settings(max_examples=40, deadline=None)
def test_enlarging_equals_trilinear_interpolation_without_aligned_corners(
    depth: int, before: tuple[int, int], factor: int
) -> None:
    block = blocks(2, 3, depth, *before)
    size = (before[0] * factor, before[1] * factor)
    expected = functional.interpolate(block, size=(depth, *size), mode="trilinear", align_corners=False)
    torch.testing.assert_close(unstack(enlarge(restack(block), size), depth), expected, rtol=1e-5, atol=1e-5)


def test_stacking_sections_and_unstacking_them_is_the_identity() -> None:
    block = blocks(2, 3, 4, 5, 6)
    assert torch.equal(unstack(restack(block), 4), block)
