"""What is a run to do with a volume?"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from fgnet.engine.run_plan import DEFAULT_MEMORY
from fgnet.postproc.blending import WeightKind
from fgnet.postproc.waterz_decoder import WaterzOptions
from fgnet.volumes.errors import DecodingError
from fgnet.volumes.geometry import Box, Triple
from fgnet.volumes.output_store import ZarrFormat

Decoder = Literal["waterz", "blockwise", "none"]


@dataclass(frozen=True)
class RunOptions:
    """What a run does with a volume.

    Attributes:
        output: the Zarr store to create; its root is the segmentation, or the affinities without a decoder.
        threshold: agglomeration score, 0 to 1: higher merges more.
        decoder: what makes the segmentation: waterz, with the whole region in memory, or the exact blockwise decoder,
            which scores by mean affinity; "none" stops at affinities.
        decoding: how fragments are made and contacts scored; the blockwise decoder scores by mean, whatever it says.
        stride: voxels between patches (z, y, x); half a patch by default.
        box: the region to segment; everything by default.
        blending: how overlapping patches are weighed.
        min_size: voxels below which a segment becomes background.
        rescale: gray values that become 0 and 255; without it only uint8 is accepted.
        memory: bytes of the device for the sums of unfinished chunks.
        save_affinities: whether they are kept, in `affinities` inside the output.
        zarr_format: 3 (OME-NGFF 0.5) or 2 (0.4).
        overwrite: whether an earlier output is replaced.
        resume: whether a run of this output that did not finish is continued.
        threads: of the blockwise decoder; all cores by default.
    """

    output: Path
    threshold: float
    decoder: Decoder = "waterz"
    decoding: WaterzOptions = field(default_factory=WaterzOptions)
    stride: Triple | None = None
    box: Box | None = None
    blending: WeightKind = "gaussian"
    min_size: int = 0
    rescale: tuple[float, float] | None = None
    memory: int = DEFAULT_MEMORY
    save_affinities: bool = False
    zarr_format: ZarrFormat = 3
    overwrite: bool = False
    resume: bool = False
    threads: int | None = None

    def __post_init__(self) -> None:
        """Refuse a threshold that no score can reach.

        Raises:
            DecodingError: it is not from 0 to 1.
        """
        if not 0 <= self.threshold <= 1:
            raise DecodingError(f"it is {self.threshold}", where="threshold", remedy="give a score from 0 to 1")

    @property
    def wanted(self) -> dict[str, Any]:
        """What is made of the affinities, as plain data."""
        if self.decoder == "none":
            return {"decoder": self.decoder}
        scoring = asdict(self.decoding) if self.decoder == "waterz" else {"fragments": self.decoding.fragments}
        return {
            "decoder": self.decoder,
            "threshold": self.threshold,
            **scoring,
            "min_size": self.min_size,
            "save_affinities": self.save_affinities,
        }
