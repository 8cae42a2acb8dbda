"""What do the pieces of a unit's members become when they are put together?

Nodes of a unit are the open segments of its members, those one that are linked. What touches another unit is frozen and
stays open; so does what would merge with it. A fragment has the same reference all over the volume: number of the block
times 2^32, plus its number there; each node has that of one of its fragments.
"""

from __future__ import annotations

import numpy as np

from fgnet.postproc.agglomeration import agglomerate
from fgnet.postproc.blockwise_levels import grid, places, span, top_level
from fgnet.postproc.blockwise_plan import BlockPlan
from fgnet.postproc.blockwise_steps import BORDERS, across, open_piece, pieces_step
from fgnet.postproc.merge_tree import Ints, components
from fgnet.postproc.region_graph import merge_graphs
from fgnet.postproc.sidecar import Sidecar
from fgnet.volumes.errors import DecodingError
from fgnet.volumes.geometry import AXES, Box, Triple

BYTES_PER_CONTACT = 250
"""Memory that it takes to put contacts together and merge them."""

CONTACTS_AT_ONCE = 1 << 20
"""More contacts are put together in groups first, whatever memory there is: groups are merged several at a time, but
the whole volume by one thread while the others wait."""

WHOLE: Triple = (0, 0, 0)
"""The only unit of the top level."""


def measure_level(plan: BlockPlan, level: int, memory: int | None, sidecar: Sidecar) -> None:
    """Count the contacts that are left when all units of a level are merged: within them, and across their faces.

    Raises:
        DecodingError: if a unit was not merged.
    """
    if sidecar.has(_measures(level), WHOLE) or not is_merged(plan, level, memory, sidecar):
        return
    total = sum(
        int(sidecar.load(pieces_step(level), unit, "many")["many"][2])
        for unit in places(Box.from_shape(grid(plan, level)))
    )
    if level:
        joined = sidecar.load(_measures(0), WHOLE, "joined")["joined"]
    else:
        joined = np.stack([across(plan, block, sidecar, "many")["many"] for block in plan], axis=1)
        joined = joined.reshape(3, *plan.counts)
    for axis in range(3):
        # Every 2^level-th block along the axis is the first of a unit.
        total += int(np.moveaxis(joined[axis], axis, 0)[:: 2**level].sum())
    sidecar.save(_measures(level), WHOLE, {"contacts": np.array(total)} | ({} if level else {"joined": joined}))


def _measures(level: int) -> str:
    return f"measured-{level}"


def is_merged(plan: BlockPlan, level: int, memory: int | None, sidecar: Sidecar) -> bool:
    """Whether a level is one that is gone through: all below it are, and leave more than is put together at once.

    Raises:
        DecodingError: if that is not known yet.
    """
    top = top_level(plan)
    if level in (0, top):
        return True
    if sidecar.has(pieces_step(top), WHOLE):
        # This was decided before, maybe with other memory.
        return level <= int(sidecar.load(pieces_step(top), WHOLE, "below")["below"])
    if not is_merged(plan, level - 1, memory, sidecar):
        return False
    contacts = int(sidecar.load(_measures(level - 1), WHOLE, "contacts")["contacts"])
    return contacts > CONTACTS_AT_ONCE or (memory is not None and contacts * BYTES_PER_CONTACT > memory)


def merge_level(plan: BlockPlan, level: int, memory: int | None, sidecar: Sidecar, unit: Triple) -> None:
    """Merge a unit, if its level is one that is gone through.

    Args:
        plan: of the volume.
        level: from 1 to the top.
        memory: bytes for putting pieces together; None for no limit. It changes nothing about the result.
        sidecar: in which all units of the levels below were merged, and blocks cut.
        unit: of this level.

    Raises:
        DecodingError: if a member was not merged, or too much is open for one unit.
    """
    if sidecar.has(pieces_step(level), unit) or not is_merged(plan, level, memory, sidecar):
        return
    below = level - 1
    while not is_merged(plan, below, memory, sidecar):
        below -= 1
    merge_unit(plan, level, below, sidecar, unit)


def merge_unit(plan: BlockPlan, level: int, below: int, sidecar: Sidecar, unit: Triple) -> None:
    """Put the units of a lower level together to a unit, and merge what is now known well enough.

    Raises:
        DecodingError: if a member was not merged, or too much is open for one unit.
    """
    if sidecar.has(pieces_step(level), unit):
        return
    members = list(places(span(plan, level, unit, below)))
    contacts, references, starts = [], [], [0]
    for member in members:
        piece = sidecar.load(pieces_step(below), member, "contacts", "open")
        contacts.append(_shifted(piece["contacts"], starts[-1], starts[-1]))
        references.append(_references(plan, below, sidecar, member, piece["open"]))
        starts.append(starts[-1] + piece["open"].size)
    total = starts[-1]
    if total >= 2**31:
        raise DecodingError(
            f"{total} segments are open within {span(plan, level, unit)}", remedy="choose larger blocks or less memory"
        )
    opened: dict[Triple, Ints] = {}
    for member, start in zip(members, starts, strict=False):
        opened |= {block: start + own for block, own in _outer_borders(plan, below, sidecar, member, None).items()}
    links, joined = _within(plan, level, below, sidecar, unit, opened)
    count, nodes = components(total, links)
    graph = merge_graphs(count, [(nodes[a], nodes[b], *scores) for a, b, *scores in (*contacts, *joined)])
    del contacts, joined
    frozen = np.zeros(count, np.bool_)
    frozen[nodes[_touching(plan, level, sidecar, unit, opened)]] = True
    del opened
    result = agglomerate(graph, plan.options.highest, frozen=frozen)
    still_open = np.flatnonzero(result.frozen & (result.roots == np.arange(count)))
    node_references = np.zeros(count, np.int64)
    node_references[nodes] = np.concatenate(references)
    added = {"below": np.array(below), "starts": np.array(starts), "nodes": nodes, "references": node_references}
    sidecar.save(pieces_step(level), unit, open_piece(result, still_open) | added)


def _shifted(contacts: Ints, there: int, here: int) -> Ints:
    contacts[0] += there
    contacts[1] += here
    return contacts


def _references(plan: BlockPlan, level: int, sidecar: Sidecar, unit: Triple, nodes: Ints) -> Ints:
    if level == 0:
        return plan.number(unit) << 32 | nodes
    known: Ints = sidecar.load(pieces_step(level), unit, "references")["references"]
    return known[nodes]


def _outer_borders(
    plan: BlockPlan, level: int, sidecar: Sidecar, unit: Triple, outer: Box | None
) -> dict[Triple, Ints]:
    """Which open segment of a unit each border fragment is in; of those blocks that touch its outside, or a box's.

    Those that do not touch the outside may be in none that is open: -1.
    """
    if level == 0:
        return {unit: np.arange(int(sidecar.load(BORDERS, unit, "many")["many"][0]))}
    outer = outer or span(plan, level, unit)
    piece = sidecar.load(pieces_step(level), unit, "below", "starts", "nodes", "open", "many")
    numbers = np.full(int(piece["many"][0]), -1)
    numbers[piece["open"]] = np.arange(piece["open"].size)
    below, starts = int(piece["below"]), piece["starts"]
    found: dict[Triple, Ints] = {}
    for i, member in enumerate(places(span(plan, level, unit, below))):
        if _is_inside(span(plan, below, member), outer):
            continue
        opened = np.append(numbers[piece["nodes"][starts[i] : starts[i + 1]]], -1)
        for block, own in _outer_borders(plan, below, sidecar, member, outer).items():
            found[block] = opened[own]
    return found


def _is_inside(box: Box, outer: Box) -> bool:
    return outer.contains(box.grow((1, 1, 1)))


def _within(
    plan: BlockPlan, level: int, below: int, sidecar: Sidecar, unit: Triple, opened: dict[Triple, Ints]
) -> tuple[Ints, list[Ints]]:
    """Links and contacts across the faces between members."""
    links, contacts = [np.empty((2, 0), np.int64)], []
    blocks = span(plan, level, unit)
    for block in places(blocks):
        for axis, name in enumerate(AXES):
            neighbour = plan.before(block, axis)
            if neighbour is None or block[axis] == blocks.start[axis] or block[axis] % 2**below:
                continue
            there, here = opened[neighbour], opened[block]
            found = across(plan, block, sidecar, f"links_{name}", f"contacts_{name}")
            link, contact = found[f"links_{name}"], found[f"contacts_{name}"]
            links.append(np.stack([there[link[0]], here[link[1]]]))
            contacts.append(np.stack([there[contact[0]], here[contact[1]], *contact[2:]]))
    return np.concatenate(links, axis=1), contacts


def _touching(plan: BlockPlan, level: int, sidecar: Sidecar, unit: Triple, opened: dict[Triple, Ints]) -> Ints:
    """The open segments of members that touch another unit."""
    blocks = span(plan, level, unit)
    touching = [np.empty(0, np.int64)]
    for block in opened:
        for axis, name in enumerate(AXES):
            first = block[axis] == blocks.start[axis] and plan.before(block, axis) is not None
            last = block[axis] + 1 == blocks.stop[axis] and plan.after(block, axis) is not None
            for side in ["first"] * first + ["last"] * last:
                array = f"touched_{side}_{name}"
                touching.append(opened[block][sidecar.load(BORDERS, block, array)[array]])
    return np.concatenate(touching)
