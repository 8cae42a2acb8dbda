"""A decoding as plain data, so that any process that sees its files can take part: what is read, done and written."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import zarr

from fgnet.engine.chunk_waiting import FinishedChunks
from fgnet.engine.masked_affinities import MaskedAffinities, StoredMask
from fgnet.engine.run_plan import RunPlan
from fgnet.postproc.blockwise_graph import load_graph
from fgnet.postproc.blockwise_labels import Labelling
from fgnet.postproc.blockwise_plan import AffinitySource, ArrayAffinities, BlockPlan, BlockwiseOptions
from fgnet.postproc.blockwise_stages import Stage, label_stages, stages
from fgnet.postproc.sidecar import Sidecar
from fgnet.postproc.watershed import WatershedOptions
from fgnet.volumes.geometry import Box, Triple
from fgnet.volumes.multiscale_writer import MultiscaleWriter
from fgnet.volumes.space import Space
from fgnet.volumes.writing import begun_as, reopen


@dataclass(frozen=True)
class StoredAffinities:
    """Affinities of a Zarr array; waits for those that are still being made.

    Attributes:
        path: of the array, (3, z, y, x) uint8.
        chunks: which chunks are finished; None where all are.
    """

    path: Path
    chunks: FinishedChunks | None = None

    @cached_property
    def _array(self) -> ArrayAffinities:
        return ArrayAffinities(zarr.open_array(str(self.path), mode="r"))

    @property
    def shape(self) -> Triple:
        """(z, y, x) of the volume."""
        return self._array.shape

    def affinities(self, box: Box) -> npt.NDArray[np.uint8]:
        """(3, z, y, x) uint8 affinities of a box, once all of it is there.

        Raises:
            DecodingError: the run that makes them has ended without them.
        """
        if self.chunks is not None:
            self.chunks.wait_for(box)
        return self._array.affinities(box)


@dataclass(frozen=True)
class StoredLabels:
    """A segmentation that was created and is not finished, as a sink.

    Attributes:
        path: of the Zarr store.
        group: of the segmentation inside it; None for its root.
        shape: (z, y, x).
    """

    path: Path
    group: str | None
    shape: Triple

    @cached_property
    def _writer(self) -> MultiscaleWriter:
        # Where it lies in the world is written by whoever finishes it.
        return reopen(
            self.path, group=self.group, shape=self.shape, dtype=np.uint64, axes="zyx", space=Space((1, 1, 1)),
            method="mode",
        )  # fmt: skip

    def __call__(self, box: Box, labels: npt.NDArray[np.uint64]) -> None:
        """Write a box, and wait for the disk; what failed once may be tried again."""
        try:
            self._writer.write(box, labels)
            self._writer.sync(box)
        except BaseException:
            # A writer that has failed takes no more.
            vars(self).pop("_writer", None)
            raise

    def name(self) -> str:
        """What tells it from any other output, a later one at the same place included."""
        place = (self.path / (self.group or "")).resolve()
        return f"{place} {begun_as(self.path, group=self.group)}"


@dataclass(frozen=True)
class DecodingJob:
    """What is decoded, and how.

    Attributes:
        folder: of the sidecar.
        outputs: segmentations to write, one per threshold of the options, created by whoever made the job.
        names: of the outputs, as `StoredLabels.name` gave them where the job was made.
        options: of the decoder.
        affinities: path of the Zarr array; None where a merge tree is decoded.
        graph: path of the merge tree; None where affinities are decoded.
        identity: what tells the affinities from others.
        memory: bytes for putting blocks together; None for no limit.
        output: of the run that still makes the affinities, beside which its journal lies; None where they are there.
        run: plan of that run.
        mask: of that run; a merge tree knows of no masked voxels, and needs none.
    """

    folder: Path
    outputs: tuple[StoredLabels, ...]
    names: tuple[str, ...]
    options: BlockwiseOptions
    affinities: Path | None = None
    graph: Path | None = None
    identity: str = ""
    memory: int | None = None
    output: Path | None = None
    run: RunPlan | None = None
    mask: StoredMask | None = None

    @cached_property
    def source(self) -> AffinitySource:
        """The affinities."""
        assert self.affinities is not None  # noqa: S101 - asked for only where there are some
        chunks = None if self.output is None or self.run is None else FinishedChunks(self.output, self.run)
        stored = StoredAffinities(self.affinities, chunks)
        return stored if self.mask is None else MaskedAffinities(stored, self.mask)

    @cached_property
    def plan(self) -> BlockPlan:
        """The blocks."""
        return load_graph(self.graph).plan if self.graph else BlockPlan(self.source.shape, self.options)

    @property
    def sidecar(self) -> Sidecar:
        """The folder of intermediate results."""
        return Sidecar(self.folder)

    @cached_property
    def labellings(self) -> tuple[Labelling, ...]:
        """What each output is of."""
        return tuple(Labelling(threshold, self.options.min_size) for threshold in self.options.thresholds)

    def describe(self) -> str:
        """What the sidecar is bound to."""
        return load_graph(self.graph).describe() if self.graph else self.plan.describe(self.identity)

    def stages(self) -> list[Stage]:
        """All that is to be done, in order.

        Raises:
            DecodingError: there is no merge tree, or it ends below a threshold.
        """
        if self.graph is not None:
            tree = load_graph(self.graph)
            return label_stages(tree, self.sidecar, self.labellings, self.outputs, outputs=self.names)
        return stages(self.plan, self.sidecar, self.source, self.outputs, memory=self.memory, outputs=self.names)

    def to_json(self) -> str:
        """As text."""
        content: dict[str, Any] = {
            "folder": str(self.folder.resolve()),
            "outputs": [[str(output.path.resolve()), output.group, output.shape] for output in self.outputs],
            "names": self.names,
            "options": asdict(self.options),
            "affinities": _text(self.affinities),
            "graph": _text(self.graph),
            "identity": self.identity,
            "memory": self.memory,
            "output": _text(self.output),
            "run": None if self.run is None else self.run.to_dict(),
            "mask": None if self.mask is None else self.mask.to_dict(),
        }
        return json.dumps(content)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The job that `to_json` gave."""
        content = json.loads(text)
        options = content["options"]
        watershed = WatershedOptions(**options.pop("watershed"))
        return cls(
            folder=Path(content["folder"]),
            outputs=tuple(StoredLabels(Path(path), group, tuple(shape)) for path, group, shape in content["outputs"]),
            names=tuple(content["names"]),
            options=BlockwiseOptions(**options, watershed=watershed),
            affinities=_path(content["affinities"]),
            graph=_path(content["graph"]),
            identity=content["identity"],
            memory=content["memory"],
            output=_path(content["output"]),
            run=None if content["run"] is None else RunPlan.from_dict(content["run"]),
            mask=None if content["mask"] is None else StoredMask.from_dict(content["mask"]),
        )


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path.resolve())


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)
