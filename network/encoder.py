"""The SAM2 image encoder, one section at a time, from the `sam2` package."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fgnet.network.config import EncoderName, FGNetConfig
from fgnet.volumes.errors import CheckpointError

# SAM2's own preprocessing: ImageNet mean and standard deviation, here of gray repeated to three channels.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

_CONFIG_FILES = {"tiny": "t", "small": "s", "base_plus": "b+", "large": "l"}

# Windows of 8, 4, 8 and 4 tokens divide the grids of any section whose sides are multiples of 128 voxels (at scale 1):
# no token is padded, and a crop trains the same function as a whole patch.
_NANO: dict[str, Any] = {
    "embed_dim": 32,
    "num_heads": 1,
    "stages": (1, 1, 2, 1),
    "global_att_blocks": (),
    "window_pos_embed_bkg_spatial_size": (7, 7),
    "window_spec": (8, 4, 8, 4),
}
_NANO_CHANNELS = 64


class _NoPosition(nn.Module):
    """Stands for the neck's position encoding, which only SAM2's memory reads."""

    def forward(self, features: Tensor) -> Tensor:
        """The features as they are; the neck returns them as unused positions."""
        return features


def build_image_encoder(variant: EncoderName) -> nn.Module:
    """The image encoder (Hiera trunk and FPN neck) of a SAM2.1 configuration, or our `nano`, without weights."""
    return _build_nano() if variant == "nano" else _build_sam2(variant)


def _build_nano() -> nn.Module:
    from sam2.modeling.backbones.hieradet import Hiera
    from sam2.modeling.backbones.image_encoder import FpnNeck, ImageEncoder

    trunk = Hiera(**_NANO)
    neck = FpnNeck(
        position_encoding=_NoPosition(),
        d_model=_NANO_CHANNELS,
        backbone_channel_list=trunk.channel_list,
        fpn_top_down_levels=[0, 1, 2, 3],
        fpn_interp_model="nearest",
    )
    encoder: nn.Module = ImageEncoder(trunk=trunk, neck=neck, scalp=1)
    # Neuropil has no canonical position: the background embedding stays at zero, whatever the section's size.
    trunk.pos_embed.requires_grad_(False)
    nn.init.trunc_normal_(trunk.pos_embed_window, std=0.02)
    return encoder


def _build_sam2(variant: EncoderName) -> nn.Module:
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    file = resources.files("sam2") / "configs" / "sam2.1" / f"sam2.1_hiera_{_CONFIG_FILES[variant]}.yaml"
    described = instantiate(OmegaConf.create(file.read_text()).model.image_encoder)
    described.neck.position_encoding = _NoPosition()
    encoder: nn.Module = described
    return encoder


class SectionEncoder(nn.Module):
    """Gray sections -> S_1, S_2, S_3 (and S_4 for depth 5), each section on its own.

    Transformation (spec/choices): raw / 255, ImageNet mean and deviation, gray on three channels, bilinear enlargement
    by `input_scale`.
    """

    mean: Tensor
    std: Tensor
    # sam2's ImageEncoder, which is untyped.
    image_encoder: Any

    def __init__(self, config: FGNetConfig) -> None:
        super().__init__()
        self.scale = config.input_scale
        self.image_encoder = build_image_encoder(config.encoder)
        self.levels = config.depth - 1
        # SAM2 drops its coarsest FPN level; depth 5 reads it.
        self.image_encoder.scalp = 4 - max(self.levels, 3)
        self.channels = int(self.image_encoder.neck.d_model)
        self._freeze_unread()
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)

    def _freeze_unread(self) -> None:
        """Leave alone what no S_i depends on: at depth 3, SAM2's last two stages."""
        trunk, neck = self.image_encoder.trunk, self.image_encoder.neck
        coarsest = self.levels - 1
        while coarsest in neck.fpn_top_down_levels and coarsest < len(neck.convs) - 1:
            coarsest += 1
        trunk.blocks[trunk.stage_ends[coarsest] + 1 :].requires_grad_(False)
        # The neck's convolutions stand coarsest first.
        neck.convs[: len(neck.convs) - 1 - coarsest].requires_grad_(False)

    def forward(self, gray: Tensor) -> list[Tensor]:
        """Features of sections.

        Args:
            gray: (N, 1, H, W) float in [0, 1].

        Returns:
            S_i, each (N, channels, s H / stride_i, s W / stride_i), finest first.
        """
        image = gray
        if self.scale > 1:
            image = nn.functional.interpolate(image, scale_factor=self.scale, mode="bilinear", align_corners=False)
        image = (image - self.mean) / self.std
        features: list[Tensor] = self.image_encoder(image)["backbone_fpn"]
        # The trunk's (N, h, w, C) tokens come out of the neck in either layout; the convolutions that follow want one.
        return [level.contiguous(memory_format=torch.channels_last) for level in features[: self.levels]]


def load_sam2_weights(encoder: SectionEncoder, path: Path) -> None:
    """Load the image encoder of an official SAM2 checkpoint (`sam2.1_hiera_tiny.pt`, ...).

    The file is read with `weights_only=True`. The rest of SAM2 (memory, prompts, mask decoder) is not read.

    Raises:
        CheckpointError: unreadable, or keys missing, unknown or of another shape; their names are listed.
    """
    from fgnet.network.checkpoint import read_plain

    content = read_plain(path)
    model = content.get("model", content)
    state = model if isinstance(model, dict) else {}
    prefix = "image_encoder."
    found = {key.removeprefix(prefix): value for key, value in state.items() if str(key).startswith(prefix)}
    if not found:
        raise CheckpointError(
            "no key begins with 'image_encoder.'",
            where=path,
            remedy="give a SAM2 checkpoint such as sam2.1_hiera_tiny.pt",
        )
    load_exactly(encoder.image_encoder, found, where=path)


def load_exactly(module: nn.Module, state: Mapping[str, Any], *, where: Path | None) -> None:
    """`load_state_dict` that leaves the module untouched and lists the keys where they do not fit.

    Args:
        module: what is loaded.
        state: its tensors by name, as some file holds them.
        where: that file.

    Raises:
        CheckpointError: missing or unknown keys, other shapes, or values that are no tensors.
    """
    own = module.state_dict()
    shared = sorted(own.keys() & state.keys())
    tensors = {key: state[key] for key in shared if isinstance(state[key], Tensor)}
    complaints = {
        "missing": sorted(own.keys() - state.keys()),
        "unknown": sorted(map(str, state.keys() - own.keys())),
        "not a tensor": [key for key in shared if key not in tensors],
        "of another shape": [
            f"{key} {tuple(tensor.shape)} for {tuple(own[key].shape)}"
            for key, tensor in tensors.items()
            if tensor.shape != own[key].shape
        ],
    }
    if any(complaints.values()):
        text = "; ".join(f"{len(keys)} {kind}: {', '.join(keys)}" for kind, keys in complaints.items() if keys)
        raise CheckpointError(
            f"the weights do not fit the network: {text}",
            where=where,
            remedy="take the checkpoint of this variant, complete",
        )
    module.load_state_dict(tensors)
