"""How are blocks put together: which units are there on which level, and what is each made of?

Level 0 are the blocks. A unit of level k spans 2^k blocks along each axis, fewer at the far border; the top level is
the one with a single unit, and at least 1. A level between is gone through as long as those below it leave too much to
be put together at once; the units of the highest of them, or the blocks, are then put together at the top.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from fgnet.postproc.blockwise_plan import BlockPlan
from fgnet.volumes.geometry import Box, Triple, as_triple


def top_level(plan: BlockPlan) -> int:
    """The level whose only unit is the volume."""
    return max(1, (max(plan.counts) - 1).bit_length())


def grid(plan: BlockPlan, level: int) -> Triple:
    """Number of units of a level per axis."""
    return as_triple([-(-count // 2**level) for count in plan.counts], "grid")


def span(plan: BlockPlan, level: int, unit: Triple, below: int = 0) -> Box:
    """The units of a lower level, by default the blocks, that a unit is made of."""
    many = 2 ** (level - below)
    start = as_triple([many * place for place in unit], "unit")
    return Box(start, as_triple([first + many for first in start], "stop")).intersect(Box.from_shape(grid(plan, below)))


def places(box: Box) -> Iterator[Triple]:
    """All places in a box, the last axis first."""
    z, y, x = (range(start, stop) for start, stop in zip(box.start, box.stop, strict=True))
    return itertools.product(z, y, x)
