"""The client in the README of a Triton model repository: a program that keeps features of sections between blocks."""

from __future__ import annotations

from string import Template

from fgnet.engine.bundle import BundleManifest
from fgnet.export.triton_config import ModelConfig


def client_text(manifest: BundleManifest, encoder: ModelConfig | None, decoder: ModelConfig) -> str:
    """A Python program that needs numpy and tritonclient only.

    Args:
        manifest: of the bundle that is served.
        encoder: None for a network that computes nothing section by section.
        decoder: whose first output are the affinities.
    """
    gray = encoder is None or any(port.name == "gray" for port in decoder.inputs)
    blocks = Template(_WITHOUT_ENCODER if encoder is None else _WITH_ENCODER)
    return (
        _START
        + blocks.substitute(
            encoder="" if encoder is None else encoder.name,
            decoder=decoder.name,
            patch=", ".join(str(extent) for extent in manifest.patch),
            stride=manifest.stride[0],
            sections=manifest.sections,
            gray=_GRAY if gray else "",
            answer=decoder.outputs[0].name,
        )
        + _END
    )


_START = '''import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import np_to_triton_dtype


def call(client, model, arrays):
    """One request: arrays in and out, by name."""
    inputs = []
    for name, array in arrays.items():
        tensor = triton.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
        tensor.set_data_from_numpy(np.ascontiguousarray(array))
        inputs.append(tensor)
    result = client.infer(model, inputs)
    return {output.name: result.as_numpy(output.name) for output in result.get_response().outputs}

'''

_WITH_ENCODER = '''
ENCODER, DECODER = "$encoder", "$decoder"
DEPTH, HEIGHT, WIDTH = $patch
STRIDE = $stride  # sections between blocks
SECTIONS = $sections  # that one call of the encoder takes


def affinities(client, column):
    """Of gray (z, HEIGHT, WIDTH) uint8, z >= DEPTH, block by block: first section, (3, DEPTH, HEIGHT, WIDTH) uint8."""
    last = len(column) - DEPTH
    held = {}  # the features of the sections that blocks to come may need
    for start in sorted({*range(0, last + 1, STRIDE), last}):
        held = {z: features for z, features in held.items() if z >= start}
        for z in range(start, start + DEPTH):
            if z not in held:
                first = min(z, len(column) - SECTIONS)
                outputs = call(client, ENCODER, {"gray": column[first : first + SECTIONS]})
                for i in range(SECTIONS):
                    held[first + i] = {name: array[i] for name, array in outputs.items()}
        inputs = {name: np.stack([held[z][name] for z in range(start, start + DEPTH)]) for name in held[start]}
$gray        yield start, call(client, DECODER, inputs)["$answer"]
'''

_WITHOUT_ENCODER = '''
DECODER = "$decoder"
DEPTH, HEIGHT, WIDTH = $patch
STRIDE = $stride  # sections between blocks


def affinities(client, column):
    """Of gray (z, HEIGHT, WIDTH) uint8, z >= DEPTH, block by block: first section, (3, DEPTH, HEIGHT, WIDTH) uint8."""
    last = len(column) - DEPTH
    for start in sorted({*range(0, last + 1, STRIDE), last}):
        inputs = {}
$gray        yield start, call(client, DECODER, inputs)["$answer"]
'''

_END = """

def main(url="localhost:8001"):
    gray = np.random.default_rng(0).integers(0, 256, (2 * DEPTH, HEIGHT, WIDTH), dtype=np.uint8)
    with triton.InferenceServerClient(url) as client:
        for start, block in affinities(client, gray):
            print(f"sections {start} to {start + DEPTH}: {block.shape}, mean {block.mean() / 255:.3f}")


if __name__ == "__main__":
    main()
"""

_GRAY = '        inputs["gray"] = column[start : start + DEPTH]\n'
