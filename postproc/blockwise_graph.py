"""How is the merge tree of a decoding kept, so that Zarr alone can read it?

One Zarr group (format 3), with fragments numbered over the whole volume, 1, 2, ... block by block; 0 is background:

- fragments (z, y, x) uint64.
- sizes, first (fragments + 1) int64: voxels of each, and the number of its first voxel, (z * height + y) * width + x.
- links/a, links/b uint64: fragments that are one, cut by the face of a block.
- merges/a, merges/b uint64: fragments whose segments merge; merges/sums, merges/counts int64: sum of the uint8
  affinities of the faces between the two segments, and number of these faces.
- blocks/fragments, blocks/merges (blocks + 1) int64: how many fragments and merges there are in the blocks before each,
  in the order z, y, x; later merges are over blocks.

A segmentation at a threshold is what links and those merges connect that have 1 - sums / (255 * counts) < threshold,
for any threshold up to that of the tree. Attributes tell it, the other options, what the
affinities were, and a hash of all that.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import ZstdCodec

from fgnet.postproc.blockwise_levels import grid, places, top_level
from fgnet.postproc.blockwise_plan import BlockPlan
from fgnet.postproc.blockwise_steps import across, pieces_step
from fgnet.postproc.blockwise_tree import Branch, SidecarTree
from fgnet.postproc.merge_tree import Ints, Merges, components
from fgnet.volumes.durability import put_in_place
from fgnet.volumes.errors import DecodingError
from fgnet.volumes.geometry import AXES, Box, Triple

FORMAT = 1
"""Of the group's layout; its attribute `fgnet_merge_tree`."""

_ROWS = 1 << 18
"""Entries of a table that are compressed together."""

_MERGES = {"a": "uint64", "b": "uint64", "sums": "int64", "counts": "int64"}


def save_graph(tree: SidecarTree, path: Path, *, attributes: Mapping[str, Any] | None = None) -> None:
    """Keep the merge tree of a decoding; memory is that of one block, or of what is merged over blocks.

    Args:
        tree: `blockwise_tree.open_tree` of the decoding's folder.
        path: of the Zarr group, which appears once it is whole. Until then it lies beside it by a name of this
            decoding's own, which only one process at a time may be keeping there.
        attributes: plain data to be kept with it.

    Raises:
        DecodingError: if the path exists or cannot be written, or a file of the tree cannot be read.
    """
    path = Path(path)
    if path.exists():
        raise DecodingError("it exists already", where=path, remedy="choose another path, or remove it")
    part = _part(tree, path)
    try:
        # What a kill has left.
        shutil.rmtree(part, ignore_errors=True)
        try:
            _fill(tree, part, attributes or {})
            put_in_place(part, path)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    except OSError as error:
        raise DecodingError(
            f"it cannot be written: {error.strerror or error}",
            where=path,
            remedy="free some space, or choose another path",
        ) from error


def forget_unsaved(tree: SidecarTree, path: Path) -> None:
    """Remove what `save_graph` has left where it was killed."""
    shutil.rmtree(_part(tree, Path(path)), ignore_errors=True)


def _part(tree: SidecarTree, path: Path) -> Path:
    """Where a tree lies until it is whole: not where another decoding puts its own for the same path."""
    decoding = hashlib.sha256(str(tree.sidecar.folder.resolve()).encode()).hexdigest()[:16]
    return path.with_name(f"{path.name}.{decoding}.part")


def _fill(tree: SidecarTree, path: Path, further: Mapping[str, Any]) -> None:
    plan, description = tree.plan, tree.sidecar.claimed()
    blocks = list(plan)
    many = np.array([tree.sidecar.load(pieces_step(0), block, "many")["many"] for block in blocks])
    # Node 0 of a block is background.
    before = np.concatenate([[0], np.cumsum(many[:, 0] - 1)])
    attributes = {
        **further,
        "fgnet_merge_tree": FORMAT,
        "plan": json.loads(description),
        "tree_threshold": plan.options.highest,
    }
    group = zarr.create_group(path, attributes=attributes)
    digest = hashlib.sha256(description.encode())
    chunks = tuple(_chunk(min(a, b)) for a, b in zip(plan.options.block, plan.shape, strict=True))
    fragments = group.create_array(
        "fragments", shape=plan.shape, chunks=chunks, dtype="uint64", compressors=ZstdCodec(level=3)
    )
    sizes, first = (_table(group, name, "int64") for name in ("sizes", "first"))
    merges = {name: _table(group.require_group("merges"), name, dtype) for name, dtype in _MERGES.items()}
    links = {name: _table(group.require_group("links"), name, "uint64") for name in "ab"}
    for array in (sizes, first):
        array.append(np.zeros(1, np.int64))
    for i, block in enumerate(blocks):
        own = tree.fragments(block).astype(np.uint64)
        own[own > 0] += np.uint64(before[i])
        fragments[plan.box(block).slices] = own
        for array, values in zip((sizes, first), tree.extents(block), strict=True):
            array.append(values[1:])
            digest.update(values.tobytes())
        a, b, *scores = tree.branch(0, block).merges.columns
        _append(merges, a + before[i], b + before[i], *scores)
        digest.update(np.stack(scores).tobytes())
        _append_links(plan, tree, block, before, links)
    for level in tree.levels[1:]:
        for unit in places(Box.from_shape(grid(plan, level))):
            references = tree.sidecar.load(pieces_step(level), unit, "references")["references"]
            ids = before[references >> 32] + (references & 0xFFFFFFFF)
            a, b, *scores = tree.branch(level, unit).merges.columns
            _append(merges, ids[a], ids[b], *scores)
    own_merges = np.concatenate([[0], np.cumsum(many[:, 3])])
    for name, values in (("fragments", before), ("merges", own_merges)):
        _table(group.require_group("blocks"), name, "int64").append(values)
    group.attrs["identity"] = digest.hexdigest()


def _append_links(
    plan: BlockPlan, tree: SidecarTree, block: Triple, before: Ints, links: dict[str, zarr.Array[Any]]
) -> None:
    here = tree.sidecar.load(pieces_step(0), block, "open")["open"] + before[plan.number(block)]
    for axis, name in enumerate(AXES):
        neighbour = plan.before(block, axis)
        if neighbour is not None:
            there = tree.sidecar.load(pieces_step(0), neighbour, "open")["open"] + before[plan.number(neighbour)]
            a, b = across(plan, block, tree.sidecar, f"links_{name}")[f"links_{name}"]
            _append(links, there[a], here[b])


def _append(tables: dict[str, zarr.Array[Any]], *columns: Ints) -> None:
    for table, column in zip(tables.values(), columns, strict=True):
        table.append(column.astype(table.dtype))


def _table(group: zarr.Group, name: str, dtype: str) -> zarr.Array[Any]:
    return group.create_array(name, shape=(0,), chunks=(_ROWS,), dtype=dtype, compressors=ZstdCodec(level=3))


def _chunk(extent: int) -> int:
    """A chunk that divides a block, if there is one of a good size, so that blocks share none."""
    return next((size for size in range(min(extent, 128), 31, -1) if extent % size == 0), extent)


@dataclass(frozen=True)
class SavedTree:
    """The merge tree in a Zarr group of `save_graph`; what is merged over blocks is held in memory.

    Attributes:
        path: of the group.
        plan: of the volume.
    """

    path: Path
    plan: BlockPlan

    def __reduce__(self) -> tuple[type[SavedTree], tuple[Path, BlockPlan]]:
        return SavedTree, (self.path, self.plan)

    @cached_property
    def group(self) -> zarr.Group:
        """The group, for reading."""
        return zarr.open_group(self.path, mode="r")

    def describe(self) -> str:
        """What tells the tree from any other."""
        return f"labels of the merge tree {self.group.attrs['identity']}\n"

    @property
    def levels(self) -> tuple[int, ...]:
        """Blocks, and the whole volume."""
        return 0, top_level(self.plan)

    def _array(self, name: str) -> zarr.Array[Any]:
        array = self.group[name]
        if not isinstance(array, zarr.Array):
            raise DecodingError("it is no array", where=self.path / name, remedy="keep the merge tree again")
        return array

    def read(self, name: str, start: int = 0, stop: int | None = None) -> npt.NDArray[Any]:
        """Entries of a table."""
        return np.asarray(self._array(name)[start:stop])

    @cached_property
    def before(self) -> Ints:
        """int64 (blocks + 1): how many fragments there are in the blocks before each."""
        return self.read("blocks/fragments")

    @cached_property
    def _over_blocks(self) -> tuple[Ints, Branch]:
        """The fragments that take part in what happens over blocks, in increasing order; and what happens."""
        later = int(self.read("blocks/merges")[-1])
        links = np.stack([self.read(f"links/{name}").astype(np.int64) for name in "ab"])
        a, b, sums, counts = (self.read(f"merges/{name}", later).astype(np.int64) for name in _MERGES)
        opened = np.unique(np.concatenate([*links, a, b]))
        count, nodes = components(opened.size, np.searchsorted(opened, links))
        merges = Merges(nodes[np.searchsorted(opened, a)], nodes[np.searchsorted(opened, b)], sums, counts)
        # Fragments of block i are numbered from before[i] + 1 to before[i + 1].
        starts = np.searchsorted(opened, self.before, side="right")
        return opened, Branch(count, merges, np.empty(0, np.int64), starts, nodes)

    def branch(self, level: int, unit: Triple) -> Branch:
        """What happened within a block, or over blocks."""
        opened, over_blocks = self._over_blocks
        if level:
            return over_blocks
        i, none = self.plan.number(unit), np.empty(0, np.int64)
        fragments, (start, stop) = self.before[i : i + 2], self.read("blocks/merges", i, i + 2)
        a, b, sums, counts = (self.read(f"merges/{name}", start, stop).astype(np.int64) for name in _MERGES)
        own = opened[slice(*over_blocks.starts[i : i + 2])] - fragments[0]
        merges = Merges(a - fragments[0], b - fragments[0], sums, counts)
        return Branch(int(fragments[1] - fragments[0]) + 1, merges, own, none, none)

    def extents(self, block: Triple) -> tuple[Ints, Ints]:
        """Voxels and first voxels of a block's fragments."""
        start, stop = self.before[self.plan.number(block) :][:2] + 1
        return np.append(0, self.read("sizes", start, stop)), np.append(0, self.read("first", start, stop))

    def fragments(self, block: Triple) -> npt.NDArray[np.uint32]:
        """(z, y, x) fragments of a block, numbered within it."""
        ids = np.asarray(self._array("fragments")[self.plan.box(block).slices])
        return np.where(ids > 0, ids - np.uint64(self.before[self.plan.number(block)]), 0).astype(np.uint32)


def is_graph(path: Path) -> bool:
    """Whether there is a merge tree that `save_graph` has kept, of any version."""
    try:
        return "fgnet_merge_tree" in zarr.open_group(path, mode="r").attrs
    except (OSError, ValueError, KeyError):
        return False


def graph_attributes(path: Path) -> dict[str, Any]:
    """Attributes of a kept merge tree: `plan`, what its decoding depended on, and those that `save_graph` was given."""
    return dict(zarr.open_group(path, mode="r").attrs.asdict())


def load_graph(path: Path) -> SavedTree:
    """Open the merge tree that `save_graph` has kept, to be labelled by `blockwise_decoder.relabel`.

    Raises:
        DecodingError: if it is none, or of another version.
    """
    path = Path(path)
    try:
        attributes = zarr.open_group(path, mode="r").attrs.asdict()
    except (OSError, ValueError, KeyError) as error:
        raise DecodingError("there is no Zarr group", where=path, remedy="give one of a kept merge tree") from error
    if attributes.get("fgnet_merge_tree") != FORMAT:
        raise DecodingError("it is no merge tree of this version", where=path, remedy="decode again, and keep its tree")
    return SavedTree(path, BlockPlan.from_description(json.dumps(attributes["plan"])))
