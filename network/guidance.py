"""How the sections' features S_i guide the fine-grained features G_i (Table 6 of arXiv 2511.13063).

Every kind computes G_i = a_i * G~_i + b_i with b_i = DW'(S_i); they differ in a_i. `cross_attention`, the paper's open
question, lets each voxel of G~_i look up S_i within its window instead of multiplying.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from fgnet.network.blocks import DWBlock
from fgnet.network.config import Guidance


class FeatureGuidedGate(nn.Module):
    """FGA: a_i = sigmoid(DW(S_i)), a factor for each voxel and channel."""

    def __init__(self, inputs: int, outputs: int, expansion: int) -> None:
        super().__init__()
        self.block = DWBlock(inputs, outputs, 3, expansion=expansion)

    def forward(self, features: Tensor, depth: int) -> Tensor:
        """(B * depth, inputs, h, w) -> (B * depth, outputs, h, w) in (0, 1)."""
        return torch.sigmoid(self.block(features, depth))


def _pooled(features: Tensor, depth: int) -> Tensor:
    """The mean over a block's voxels, repeated for its sections: (B * depth, C, 1, 1)."""
    means: Tensor = features.mean(dim=(2, 3)).unflatten(0, (-1, depth)).mean(dim=1)
    return means.repeat_interleave(depth, dim=0)[:, :, None, None]


class SqueezeExciteGate(nn.Module):
    """SE (Hu et al. 2018): a factor for each channel from the block's mean features."""

    def __init__(self, inputs: int, outputs: int, reduction: int = 4) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, max(outputs // reduction, 1), 1)
        self.excite = nn.Conv2d(max(outputs // reduction, 1), outputs, 1)

    def forward(self, features: Tensor, depth: int) -> Tensor:
        """(B * depth, inputs, h, w) -> (B * depth, outputs, 1, 1) in (0, 1)."""
        return torch.sigmoid(self.excite(functional.relu(self.squeeze(_pooled(features, depth)))))


class EfficientChannelGate(nn.Module):
    """ECA (Wang et al. 2020): a 1-D convolution over neighbouring channels' means."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 5) -> None:
        super().__init__()
        self.align = nn.Conv2d(inputs, outputs, 1)
        self.mix = nn.Conv1d(1, 1, kernel, padding=kernel // 2)

    def forward(self, features: Tensor, depth: int) -> Tensor:
        """(B * depth, inputs, h, w) -> (B * depth, outputs, 1, 1) in (0, 1)."""
        means = self.align(_pooled(features, depth)).flatten(1).unsqueeze(1)
        return torch.sigmoid(self.mix(means)).transpose(1, 2).unsqueeze(-1)


class ConvolutionalBlockGate(nn.Module):
    """CBAM (Woo et al. 2018): a channel factor from mean and maximum, times a spatial factor."""

    def __init__(self, inputs: int, outputs: int, reduction: int = 4) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, max(outputs // reduction, 1), 1)
        self.excite = nn.Conv2d(max(outputs // reduction, 1), outputs, 1)
        self.spatial = nn.Conv2d(2, 1, 7, padding=3)

    def forward(self, features: Tensor, depth: int) -> Tensor:
        """(B * depth, inputs, h, w) -> (B * depth, outputs, h, w) in (0, 1)."""
        maxima = features.amax(dim=(2, 3)).unflatten(0, (-1, depth)).amax(dim=1)
        maxima = maxima.repeat_interleave(depth, dim=0)[:, :, None, None]
        channel = sum(self.excite(functional.relu(self.squeeze(x))) for x in (_pooled(features, depth), maxima))
        maps = torch.cat((features.mean(dim=1, keepdim=True), features.amax(dim=1, keepdim=True)), dim=1)
        return torch.sigmoid(channel) * torch.sigmoid(self.spatial(maps))


class CrossAttention(nn.Module):
    """Windowed attention: queries from G~_i, keys and values from S_i, added to G~_i."""

    def __init__(self, inputs: int, outputs: int, window: int = 8) -> None:
        super().__init__()
        self.heads = max(outputs // 16, 1)
        self.window = window
        self.query = nn.Conv2d(outputs, outputs - outputs % self.heads, 1)
        self.key_value = nn.Conv2d(inputs, 2 * (outputs - outputs % self.heads), 1)
        self.project = nn.Conv2d(outputs - outputs % self.heads, outputs, 1)

    def _windows(self, maps: Tensor, window: tuple[int, int]) -> Tensor:
        """(N, heads * c, h, w) -> (N * windows, heads, tokens, c)."""
        count, channels, height, width = maps.shape
        rows, columns = height // window[0], width // window[1]
        split = maps.reshape(count, self.heads, channels // self.heads, rows, window[0], columns, window[1])
        return split.permute(0, 3, 5, 1, 4, 6, 2).reshape(
            count * rows * columns, self.heads, window[0] * window[1], channels // self.heads
        )

    def forward(self, fine: Tensor, features: Tensor) -> Tensor:
        """G~_i (N, outputs, h, w) and S_i (N, inputs, h, w) -> (N, outputs, h, w)."""
        count, _, height, width = fine.shape
        # The largest window that divides the grid, so that nothing is padded.
        window = tuple(next(w for w in range(min(self.window, n), 0, -1) if n % w == 0) for n in (height, width))
        assert len(window) == 2  # noqa: S101 - for the type checker
        query = self._windows(self.query(fine), window)
        key, value = (self._windows(part, window) for part in self.key_value(features).chunk(2, dim=1))
        attended = functional.scaled_dot_product_attention(query, key, value)
        rows, columns = height // window[0], width // window[1]
        maps = attended.reshape(count, rows, columns, self.heads, window[0], window[1], -1)
        maps = maps.permute(0, 3, 6, 1, 4, 2, 5).reshape(count, -1, height, width)
        out: Tensor = fine + self.project(maps)
        return out


_GATES = {
    "se": SqueezeExciteGate,
    "eca": EfficientChannelGate,
    "cbam": ConvolutionalBlockGate,
}


class Guide(nn.Module):
    """S_i and G~_i -> G_i for one level."""

    def __init__(self, kind: Guidance | None, inputs: int, outputs: int, expansion: int) -> None:
        super().__init__()
        self.bias = DWBlock(inputs, outputs, 3, expansion=expansion)
        self.attention = CrossAttention(inputs, outputs) if kind == "cross_attention" else None
        self.gate: nn.Module | None = None
        if kind == "fga":
            self.gate = FeatureGuidedGate(inputs, outputs, expansion)
        elif kind in _GATES:
            self.gate = _GATES[kind](inputs, outputs)

    def forward(self, fine: Tensor, features: Tensor, depth: int) -> Tensor:
        """G_i = a_i * G~_i + b_i; without a gate (Table 5, without FGA) G~_i + b_i."""
        if self.attention is not None:
            fine = self.attention(fine, features)
        if self.gate is not None:
            fine = self.gate(features, depth) * fine
        guided: Tensor = fine + self.bias(features, depth)
        return guided
