"""What does labelling need to know of a merge tree, and where is it in a sidecar?"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from fgnet.postproc.blockwise_levels import top_level
from fgnet.postproc.blockwise_merge import WHOLE
from fgnet.postproc.blockwise_plan import BlockPlan
from fgnet.postproc.blockwise_steps import load_fragments, pieces_step
from fgnet.postproc.merge_tree import Ints, Merges
from fgnet.postproc.sidecar import Sidecar
from fgnet.volumes.errors import DecodingError
from fgnet.volumes.geometry import Triple


@dataclass(frozen=True, eq=False)
class Branch:
    """What happened within a unit: its nodes, and the merges between them.

    Attributes:
        count: number of nodes. Those of a block are its fragments and background, 0; those of other units stand for the
            open segments of their members.
        merges: between nodes.
        opened: int64, the node of each open segment.
        starts: int64 (members + 1), where the open segments of each member begin in `nodes`.
        nodes: int64, the node of each open segment of the members.
    """

    count: int
    merges: Merges
    opened: Ints
    starts: Ints
    nodes: Ints


class MergeTree(Protocol):
    """Merges of a volume, block by block and over blocks; read from several threads, picklable."""

    @property
    def plan(self) -> BlockPlan:
        """The blocks; `plan.options.highest` is the highest threshold that can be asked for."""

    def describe(self) -> str:
        """What tells the tree from any other."""

    @property
    def levels(self) -> tuple[int, ...]:
        """The levels that were gone through, from 0 to the top."""

    def branch(self, level: int, unit: Triple) -> Branch:
        """What happened within a unit of one of these levels."""

    def extents(self, block: Triple) -> tuple[Ints, Ints]:
        """int64 (fragments + 1): voxels of a block's fragments, 0 for background; numbers of their first voxels."""

    def fragments(self, block: Triple) -> npt.NDArray[np.uint32]:
        """(z, y, x) fragments of a block, 1, 2, ... in the order of first voxels; 0 is background."""


@dataclass(frozen=True)
class SidecarTree:
    """The merge tree that is in a sidecar once its units are merged.

    Attributes:
        plan: of the volume.
        sidecar: that of this plan.
    """

    plan: BlockPlan
    sidecar: Sidecar

    def describe(self) -> str:
        """What tells the tree from any other: what its sidecar is bound to."""
        return "labels of " + self.sidecar.claimed()

    @cached_property
    def levels(self) -> tuple[int, ...]:
        """The levels that were gone through, from 0 to the top."""
        top = top_level(self.plan)
        below = int(self.sidecar.load(pieces_step(top), WHOLE, "below")["below"])
        return (*range(below + 1), top)

    def branch(self, level: int, unit: Triple) -> Branch:
        """What happened within a unit of one of these levels."""
        over_blocks = ("starts", "nodes") if level else ()
        piece = self.sidecar.load(pieces_step(level), unit, "many", "merges", "open", *over_blocks)
        none = np.empty(0, np.int64)
        merges, own = Merges(*piece["merges"]), (piece.get("starts", none), piece.get("nodes", none))
        return Branch(int(piece["many"][0]), merges, piece["open"], *own)

    def extents(self, block: Triple) -> tuple[Ints, Ints]:
        """Voxels and first voxels of a block's fragments."""
        piece = self.sidecar.load(pieces_step(0), block, "voxels", "first")
        return piece["voxels"], piece["first"]

    def fragments(self, block: Triple) -> npt.NDArray[np.uint32]:
        """(z, y, x) fragments of a block."""
        return load_fragments(self.sidecar, block)


def open_tree(folder: Path) -> SidecarTree:
    """The merge tree that a decoding has left in its folder.

    Raises:
        DecodingError: if there is none, or it is not finished.
    """
    sidecar = Sidecar(Path(folder))
    tree = SidecarTree(BlockPlan.from_description(sidecar.claimed()), sidecar)
    if not sidecar.has(pieces_step(top_level(tree.plan)), WHOLE):
        raise DecodingError(
            "its blocks are not merged yet", where=folder, remedy="let its decoding come to its end first"
        )
    return tree
