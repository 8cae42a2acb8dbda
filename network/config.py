"""What makes one FGNet differ from another: a frozen configuration that travels in the checkpoint."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Self, get_args

from fgnet.volumes.errors import CheckpointError

EncoderName = Literal["nano", "tiny", "small", "base_plus", "large"]
Modules = Literal["full", "without_sam2", "without_fge", "without_fga"]
Guidance = Literal["fga", "se", "cbam", "eca", "cross_attention"]
Adaptation = Literal["frozen", "fine_tuned"]

ENCODERS: tuple[EncoderName, ...] = get_args(EncoderName)
GUIDANCES: tuple[Guidance, ...] = get_args(Guidance)
MODULES: tuple[Modules, ...] = get_args(Modules)

# The FPN level of stride 4 is S_1; depth 5 also reads the level of stride 32, which SAM2 itself drops.
ENCODER_STRIDES = (4, 8, 16, 32)


@dataclass(frozen=True)
class FGNetConfig:
    """One FGNet (arXiv 2511.13063, section 3); the ablations of the paper are one value each.

    Attributes:
        encoder: the SAM2 image encoder's variant, or `nano` (ours, trained from scratch).
        input_scale: bilinear enlargement of each section before the encoder (1, 2 or 4).
        widths: channels of G_0, G_1, ... ; as many as `depth`, finest first.
        depth: levels of the fine-grained encoder (Table 7: 3, 4 or 5).
        modules: the whole network, or without one of its parts (Table 5).
        guidance: how S_i guides G_i (Table 6).
        adaptation: whether the encoder's weights are trained (Table 4).
        finest_depth_kernel: extent in z of the depthwise kernels at full resolution (1 or 3).
        context_sections: neighbouring sections on either side given to the stem as channels (0 as in the paper, or 1):
            what a 3x3x3 kernel at full resolution would see, at a fraction of its cost.
        finest_blocks: DW blocks at full resolution in the refined decoder.
        expansion: hidden channels of a DW block per output channel.
        finest_expansion: the same at full resolution, where most of the voxels are.
        patch: the block (z, y, x) in voxels that the network is made for.
    """

    encoder: EncoderName = "tiny"
    input_scale: int = 2
    widths: tuple[int, ...] = (32, 64, 96, 128)
    depth: int = 4
    modules: Modules = "full"
    guidance: Guidance = "fga"
    adaptation: Adaptation = "fine_tuned"
    finest_depth_kernel: int = 1
    context_sections: int = 0
    finest_blocks: int = 1
    expansion: int = 2
    finest_expansion: int = 2
    patch: tuple[int, int, int] = (16, 256, 256)

    def __post_init__(self) -> None:
        """Refuse what cannot be built, naming the field.

        Raises:
            CheckpointError: a value outside its range.
        """
        choices: dict[str, tuple[object, ...]] = {
            "encoder": ENCODERS,
            "input_scale": (1, 2, 4),
            "depth": (3, 4, 5),
            "modules": MODULES,
            "guidance": GUIDANCES,
            "adaptation": get_args(Adaptation),
            "finest_depth_kernel": (1, 3),
            "context_sections": (0, 1),
            "finest_blocks": (1, 2, 3, 4),
            "expansion": (1, 2, 3, 4, 6),
            "finest_expansion": (1, 2, 3, 4, 6),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise CheckpointError(
                    f"{name} is {getattr(self, name)!r}",
                    where="network configuration",
                    remedy=f"one of {', '.join(map(str, allowed))}",
                )
        if len(self.widths) != self.depth or min(self.widths) < 1:
            raise CheckpointError(
                f"widths {self.widths} do not fit depth {self.depth}",
                where="network configuration",
                remedy="give one positive width per level",
            )
        # A checkpoint may bring any number of sides.
        patch: tuple[int, ...] = tuple(self.patch)
        multiple = self.section_multiple
        if len(patch) != 3 or min(patch) < 1 or any(side % multiple for side in patch[1:]):
            raise CheckpointError(
                f"patch {patch}: the network halves y and x down to a stride of {multiple}",
                where="network configuration",
                remedy=f"give (z, y, x) with y and x as multiples of {multiple}",
            )

    @property
    def level_strides(self) -> tuple[int, ...]:
        """In-plane stride of G_0, G_1, ... in voxels of the input."""
        return (1, *(stride // self.input_scale for stride in ENCODER_STRIDES[: self.depth - 1]))

    @property
    def section_multiple(self) -> int:
        """What y and x of every section must be a multiple of, in voxels of the input."""
        if self.modules == "without_sam2":
            return self.level_strides[-1]
        # The trunk halves its tokens down to a stride of 32 whichever levels are read.
        return ENCODER_STRIDES[-1] // self.input_scale

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a checkpoint or a manifest."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """The inverse of `to_dict`.

        Raises:
            CheckpointError: an unknown field, or a value outside its range.
        """
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(data) - known):
            raise CheckpointError(
                f"unknown fields {', '.join(unknown)}",
                where="network configuration",
                remedy="the checkpoint was written by another version of fgnet",
            )
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in data.items()
        }
        return cls(**values)


def preset(encoder: EncoderName, **changes: Any) -> FGNetConfig:
    """The default configuration for an encoder: `nano` is light enough to train on a CPU."""
    if encoder == "nano":
        defaults: dict[str, Any] = {
            "input_scale": 1,
            "widths": (16, 48, 64, 96),
            "context_sections": 1,
            "finest_expansion": 1,
        }
    else:
        defaults = {}
    merged = defaults | changes
    if "depth" in merged and "widths" not in changes:
        widths = (*merged.get("widths", (32, 64, 96, 128)), 128 if encoder == "nano" else 160)
        merged["widths"] = widths[: merged["depth"]]
    return FGNetConfig(encoder=encoder, **merged)
