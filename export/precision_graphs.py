"""A network's two graphs at every precision asked for, as files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from fgnet.engine.bundle import Graphs, Precision
from fgnet.engine.columns import calls_of
from fgnet.engine.gray_reader import GraySource
from fgnet.export.onnx_graph import TwoGraphs, save, two_graphs
from fgnet.export.precision import convert
from fgnet.export.quantisation import quantise
from fgnet.network.model import FGNet
from fgnet.volumes.errors import BackendError
from fgnet.volumes.geometry import Box, Triple
from fgnet.volumes.grid import PatchGrid, mirror_pad

# What int8's scales are taken from: more blocks hardly move them.
CALIBRATION_BLOCKS = 8


def write_graphs(
    network: FGNet,
    folder: Path,
    sections: int,
    precisions: Sequence[Precision],
    calibration: GraySource | None,
    say: Callable[[str], None],
) -> tuple[Graphs, ...]:
    """Trace a network once and write its graphs: `encoder.onnx`, `decoder.onnx`, `encoder.fp16.onnx`, ...

    Args:
        network: trained.
        folder: to write into.
        sections: that one call of the encoder takes.
        precisions: to write, each once.
        calibration: where gray for int8 comes from; only the blocks that are used are read.
        say: told what is being done.

    Raises:
        BackendError: int8 without calibration, or with less than it needs; weights that fp16 cannot hold.
    """
    blocks: list[npt.NDArray[np.uint8]] = []
    if "int8" in precisions:
        if calibration is None:
            raise BackendError(
                "int8 takes its scales from real tissue",
                where="--precision int8",
                remedy="give a volume like those to be segmented: --calibration v.zarr",
            )
        blocks = _calibration_blocks(calibration, network.config.patch)
    say("tracing the encoder and the decoder")
    plain = two_graphs(network, sections)
    written = []
    for precision in dict.fromkeys(precisions):
        say(f"writing the {precision} graphs")
        made = plain
        if precision in ("fp16", "bf16"):
            made = TwoGraphs(*(None if graph is None else convert(graph, precision) for graph in plain))  # type: ignore[arg-type]
        elif precision == "int8":
            made = _quantised(plain, blocks, sections)
        names = [f"{half}.onnx" if precision == "fp32" else f"{half}.{precision}.onnx" for half in TwoGraphs._fields]
        for graph, name in zip(made, names, strict=True):
            if graph is not None:
                save(graph, folder / name)
        written.append(Graphs(precision, decoder=names[1], encoder=None if made.encoder is None else names[0]))
    return tuple(written)


def _quantised(plain: TwoGraphs, blocks: list[npt.NDArray[np.uint8]], sections: int) -> TwoGraphs:
    encoder = None if plain.encoder is None else quantise(plain.encoder, _encoder_inputs(blocks, sections))
    return TwoGraphs(encoder, quantise(plain.decoder, _decoder_inputs(plain, blocks, sections)))


def _calibration_blocks(source: GraySource, patch: Triple) -> list[npt.NDArray[np.uint8]]:
    """Blocks spread over the volume; a side shorter than a patch's is mirrored, as fgnet-run does."""
    grid, volume = PatchGrid(source.shape, patch, patch), Box.from_shape(source.shape)
    chosen = np.unique(np.linspace(0, len(grid) - 1, CALIBRATION_BLOCKS).round().astype(int)).tolist()
    return [np.ascontiguousarray(mirror_pad(source.gray(grid[index].intersect(volume)), patch)) for index in chosen]


def _encoder_inputs(blocks: list[npt.NDArray[np.uint8]], sections: int) -> list[dict[str, Any]]:
    return [
        {"gray": block[first : first + sections]}
        for block in blocks
        for first in calls_of([0], len(block), sections, len(block))
    ]


def _decoder_inputs(plain: TwoGraphs, blocks: list[npt.NDArray[np.uint8]], sections: int) -> Iterator[dict[str, Any]]:
    import onnxruntime

    takes = {value.name for value in plain.decoder.graph.input}
    session: Any = None
    names: list[str] = []
    if plain.encoder is not None:
        session = onnxruntime.InferenceSession(_serialised(plain.encoder), providers=["CPUExecutionProvider"])
        names = [value.name for value in session.get_outputs()]
    for block in blocks:
        held: dict[str, Any] = {"gray": block} if "gray" in takes else {}
        for first in calls_of([0], len(block), sections, len(block)) if session is not None else ():
            features = session.run(names, {"gray": block[first : first + sections]})
            for name, level in zip(names, features, strict=True):
                whole = held.setdefault(name, np.zeros((len(block), *level.shape[1:]), level.dtype))
                whole[first : first + sections] = level
        yield held


def _serialised(model: onnx.ModelProto) -> bytes:
    return bytes(model.SerializeToString())
