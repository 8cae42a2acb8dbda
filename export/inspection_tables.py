"""An inspection as tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from fgnet.export.graph_file import Port
from fgnet.export.graph_inspection import GraphInspection, Layers
from fgnet.export.inspection import Inspection

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table


def render(inspection: Inspection) -> RenderableType:
    """What `inspect_bundle` found: the cost of every precision, then every graph's ports and layers."""
    from rich.console import Group
    from rich.text import Text

    title = (
        f"{inspection.name}: patch {_extents(inspection.patch)}, stride {_extents(inspection.stride)},"
        f" {inspection.sections} sections a call"
    )
    parts: list[RenderableType] = [_heading(title), _costs(inspection)]
    for entry in inspection.precisions:
        if entry.encoder is not None:
            parts += _graph(entry.encoder, f"{entry.precision} encoder")
        parts += _graph(entry.decoder, f"{entry.precision} decoder")
    if inspection.single is not None:
        parts += _graph(inspection.single, "single graph")
    parts.append(Text(f"FLOPs: {inspection.counted}.", style="dim"))
    return Group(*parts)


def _heading(text: str) -> RenderableType:
    from rich.text import Text

    return Text(text, style="bold")


def _table(left: Iterable[str], right: Iterable[str]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for heading in left:
        table.add_column(heading, overflow="fold")
    for heading in right:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _costs(inspection: Inspection) -> RenderableType:
    table = _table(["FLOPs"], [entry.precision for entry in inspection.precisions])
    costs = [entry.cost for entry in inspection.precisions]
    rows: list[tuple[str, list[float]]] = [
        ("encoder, one call", [cost.encoder_call for cost in costs]),
        ("encoder, one section", [cost.encoder_section for cost in costs]),
        ("decoder, one call", [cost.decoder_call for cost in costs]),
        ("block alone, or one patch", [cost.block_alone for cost in costs]),
        ("block reusing its neighbour's sections", [cost.block_reusing for cost in costs]),
        ("voxel that comes out, blocks alone", [cost.voxel_alone for cost in costs]),
        ("voxel that comes out, sections reused", [cost.voxel_reusing for cost in costs]),
    ]
    for name, values in rows:
        table.add_row(name, *(_amount(value) for value in values))
    return table


def _graph(graph: GraphInspection, title: str) -> list[RenderableType]:
    from rich.text import Text

    heading = (
        f"{title} {graph.file}: {_amount(graph.parameters)} parameters in {_size(graph.parameter_bytes)},"
        f" file {_size(graph.bytes)}"
    )
    ports = _table(["port", "dtype", "shape"], ["bytes"])
    for direction, entries in (("in", graph.inputs), ("out", graph.outputs)):
        for port in entries:
            ports.add_row(*_port(direction, port))
    layers = _table(["operator", "computes in"], ["nodes", "FLOPs"])
    for entry in graph.layers:
        layers.add_row(
            entry.operator, _precisions(entry), str(entry.nodes), _amount(entry.flops) if entry.flops else ""
        )
    layers.add_row("all", "", str(sum(entry.nodes for entry in graph.layers)), _amount(graph.flops))
    parts: list[RenderableType] = [_heading(heading), ports, layers]
    if graph.uncounted:
        names = ", ".join(f"{count} {name}" for name, count in graph.uncounted.items())
        parts.append(Text(f"FLOPs without those of {names}", style="yellow"))
    return parts


def _precisions(entry: Layers) -> str:
    if len(entry.precisions) == 1:
        return next(iter(entry.precisions))
    return ", ".join(f"{count} {name}" for name, count in entry.precisions.items())


def _port(direction: str, port: Port) -> tuple[str, str, str, str]:
    return f"{direction} {port.name}", port.dtype, _extents(port.shape), _size(port.bytes)


def _extents(shape: Iterable[int]) -> str:
    return " x ".join(str(extent) for extent in shape)


def _amount(value: float) -> str:
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.4g} {unit}"
    return f"{value:.4g}"


def _size(value: float) -> str:
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if value >= size:
            return f"{value / size:.4g} {unit}"
    return f"{value:.0f} B"
