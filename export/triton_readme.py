"""The README of a Triton model repository: what is served, how the server is started, and a client that feeds it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from fgnet.engine.bundle import BundleManifest, Engine
from fgnet.export.graph_file import Port
from fgnet.export.triton_client import client_text
from fgnet.export.triton_config import MARK, ModelConfig


@dataclass(frozen=True)
class Served:
    """What a repository serves.

    Attributes:
        manifest: of the bundle.
        encoder: None for a network that computes nothing section by section.
        decoder: the blocks' model.
        single: the whole network as one model, if it is served.
        engine: one of the TensorRT plans, if they are served; all are of its version and architecture.
    """

    manifest: BundleManifest
    encoder: ModelConfig | None
    decoder: ModelConfig
    single: ModelConfig | None
    engine: Engine | None

    @property
    def models(self) -> tuple[ModelConfig, ...]:
        """All of them."""
        return tuple(model for model in (self.encoder, self.decoder, self.single) if model is not None)


def readme_text(served: Served) -> str:
    """The text of the repository's README.md; its Python is a program that runs."""
    rows = (f"| `{model.name}` | {_ports(model.inputs)} | {_ports(model.outputs)} |" for model in served.models)
    half = any(port.dtype == "bfloat16" for port in served.decoder.inputs)
    text = _README.format(
        mark=MARK.removeprefix("# "),
        name=served.manifest.name,
        models="\n".join(rows),
        precision=served.decoder.parameters["fgnet.precision"],
        gpus="--gpus all " if served.decoder.device == "gpu" else "",
        release=_RELEASE if served.engine is None else _RELEASE_OF_PLANS.format(engine=served.engine),
        features="" if served.encoder is None else _features(served.encoder),
        # Older clients take and give bfloat16 as float32.
        package='"tritonclient[grpc]>=2.70"' if half else '"tritonclient[grpc]"',
        client=client_text(served.manifest, served.encoder, served.decoder),
    )
    return text if served.single is None else text + _SINGLE.format(name=served.single.name)


def _ports(ports: Iterable[Port]) -> str:
    return ", ".join(f"`{port.name}` {port.dtype} {' x '.join(map(str, port.shape))}" for port in ports)


def _features(encoder: ModelConfig) -> str:
    section = sum(port.bytes / port.shape[0] for port in encoder.outputs)
    return _FEATURES.format(size=f"{section / 2**20:.3g} MiB")


_README = """<!-- {mark} -->
# {name} on the Triton Inference Server

| model | takes | gives |
| --- | --- | --- |
{models}

Precision: {precision}. Shapes are static and whole: there is no batch dimension. Gray is 8-bit. Affinities are 8-bit,
255 is 1.0; their channels are z, y, x. What each model was made from stands under `parameters` in its `config.pbtxt`.

## Start the server

In this folder:

    docker run {gpus}--rm -p 8001:8001 -v "$PWD":/models \\
        nvcr.io/nvidia/tritonserver:RELEASE-py3 tritonserver --model-repository=/models

{release}

## Feed it
{features}
`pip install {package}`, then:

```python
{client}```

A volume larger than a patch is cut into columns of overlapping tiles, and affinities are blended where they overlap;
`fgnet-run` does this without a server.
"""

_RELEASE = "`RELEASE` is the server's, such as 25.08 or a later one."

_RELEASE_OF_PLANS = (
    "`RELEASE` is that of a server with TensorRT {engine.version}, and its GPUs have to be {engine.architecture}:"
    " the plans run nowhere else."
)

_FEATURES = """
What depends on one section only is computed by the encoder, and read by the decoder for every block that the section
lies in. In between the client keeps it, {size} for each section: run the client on the server's machine, and if that is
still too slow, hand features over through shared memory (`tritonclient.utils.cuda_shared_memory`).
"""

_SINGLE = """
The model `{name}` is the whole network in one plain graph, to compare with: nothing is kept in between.
"""
