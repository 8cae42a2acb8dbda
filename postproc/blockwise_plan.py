"""How is a volume of affinities divided into blocks, and what is asked of their decoder?"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from fgnet.postproc.agglomeration import affinity_floor
from fgnet.postproc.watershed import WatershedOptions
from fgnet.volumes.errors import DecodingError, GeometryError
from fgnet.volumes.geometry import AXES, Box, Triple, as_triple

FORMAT = 5
"""Of the files that the steps leave for each other."""

_ENOUGH_BLOCKS = 8
"""Of so many large blocks, a few workers get equal shares."""


class AffinitySource(Protocol):
    """Where affinities come from. With worker processes it must be picklable; it is read from several threads."""

    @property
    def shape(self) -> Triple:
        """(z, y, x) of the volume."""

    def affinities(self, box: Box) -> npt.NDArray[np.uint8]:
        """(3, z, y, x) uint8 affinities of a box inside the volume, 255 is 1.0."""


@runtime_checkable
class MaskedSource(AffinitySource, Protocol):
    """A source that also knows where there is tissue; what is none is background, whatever the blocks."""

    def tissue(self, box: Box) -> npt.NDArray[np.bool_]:
        """(z, y, x) of a box inside the volume, True in tissue."""


class Sink(Protocol):
    """Where labels go. A box may be written twice, with the same labels; boxes do not overlap."""

    def __call__(self, box: Box, labels: npt.NDArray[np.uint64]) -> None:
        """Store the (z, y, x) uint64 labels of a box of the volume."""


@dataclass(frozen=True, eq=False)
class ArrayAffinities:
    """Affinities of an array in memory, or of one that is read as it is indexed (Zarr, HDF5).

    Args:
        array: (3, z, y, x) uint8.

    Raises:
        DecodingError: if the channels or the dtype are others.
    """

    array: Any

    def __post_init__(self) -> None:
        shape, dtype = tuple(self.array.shape), self.array.dtype
        if len(shape) != 4 or shape[0] != 3 or math.prod(shape) == 0:
            raise DecodingError(
                f"affinities have shape {shape}", remedy="give three channels (z, y, x) over a volume; of more, three"
            )
        if dtype != np.uint8:
            raise DecodingError(f"affinities have dtype {dtype}", remedy="round them to uint8, 255 is 1.0")

    @property
    def shape(self) -> Triple:
        """(z, y, x) of the volume."""
        return as_triple(self.array.shape[1:], "shape")

    def affinities(self, box: Box) -> npt.NDArray[np.uint8]:
        """(3, z, y, x) uint8 affinities of a box."""
        return np.ascontiguousarray(self.array[(slice(None), *box.slices)])


@dataclass(frozen=True, eq=False)
class ArraySink:
    """Writes labels into an array: in memory, for threads, or a Zarr array, whose chunks no two blocks may share.

    Args:
        array: (z, y, x) uint64.
    """

    array: Any

    def __call__(self, box: Box, labels: npt.NDArray[np.uint64]) -> None:
        """Store the (z, y, x) uint64 labels of a box."""
        self.array[box.slices] = labels


@dataclass(frozen=True)
class BlockwiseOptions:
    """How affinities are decoded; the block and the halo change time and memory, never the result.

    Attributes:
        thresholds: scores in [0, 1], each once: contacts merge while 1 - mean affinity < threshold. Each gives a
            segmentation; all of them are read from the same merges.
        block: voxels (z, y, x) that are decoded at a time, without the halo. Takes 40 to 90 bytes of memory per voxel;
            `fitting_block` chooses it for a volume.
        halo: voxels (z, y, x) read around a block, or with sections around its tiles; None for as few as are enough,
            `watershed.halo`.
        min_size: segments of fewer voxels become background; 0 and 1 keep everything.
        watershed: which affinities are followed; plateaus need a limit.
        tree_threshold: up to which score merges are looked for, so that a segmentation at any threshold up to it can
            be had later without doing so again; None for the highest of the thresholds. More of it takes more time.

    Raises:
        DecodingError: if there is no threshold, one is above that of the tree, or a value is out of range.
        GeometryError: if the block is empty or the halo too narrow.
    """

    thresholds: tuple[float, ...] = (0.5,)
    block: Triple = (128, 256, 256)
    halo: Triple | None = None
    min_size: int = 0
    watershed: WatershedOptions = field(default_factory=WatershedOptions)
    tree_threshold: float | None = None

    @property
    def highest(self) -> float:
        """Up to which score merges are looked for."""
        return max(self.thresholds) if self.tree_threshold is None else self.tree_threshold

    def __post_init__(self) -> None:
        object.__setattr__(self, "thresholds", tuple(float(threshold) for threshold in self.thresholds))
        object.__setattr__(self, "block", as_triple(self.block, "block"))
        for threshold in self.thresholds:
            affinity_floor(threshold)
        if not self.thresholds or len(set(self.thresholds)) != len(self.thresholds):
            raise DecodingError(
                f"they are {self.thresholds}", where="thresholds", remedy="give at least one, each once"
            )
        for threshold in self.thresholds:
            require_within(threshold, self.highest)
        if self.min_size < 0:
            raise DecodingError(f"it is {self.min_size}", where="min_size", remedy="give 0 or more voxels")
        if min(self.block) < 1:
            raise GeometryError(f"it is {self.block}", where="block", remedy="every axis needs at least 1 voxel")
        least = self.watershed.halo
        if self.halo is None:
            object.__setattr__(self, "halo", least)
            return
        object.__setattr__(self, "halo", as_triple(self.halo, "halo"))
        if any(given < needed for given, needed in zip(self.halo, least, strict=True)):
            raise GeometryError(
                f"it is {self.halo}",
                where="halo",
                remedy=f"this watershed needs at least {least} voxels",
            )


def fitting_block(shape: Triple, watershed: WatershedOptions) -> Triple:
    """The voxels (z, y, x) of a block for a volume: as many as fit into 1 GB, as long as these keep a few workers busy.

    Large blocks have less halo, and leave less for the steps that put them together; sections have no halo along z. It
    depends on nothing but the volume and the watershed, so that a run can be continued by other workers, on other
    machines.

    Args:
        shape: (z, y, x) of the volume.
        watershed: that of sections takes half as much memory.
    """
    depth, height, width = BlockwiseOptions.block
    large = (depth // 2, 2 * height, 2 * width)
    many = math.prod(-(-n // b) for n, b in zip(shape, large, strict=True))
    return large if watershed.flow == "sections" and many >= _ENOUGH_BLOCKS else BlockwiseOptions.block


def require_within(threshold: float, tree_threshold: float) -> None:
    """Check that a tree holds all merges up to a threshold.

    Raises:
        DecodingError: if it does not, or one of the two is out of range.
    """
    if affinity_floor(threshold) < affinity_floor(tree_threshold):
        raise DecodingError(
            f"the merge tree ends at {tree_threshold}, below {threshold}",
            where="thresholds",
            remedy=f"choose thresholds up to {tree_threshold}, or decode again with --graph-threshold {threshold}",
        )


@dataclass(frozen=True)
class BlockPlan:
    """The blocks of a volume, named by their place (z, y, x) among them.

    Args:
        shape: (z, y, x) of the volume.
        options: of the decoder.

    Raises:
        GeometryError: if the volume is empty, or so large that its faces cannot be numbered with 63 bits.
    """

    shape: Triple
    options: BlockwiseOptions

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", as_triple(self.shape, "shape"))
        if min(self.shape) < 1 or 3 * math.prod(self.shape) >= 2**63:
            raise GeometryError(f"a volume of {self.shape} cannot be decoded", where="shape")

    @property
    def counts(self) -> Triple:
        """Number of blocks per axis."""
        return as_triple([-(-n // b) for n, b in zip(self.shape, self.options.block, strict=True)], "blocks")

    def __iter__(self) -> Iterator[Triple]:
        depth, height, width = self.counts
        return itertools.product(range(depth), range(height), range(width))

    def box(self, block: Triple) -> Box:
        """The voxels of a block; at the far border it may be smaller than the others."""
        start = as_triple([i * b for i, b in zip(block, self.options.block, strict=True)], "start")
        return Box(start, start).grow(self.options.block).intersect(Box(start, self.shape))

    def region(self, block: Triple) -> Box:
        """The voxels that are read for a block, inside the volume."""
        box, watershed = self.box(block), self.options.watershed
        more = as_triple(np.subtract(self.options.halo or watershed.halo, watershed.halo).tolist(), "halo")
        return watershed.region(box).grow(more).intersect(Box.from_shape(self.shape))

    def before(self, block: Triple, axis: int) -> Triple | None:
        """The block before a block along an axis; None at the border of the volume."""
        return _moved(block, axis, -1) if block[axis] > 0 else None

    def after(self, block: Triple, axis: int) -> Triple | None:
        """The block after a block along an axis; None at the border of the volume."""
        return _moved(block, axis, 1) if block[axis] + 1 < self.counts[axis] else None

    def voxel_ids(self, box: Box, places: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Numbers in the volume of the voxels at some places in the flat array of a box."""
        own = np.unravel_index(places, box.shape)
        z, y, x = (np.asarray(a, np.int64) + first for a, first in zip(own, box.start, strict=True))
        return np.asarray((z * self.shape[1] + y) * self.shape[2] + x, np.int64)

    def number(self, block: Triple) -> int:
        """The place of a block in the order in which the plan gives them."""
        return (block[0] * self.counts[1] + block[1]) * self.counts[2] + block[2]

    def describe(self, identity: str) -> str:
        """JSON of all that fragments and merges depend on, with the identity of the affinities.

        Neither the thresholds nor the minimum size of segmentations are among it, as long as the tree is the same.
        """
        options = {
            "block": self.options.block,
            "tree_threshold": self.options.highest,
            "watershed": asdict(self.options.watershed),
        }
        content = {"format": FORMAT, "affinities": identity, "axes": AXES, "shape": self.shape, "options": options}
        return json.dumps(content, indent=2) + "\n"

    @staticmethod
    def from_description(text: str) -> BlockPlan:
        """The plan of a description; its threshold is that of the tree.

        Raises:
            DecodingError: if it is no description, or one of another version.
        """
        try:
            content = json.loads(text)
            if content["format"] != FORMAT:
                raise DecodingError(f"the merge tree has format {content['format']}", remedy="decode again")
            options = content["options"]
            watershed = WatershedOptions(**options["watershed"])
            threshold = float(options["tree_threshold"])
            return BlockPlan(content["shape"], BlockwiseOptions((threshold,), options["block"], watershed=watershed))
        except (ValueError, KeyError, TypeError) as error:
            raise DecodingError(f"this describes no merge tree: {error}", remedy="decode again") from error


def _moved(block: Triple, axis: int, step: int) -> Triple:
    return as_triple([i + step * (a == axis) for a, i in enumerate(block)], "block")
