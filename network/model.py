"""FGNet: section encoder, feature-guided fine-grained encoder and the two affinity decoders."""

from __future__ import annotations

from typing import NamedTuple, Self, cast

import torch
from torch import Tensor, nn

from fgnet.network.blocks import DWBlock, enlarge, shift_sections
from fgnet.network.config import FGNetConfig
from fgnet.network.encoder import SectionEncoder
from fgnet.network.guidance import Guide


class Prediction(NamedTuple):
    """Logits of the affinities, each (B, 3, D, H, W), or None where the configuration has no such decoder."""

    refined: Tensor | None
    coarse: Tensor | None

    @property
    def result(self) -> Tensor:
        """The logits that inference keeps: refined, or coarse where the network has no fine-grained encoder."""
        kept = self.refined if self.refined is not None else self.coarse
        if kept is None:
            raise ValueError("a prediction without refined and without coarse affinities")
        return kept


class FineGrainedEncoder(nn.Module):
    """FGE: V and S_i -> G_0 .. G_n, G_i = guide(Down_i(G_{i-1}), S_i)."""

    def __init__(self, config: FGNetConfig, feature_channels: int | None) -> None:
        super().__init__()
        widths, strides = config.widths, config.level_strides
        self.context = config.context_sections
        self.stem = DWBlock(
            1 + 2 * self.context, widths[0], config.finest_depth_kernel, expansion=config.finest_expansion
        )
        self.downs = nn.ModuleList(
            DWBlock(
                widths[i - 1],
                widths[i],
                # At the previous level's kernel: the finest one is where z context costs most.
                config.finest_depth_kernel if i == 1 else 3,
                expansion=config.finest_expansion if i == 1 else config.expansion,
                stride=strides[i] // strides[i - 1],
            )
            for i in range(1, config.depth)
        )
        kind = None if config.modules == "without_fga" else config.guidance
        self.guides = (
            nn.ModuleList(Guide(kind, feature_channels, widths[i], config.expansion) for i in range(1, config.depth))
            if feature_channels is not None
            else None
        )

    def context_of(self, gray: Tensor, depth: int) -> Tensor:
        """What the stem reads of gray (B * depth, 1, H, W): itself, and its neighbours as channels if so configured."""
        if not self.context:
            return gray
        return torch.cat((shift_sections(gray, depth, 1), gray, shift_sections(gray, depth, -1)), dim=1)

    def forward(self, gray: Tensor, features: list[Tensor], depth: int) -> list[Tensor]:
        """(B * depth, 1, H, W) and S_i -> G_i, each (B * depth, widths[i], H / stride_i, W / stride_i)."""
        fine: list[Tensor] = [self.stem(self.context_of(gray, depth), depth)]
        for i, down in enumerate(self.downs):
            level = down(fine[-1], depth)
            if self.guides is not None:
                level = self.guides[i](level, features[i], depth)
            fine.append(level)
        return fine


class AffinityDecoder(nn.Module):
    """Levels, finest first -> logits of 3 affinities at the finest level's size, by upsampling and DW blocks."""

    def __init__(
        self,
        inputs: tuple[int, ...],
        widths: tuple[int, ...],
        kernels: tuple[int, ...],
        expansions: tuple[int, ...],
        finest_blocks: int = 1,
    ) -> None:
        super().__init__()
        coarsest = len(widths) - 1
        self.laterals = nn.ModuleList(
            nn.Identity() if inputs[i] == widths[i] else nn.Conv2d(inputs[i], widths[i], 1) for i in range(coarsest + 1)
        )
        self.bottom = DWBlock(widths[-1], widths[-1], kernels[-1], expansion=expansions[-1])
        self.narrows = nn.ModuleList(nn.Conv2d(widths[i + 1], widths[i], 1) for i in range(coarsest))
        self.blocks = nn.ModuleList(
            nn.ModuleList(
                DWBlock(widths[i], widths[i], kernels[i], expansion=expansions[i])
                for _ in range(finest_blocks if i == 0 else 1)
            )
            for i in range(coarsest)
        )
        self.head = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, levels: list[Tensor], depth: int) -> Tensor:
        """Levels (B * depth, inputs[i], h_i, w_i) -> (B * depth, 3, h_0, w_0)."""
        stack = self.bottom(self.laterals[-1](levels[-1]), depth)
        for i in range(len(self.blocks) - 1, -1, -1):
            stack = self.rise(i, stack, levels[i], depth)
        logits: Tensor = self.head(stack)
        return logits

    def rise(self, i: int, stack: Tensor, level: Tensor, depth: int) -> Tensor:
        """One step up: (B * depth, widths[i + 1], h, w) and level i, the skip, -> (B * depth, widths[i], h_i, w_i)."""
        # A 1x1 convolution and a linear upsampling commute: narrow first, on fewer voxels.
        stack = enlarge(self.narrows[i](stack), (level.shape[-2], level.shape[-1]))
        stack = stack + self.laterals[i](level)
        for block in cast(nn.ModuleList, self.blocks[i]):
            stack = block(stack, depth)
        return stack


class FGNet(nn.Module):
    """A block of gray -> affinities (arXiv 2511.13063, section 3; our choices where it is silent: docs/network.md)."""

    def __init__(self, config: FGNetConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.widths
        self.encoder = SectionEncoder(config) if config.modules != "without_sam2" else None
        channels = None if self.encoder is None else self.encoder.channels
        self.fine: FineGrainedEncoder | None = None
        self.refined: AffinityDecoder | None = None
        self.coarse: AffinityDecoder | None = None
        if config.modules != "without_fge":
            kernels = (config.finest_depth_kernel, *(3 for _ in widths[1:]))
            expansions = (config.finest_expansion, *(config.expansion for _ in widths[1:]))
            self.fine = FineGrainedEncoder(config, channels)
            self.refined = AffinityDecoder(widths, widths, kernels, expansions, config.finest_blocks)
        if channels is not None:
            levels = config.depth - 1
            self.coarse = AffinityDecoder((channels,) * levels, widths[1:], (3,) * levels, (config.expansion,) * levels)
        if self.encoder is not None and config.adaptation == "frozen":
            self.encoder.requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        """Switch to training or evaluation; a frozen encoder stays in evaluation."""
        super().train(mode)
        if self.encoder is not None and self.config.adaptation == "frozen":
            self.encoder.eval()
        return self

    def encode(self, stack: Tensor) -> list[Tensor]:
        """Sections (N, 1, H, W) in [0, 1] -> S_i; empty without an encoder."""
        return [] if self.encoder is None else self.encoder(stack)

    def refine(self, stack: Tensor, features: list[Tensor], depth: int) -> Tensor:
        """What inference runs after the encoder: (B * depth, 1, H, W) and S_i -> logits (B * depth, 3, H, W)."""
        if self.fine is None or self.refined is None:
            return self._coarse(features, depth, stack)
        logits: Tensor = self.refined(self.fine(stack, features, depth), depth)
        return logits

    def _coarse(self, features: list[Tensor], depth: int, stack: Tensor) -> Tensor:
        assert self.coarse is not None  # noqa: S101 - a network without FGE has a coarse decoder
        return enlarge(self.coarse(features, depth), (stack.shape[-2], stack.shape[-1]))

    def forward(self, gray: Tensor) -> Prediction:
        """Both decoders' logits.

        Args:
            gray: (B, 1, D, H, W) float in [0, 1].

        Returns:
            Logits (B, 3, D, H, W); channels (z, y, x), as `postproc.targets` derives them.
        """
        depth, stack = gray.shape[2], restack(gray)
        features = self.encode(stack)
        coarse = None if self.coarse is None else unstack(self._coarse(features, depth, stack), depth)
        refined = None if self.refined is None else unstack(self.refine(stack, features, depth), depth)
        return Prediction(refined=refined, coarse=coarse)

    def infer(self, gray: Tensor) -> Tensor:
        """The logits that inference keeps, without running the coarse decoder where there is a refined one.

        Args:
            gray: (B, 1, D, H, W) float in [0, 1].

        Returns:
            Logits (B, 3, D, H, W), equal to `forward(gray).result`.
        """
        depth, stack = gray.shape[2], restack(gray)
        return unstack(self.refine(stack, self.encode(stack), depth), depth)


def restack(blocks: Tensor) -> Tensor:
    """(B, C, depth, H, W) -> (B * depth, C, H, W), the channels last in memory."""
    return blocks.transpose(1, 2).flatten(0, 1).contiguous(memory_format=torch.channels_last)


def unstack(stack: Tensor, depth: int) -> Tensor:
    """(B * depth, C, H, W) -> (B, C, depth, H, W)."""
    blocks: Tensor = stack.unflatten(0, (-1, depth)).transpose(1, 2)
    return blocks
