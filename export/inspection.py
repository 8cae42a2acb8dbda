"""What a bundle's graphs are and cost: per call, per block, and per voxel of affinities that comes out."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from fgnet.engine.bundle import Bundle, BundleManifest, Graphs, Precision
from fgnet.export.graph_inspection import COUNTED, GraphInspection, inspect_graph
from fgnet.volumes.geometry import Triple


@dataclass(frozen=True)
class Cost:
    """FLOPs of one precision's graphs, as `COUNTED` says.

    A block of depth D that lies by a stride s behind its neighbour delivers prod(s) voxels once its volume is large
    against a patch. `alone` means that all of its sections are encoded for it: where a call's sections do not divide
    them, the last call is paid for in full. `reusing` is the mean of a long column of blocks, each section of which is
    encoded once, as `fgnet.engine.columns.calls_of` has it.

    Attributes:
        encoder_call: one call, of the manifest's `sections`; 0 without encoder.
        encoder_section: a section of it.
        decoder_call: one block, its sections being encoded.
        calls_alone: the encoder's, for a block on its own.
        calls_reusing: the encoder's, for a block behind another in z; no whole number where some blocks need more calls
            than others.
        block_alone: a block on its own, which is one patch.
        block_reusing: a block behind another in z.
        voxel_alone: per voxel that comes out, at the manifest's stride.
        voxel_reusing: likewise.
    """

    encoder_call: int
    encoder_section: float
    decoder_call: int
    calls_alone: int
    calls_reusing: float
    block_alone: int
    block_reusing: float
    voxel_alone: float
    voxel_reusing: float


@dataclass(frozen=True)
class PrecisionInspection:
    """The graphs of one precision.

    Attributes:
        precision: as the manifest names it.
        encoder: None for a network that computes nothing section by section.
        decoder: the blocks' graph.
        cost: of both.
    """

    precision: Precision
    encoder: GraphInspection | None
    decoder: GraphInspection
    cost: Cost


@dataclass(frozen=True)
class Inspection:
    """What a bundle holds.

    Attributes:
        name: of the model.
        patch: (z, y, x) voxels of a block.
        stride: (z, y, x) voxels between blocks that the cost per voxel is for.
        sections: that one call of the encoder takes.
        precisions: the default one first.
        single: the whole network as one graph, if the bundle holds it; its FLOPs are those of one patch.
        counted: what a FLOP is.
    """

    name: str
    patch: Triple
    stride: Triple
    sections: int
    precisions: tuple[PrecisionInspection, ...]
    single: GraphInspection | None
    counted: str = COUNTED

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return asdict(self)


def inspect_bundle(bundle: Bundle) -> Inspection:
    """Inspect every graph of a bundle.

    Raises:
        BackendError: onnx is not installed.
        BundleError: a graph that cannot be read, or whose shapes are not static.
    """
    manifest = bundle.manifest
    return Inspection(
        name=manifest.name,
        patch=manifest.patch,
        stride=manifest.stride,
        sections=manifest.sections,
        precisions=tuple(_inspect_graphs(bundle, graphs) for graphs in manifest.graphs),
        single=None if manifest.single is None else inspect_graph(bundle.path / manifest.single),
    )


def _inspect_graphs(bundle: Bundle, graphs: Graphs) -> PrecisionInspection:
    encoder = None if graphs.encoder is None else inspect_graph(bundle.path / graphs.encoder)
    decoder = inspect_graph(bundle.path / graphs.decoder)
    cost = cost_of(bundle.manifest, None if encoder is None else encoder.flops, decoder.flops)
    return PrecisionInspection(graphs.precision, encoder, decoder, cost)


def cost_of(manifest: BundleManifest, encoder_call: int | None, decoder_call: int) -> Cost:
    """What blocks cost whose graphs' calls cost this much.

    Args:
        manifest: says patch, stride and the encoder's sections.
        encoder_call: FLOPs of one call; None without encoder.
        decoder_call: FLOPs of one call.
    """
    depth, stride = manifest.patch[0], manifest.stride
    alone = 0 if encoder_call is None else math.ceil(depth / manifest.sections)
    reusing = 0.0 if encoder_call is None else stride[0] / manifest.sections
    call = encoder_call or 0
    block_alone, block_reusing = alone * call + decoder_call, reusing * call + decoder_call
    return Cost(
        encoder_call=call,
        encoder_section=call / manifest.sections,
        decoder_call=decoder_call,
        calls_alone=alone,
        calls_reusing=reusing,
        block_alone=block_alone,
        block_reusing=block_reusing,
        voxel_alone=block_alone / math.prod(stride),
        voxel_reusing=block_reusing / math.prod(stride),
    )
