"""Hiera's blocks without padded tokens: exactly the numbers of `sam2`, on the tokens that exist.

Where a grid is no multiple of its window, `sam2` pads it with zeros behind the layer norm: at 16 x 16 tokens and
windows of 14, two tokens of three are padding. Keys and values of a zero token are the bias of their projection, all
alike, and attention over n identical keys equals one such key whose logit is raised by log n. So each window attends
to its real tokens and, where it was padded, to that one key; the queries of padded tokens are dropped by `sam2` itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Span:
    """Windows of one extent along one axis of a grid.

    Attributes:
        start: first token.
        count: windows, next to each other.
        size: real tokens of each; smaller than the window only at the grid's end.
    """

    start: int
    count: int
    size: int

    @property
    def stop(self) -> int:
        """One past the last token."""
        return self.start + self.count * self.size


def spans(extent: int, window: int) -> list[Span]:
    """The windows of an axis: the full ones, then the one that padding would have completed."""
    if window == 0:
        return [Span(0, 1, extent)]
    full, rest = divmod(extent, window)
    return [*([Span(0, full, window)] if full else []), *([Span(full * window, 1, rest)] if rest else [])]


class PaddingFreeBlock(nn.Module):
    """One `MultiScaleBlock` of `sam2` for a grid of static size.

    Args:
        block: the trained block; its layers are shared.
        grid: tokens (rows, columns) of its input.

    Raises:
        ValueError: a block that pools queries across windows of odd size, which no SAM2 variant does.
    """

    def __init__(self, block: Any, grid: tuple[int, int]) -> None:
        super().__init__()
        self.block = block
        self.grid = grid
        self.heads = int(block.attn.num_heads)
        self.pooled = block.q_stride is not None
        if self.pooled and (tuple(block.q_stride) != (2, 2) or block.window_size % 2):
            raise ValueError(f"queries pooled by {block.q_stride} in windows of {block.window_size}")
        self.rows, self.columns = (spans(extent, block.window_size) for extent in grid)

    @property
    def out_grid(self) -> tuple[int, int]:
        """Tokens (rows, columns) of its output."""
        rows, columns = self.grid
        return (rows // 2, columns // 2) if self.pooled else self.grid

    def forward(self, tokens: Tensor) -> Tensor:
        """(N, rows, columns, dim) -> (N, rows', columns', dim_out)."""
        block = self.block
        normed = block.norm1(tokens)
        shortcut = tokens
        if block.dim != block.dim_out:
            shortcut = block.proj(normed)
            shortcut = _pool(shortcut) if self.pooled else shortcut
        tokens = shortcut + self._attend(normed)
        mixed: Tensor = tokens + block.mlp(block.norm2(tokens))
        return mixed

    def _attend(self, normed: Tensor) -> Tensor:
        attention = self.block.attn
        # Three products instead of one: its result would be split along the fastest axis, which copies all of it.
        weights, biases = attention.qkv.weight.chunk(3), attention.qkv.bias.chunk(3)
        query, key, value = (functional.linear(normed, w, b) for w, b in zip(weights, biases, strict=True))
        shrink = 1
        if self.pooled:
            # Windows are even: a cell of 2 x 2 tokens never lies in two of them.
            query, shrink = _pool(query), 2
        rows = [
            _join([self._windows(query, key, value, row, column, shrink) for column in self.columns], dim=2)
            for row in self.rows
        ]
        attended: Tensor = attention.proj(_join(rows, dim=1))
        return attended

    def _windows(self, query: Tensor, key: Tensor, value: Tensor, row: Span, column: Span, shrink: int) -> Tensor:
        """Attention within the windows of one size: (N, rows of all its windows, columns, dim_out)."""
        padded = self.block.window_size**2 - row.size * column.size if self.block.window_size else 0
        small = [Span(span.start // shrink, span.count, span.size // shrink) for span in (row, column)]
        q = self._split(query, *small)
        k, v = self._split(key, row, column), self._split(value, row, column)
        mask = None
        if padded:
            _, bias_key, bias_value = self.block.attn.qkv.bias.chunk(3)
            k, v = (
                torch.cat([part, bias.view(1, self.heads, 1, -1).expand(part.shape[0], -1, -1, -1)], dim=2)
                for part, bias in ((k, bias_key), (v, bias_value))
            )
            mask = q.new_zeros(1, 1, 1, k.shape[2])
            mask[..., -1] = math.log(padded)
        attended = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        height, width = small[0], small[1]
        shape = (-1, height.count, width.count, self.heads, height.size, width.size, attended.shape[-1])
        merged = attended.reshape(shape).permute(0, 1, 4, 2, 5, 3, 6)
        return merged.reshape(-1, height.count * height.size, width.count * width.size, self.block.dim_out)

    def _split(self, tokens: Tensor, row: Span, column: Span) -> Tensor:
        """(N, rows, columns, dim) -> (N * windows, heads, tokens of a window, dim / heads)."""
        region = tokens
        if len(self.rows) > 1 or len(self.columns) > 1:
            region = tokens[:, row.start : row.stop, column.start : column.stop]
        shape = (-1, row.count, row.size, column.count, column.size, self.heads, tokens.shape[-1] // self.heads)
        windows = region.reshape(shape).permute(0, 1, 3, 5, 2, 4, 6)
        return windows.reshape(-1, self.heads, row.size * column.size, shape[-1])


def _join(parts: list[Tensor], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=dim)


def _pool(tokens: Tensor) -> Tensor:
    """The largest of each cell of 2 x 2 tokens: (N, rows, columns, dim) -> (N, rows / 2, columns / 2, dim).

    As maxima of halves: every backend computes those fast, which does not hold of a reduction over two axes.
    """
    count, rows, columns, channels = tokens.shape
    above, below = tokens[:, : rows // 2 * 2].reshape(count, rows // 2, 2, columns, channels).unbind(2)
    taller = torch.maximum(above, below)[:, :, : columns // 2 * 2]
    left, right = taller.reshape(count, rows // 2, columns // 2, 2, channels).unbind(3)
    return torch.maximum(left, right)
