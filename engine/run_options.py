"""What is a run to do with a volume?"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from fgnet.engine.decoding_crew import Crew
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
        threads: of the decoder, of waterz for its fragments of sections only; all cores by default.
        more_thresholds: further segmentations by the blockwise decoder, in `thresholds/T` inside the output.
        crew: processes that decode block by block, while affinities are still made; threads, afterwards, by default.
        graph: where the blockwise decoder keeps its merge tree; nowhere by default.
        graph_threshold: up to which score it is kept; the highest threshold by default.
        graph_memory: bytes for putting blocks together; a quarter of the machine's memory by default.
        section: whether the middle section is kept in memory, for a picture: 12 bytes for each of its voxels.
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
    more_thresholds: tuple[float, ...] = ()
    crew: Crew | None = None
    graph: Path | None = None
    graph_threshold: float | None = None
    graph_memory: int | None = None
    section: bool = False

    def __post_init__(self) -> None:
        """Refuse thresholds that no score can reach, and what only the blockwise decoder does.

        Raises:
            DecodingError: one is not from 0 to 1, given twice or above that of the merge tree, or another decoder is
                to do what it does not.
        """
        for threshold in (*self.thresholds, *([] if self.graph_threshold is None else [self.graph_threshold])):
            if not 0 <= threshold <= 1:
                raise DecodingError(f"it is {threshold}", where="threshold", remedy="give a score from 0 to 1")
        if len(set(self.thresholds)) < len(self.thresholds):
            raise DecodingError(f"they are {self.thresholds}", where="thresholds", remedy="give each once")
        if self.graph_threshold is not None and self.graph is None:
            raise DecodingError("no merge tree is kept", where="graph threshold", remedy="give --save-graph")
        if self.tree_threshold < max(self.thresholds):
            raise DecodingError(
                f"{self.tree_threshold} is below the threshold {max(self.thresholds)}",
                where="graph threshold",
                remedy="give at least the highest threshold",
            )
        only = {"several thresholds": self.more_thresholds, "workers": self.crew, "a merge tree": self.graph}
        if self.decoder != "blockwise" and (asked := [name for name, value in only.items() if value]):
            raise DecodingError(
                f"{', '.join(asked)}: {self.decoder} does not do that", where="decoder", remedy="--decoder blockwise"
            )

    @property
    def thresholds(self) -> tuple[float, ...]:
        """Of all segmentations, that of the output itself first."""
        return (self.threshold, *self.more_thresholds)

    @property
    def tree_threshold(self) -> float:
        """Up to which score the blockwise decoder looks for merges."""
        return max(self.thresholds) if self.graph_threshold is None else self.graph_threshold

    @property
    def scoring(self) -> str | None:
        """How contacts are scored, "quantile" or "mean"; None without a decoder."""
        if self.decoder == "none":
            return None
        return "mean" if self.decoder == "blockwise" else self.decoding.scoring

    @property
    def wanted(self) -> dict[str, Any]:
        """What is made of the affinities, as plain data."""
        if self.decoder == "none":
            return {"decoder": self.decoder}
        blockwise = {"fragments": self.decoding.fragments, "scoring": self.scoring}
        scoring = asdict(self.decoding) if self.decoder == "waterz" else blockwise
        return {
            "decoder": self.decoder,
            "threshold": self.threshold,
            **({"more thresholds": list(self.more_thresholds)} if self.more_thresholds else {}),
            **scoring,
            "min_size": self.min_size,
            "save_affinities": self.save_affinities,
        }
