"""For the tests of the export: bundles of two tiny graphs, and what reads Triton's configurations."""

from __future__ import annotations

import importlib.util
import math
import shutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy.ndimage import gaussian_filter

from fgnet.engine.bundle import MANIFEST, Bundle, BundleManifest, Graphs, Precision, load_bundle, sha256

PATCH = (4, 8, 8)
SECTIONS = 2
CHANNELS = 5

Shaped = tuple[int, tuple[int, ...]]
MakeGraph = Callable[..., Any]
_HIDDEN = 7

# Changes of the smallest preset: one ablation each.
ABLATIONS: list[dict[str, Any]] = [
    {},
    *({"modules": name} for name in ("without_sam2", "without_fge", "without_fga")),
    *({"guidance": name} for name in ("se", "cbam", "eca", "cross_attention")),
    *({"depth": depth} for depth in (3, 5)),
    *({"finest_depth_kernel": kernel, "context_sections": context} for kernel in (1, 3) for context in (0, 1)),
    {"input_scale": 2},
    {"patch": (3, 32, 96)},
    {"adaptation": "frozen"},
    {"finest_blocks": 2, "expansion": 3, "finest_expansion": 2},
]
WIDTHS = (4, 6, 8, 10, 12)


@pytest.fixture(params=ABLATIONS, ids=str)
def ablation(request: pytest.FixtureRequest) -> dict[str, Any]:
    """What makes a network for `make_network` one of the paper's ablations."""
    changes: dict[str, Any] = request.param
    return changes


@pytest.fixture(scope="session")
def make_network() -> Callable[..., Any]:
    """Makes a network in evaluation mode of nothing but random numbers: weights, biases, norms, positions.

    Keywords change the small preset, as `ABLATIONS` do.
    """
    torch = pytest.importorskip("torch", reason="the network needs the extra fgnet[train]")
    pytest.importorskip("sam2", reason="the network needs the extra fgnet[train]")
    from fgnet.network.config import preset
    from fgnet.network.model import FGNet

    def make(encoder: str = "nano", **changes: Any) -> Any:
        torch.manual_seed(0)
        defaults = {"widths": WIDTHS[: changes.get("depth", 4)], "patch": (4, 64, 64)}
        network = FGNet(preset(encoder, **defaults | changes)).train()  # type: ignore[arg-type]
        norms = torch.nn.BatchNorm2d | torch.nn.BatchNorm3d | torch.nn.LayerNorm
        with torch.no_grad():
            for _ in range(2):
                network(torch.rand(2, 1, *network.config.patch))
            for module in network.modules():
                if isinstance(module, norms):
                    module.weight.uniform_(0.5, 1.5)
                    module.bias.uniform_(-0.5, 0.5)
            if network.encoder is not None:
                trunk = network.encoder.image_encoder.trunk
                trunk.pos_embed.normal_(std=0.5)
                trunk.pos_embed_window.normal_(std=0.5)
        return network.eval()

    return make


@pytest.fixture(scope="session")
def bundle(tiny_bundle: Path) -> Bundle:
    """`tiny_bundle`, opened."""
    return load_bundle(tiny_bundle)


@pytest.fixture(scope="session")
def graphs(tiny_bundle: Path) -> dict[str, Any]:
    """Encoder and decoder of a small network, fp32, two sections a call of the encoder; not to be changed."""
    onnx = pytest.importorskip("onnx", reason="graphs are read with the extra fgnet[train]")
    return {half: onnx.load(str(tiny_bundle / f"{half}.onnx")) for half in ("encoder", "decoder")}


@pytest.fixture(scope="session")
def tissue() -> npt.NDArray[np.uint8]:
    """Gray (4, 64, 64) uint8, smooth as tissue is."""
    noise = gaussian_filter(np.random.default_rng(0).normal(size=(4, 64, 64)), (0.5, 2, 2))
    gray: npt.NDArray[np.uint8] = np.clip(128 + 60 * noise / noise.std(), 0, 255).astype(np.uint8)
    return gray


@pytest.fixture(scope="session")
def make_graph() -> MakeGraph:
    """(inputs, name of the output, its type and shape) -> a graph whose every output depends on every input.

    Where all tensors are of one length, as those of an encoder are, each row depends on the same row only.
    """
    onnx = pytest.importorskip("onnx", reason="graphs are made with the extra fgnet[train]")
    helper, types = onnx.helper, onnx.TensorProto

    def make(inputs: Mapping[str, Shaped], output: str, given: Shaped) -> Any:
        kind, shape = given
        lengths = {extents[0] for _, extents in (*inputs.values(), given)}
        rows = shape[0] if len(lengths) == 1 else 1
        random = np.random.default_rng(0)
        constants: dict[str, Any] = {"small": np.float32(0.01), "one": np.float32(1), "half": np.float32(127.5)}
        nodes, terms = [], []

        def product(source: str, target: str, width: int, depth: int) -> None:
            # Whole numbers: their sums are exact in whatever order they are taken.
            constants[f"{target}_weights"] = random.integers(-9, 10, (width, depth)).astype(np.float32)
            nodes.append(helper.make_node("MatMul", [source, f"{target}_weights"], [f"{target}_sums"]))
            nodes.append(helper.make_node("Mul", [f"{target}_sums", "small"], [target]))

        for name, (_, extents) in inputs.items():
            width = math.prod(extents) // rows
            constants[f"{name}_shape"] = np.array([rows, width])
            nodes.append(helper.make_node("Cast", [name], [f"{name}_wide"], to=types.FLOAT))
            nodes.append(helper.make_node("Reshape", [f"{name}_wide", f"{name}_shape"], [f"{name}_rows"]))
            product(f"{name}_rows", f"{name}_hidden", width, _HIDDEN)
            terms.append(f"{name}_hidden")
        nodes += [helper.make_node("Sum", terms, ["hidden"]), helper.make_node("Sin", ["hidden"], ["waves"])]
        product("waves", "outcome", _HIDDEN, math.prod(shape) // rows)
        constants["outcome_shape"] = np.array(shape)
        nodes += [
            helper.make_node("Reshape", ["outcome", "outcome_shape"], ["shaped"]),
            helper.make_node("Tanh", ["shaped"], ["result"]),
        ]
        if kind == types.UINT8:
            nodes[-1].output[0] = "signed"
            nodes.append(helper.make_node("Add", ["signed", "one"], ["positive"]))
            nodes.append(helper.make_node("Mul", ["positive", "half"], ["result"]))
        nodes.append(helper.make_node("Cast", ["result"], [output], to=kind))
        model = helper.make_model(
            helper.make_graph(
                nodes,
                "graph",
                [helper.make_tensor_value_info(name, *entry) for name, entry in inputs.items()],
                [helper.make_tensor_value_info(output, kind, shape)],
                [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
            ),
            opset_imports=[helper.make_opsetid("", 18)],
            ir_version=10,
        )
        onnx.checker.check_model(model, full_check=True)
        return model

    return make


@pytest.fixture(scope="session")
def reseal() -> Callable[..., Bundle]:
    """Writes the manifest of a bundle anew, with entries changed and the hashes of the files as they are now."""

    def write(bundle: Bundle, **changes: Any) -> Bundle:
        files = {file.name: sha256(file) for file in bundle.path.iterdir() if file.is_file() and file.name != MANIFEST}
        manifest = replace(bundle.manifest, **{"files": files} | changes)
        (bundle.path / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
        return load_bundle(bundle.path)

    return write


@pytest.fixture(scope="session")
def make_bundle(make_graph: MakeGraph, reseal: Callable[..., Bundle]) -> Callable[..., Bundle]:
    """Writes a bundle called `mine` of two tiny graphs, one feature between them.

    `features` is its type as ONNX names it; `gray` is whether the decoder reads gray, `encoder` whether there is one.
    """
    onnx = pytest.importorskip("onnx", reason="graphs are made with the extra fgnet[train]")

    def make(folder: Path, features: str = "FLOAT", *, gray: bool = True, encoder: bool = True) -> Bundle:
        folder.mkdir()
        kind, byte = getattr(onnx.TensorProto, features), onnx.TensorProto.UINT8
        deep = (CHANNELS, PATCH[1] // 2, PATCH[2] // 2)
        reads: dict[str, Shaped] = {"gray": (byte, PATCH)} if gray else {}
        if encoder:
            reads["deep"] = (kind, (PATCH[0], *deep))
            sections = {"gray": (byte, (SECTIONS, *PATCH[1:]))}
            onnx.save(make_graph(sections, "deep", (kind, (SECTIONS, *deep))), str(folder / "encoder.onnx"))
        onnx.save(make_graph(reads, "affinities", (byte, (3, *PATCH))), str(folder / "decoder.onnx"))
        graphs = Graphs("fp32", decoder="decoder.onnx", encoder="encoder.onnx" if encoder else None)
        manifest = BundleManifest("mine", {}, PATCH, (2, 4, 4), ((40.0, 4.0, 4.0),), {}, SECTIONS, (graphs,))
        return reseal(Bundle(folder, manifest))

    return make


@pytest.fixture(scope="session")
def parse_config() -> Callable[[str], Any]:
    """Reads the text of a `config.pbtxt` by Triton's own schema.

    The schema is loaded from its file: the package around it cannot be imported without grpcio.
    """
    text_format = pytest.importorskip("google.protobuf.text_format", reason="it comes with the extra fgnet[train]")
    package = importlib.util.find_spec("tritonclient")
    if package is None or package.submodule_search_locations is None:
        pytest.skip("tritonclient is not installed; the schema of its configurations comes with the extra fgnet[test]")
    file = Path(package.submodule_search_locations[0]) / "grpc" / "model_config_pb2.py"
    found = importlib.util.spec_from_file_location("model_config_pb2", file)
    assert found is not None
    assert found.loader is not None
    module: Any = importlib.util.module_from_spec(found)
    with warnings.catch_warnings():
        # The schema may be of another version of protobuf than the one that is installed.
        warnings.simplefilter("ignore")
        found.loader.exec_module(module)
    return lambda text: text_format.Parse(text, module.ModelConfig())


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a network that is exported in a moment, for patches of 2 x 32 x 32; not to be changed.

    It has no SAM2, and its stem reads neighbouring sections: there is nothing to compute section by section.
    """
    torch = pytest.importorskip("torch", reason="the network needs the extra fgnet[train]")
    pytest.importorskip("sam2", reason="the network needs the extra fgnet[train]")
    from fgnet.network.checkpoint import Checkpoint, save_checkpoint
    from fgnet.network.config import preset
    from fgnet.network.model import FGNet

    torch.manual_seed(0)
    network = FGNet(preset("nano", modules="without_sam2", depth=3, widths=(4, 6, 8), patch=(2, 32, 32))).train()
    with torch.no_grad():
        network(torch.rand(2, 1, *network.config.patch))
    path = tmp_path_factory.mktemp("small") / "small.pt"
    save_checkpoint(path, Checkpoint(network.config, network.state_dict(), {"voxel_sizes": [[30.0, 6.0, 6.0]]}))
    return path


@pytest.fixture(scope="session")
def every_precision(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, list[str]]:
    """`tiny_bundle` with graphs of all four precisions, and what was said while they were written; not to be changed.

    fp16 is the first one, and was asked for twice.
    """
    pytest.importorskip("onnxscript", reason="the export needs the extra fgnet[train]")
    from fgnet.engine.gray_reader import ArraySource
    from fgnet.export.precision_graphs import write_graphs
    from fgnet.network.checkpoint import load_checkpoint
    from fgnet.volumes.neuropil import NeuropilOptions, make_neuropil

    plain = load_bundle(tiny_bundle)
    folder = tmp_path_factory.mktemp("every")
    gray = make_neuropil(NeuropilOptions((8, 128, 128), (10.0, 10.0, 10.0), 3)).raw
    network, said = load_checkpoint(plain.checkpoint).build(), list[str]()
    wanted: list[Precision] = ["fp16", "fp32", "int8", "fp16", "bf16"]
    graphs = write_graphs(network, folder, plain.manifest.sections, wanted, ArraySource(gray), said.append)
    shutil.copyfile(plain.checkpoint, folder / plain.checkpoint.name)
    files = {file.name: sha256(file) for file in folder.iterdir()}
    manifest = replace(plain.manifest, graphs=graphs, files=files, parity=())
    (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    return load_bundle(folder), said


@pytest.fixture(scope="session")
def features_of() -> Callable[[Any, npt.NDArray[Any]], dict[str, Any]]:
    """What the decoder of two graphs in memory reads for a block: gray, and features of two sections a call."""

    def run(graphs: Any, gray: npt.NDArray[Any]) -> dict[str, Any]:
        parts = [_outputs(graphs["encoder"], {"gray": gray[z : z + 2]}) for z in range(0, len(gray), 2)]
        return {"gray": gray, **{name: np.concatenate([part[name] for part in parts]) for name in parts[0]}}

    return run


@pytest.fixture(scope="session")
def affinities_of(features_of: Any) -> Callable[[Any, npt.NDArray[Any]], npt.NDArray[np.int64]]:
    """Affinities (3, z, y, x) of a block, 0 to 255, by two graphs in memory."""

    def run(graphs: Any, gray: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        affinities: npt.NDArray[np.uint8] = _outputs(graphs["decoder"], features_of(graphs, gray))["affinities"]
        return affinities.astype(np.int64)

    return run


def _outputs(model: Any, feeds: dict[str, Any]) -> dict[str, Any]:
    import onnxruntime

    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    needed = {value.name: feeds[value.name] for value in session.get_inputs()}
    return dict(zip(names, session.run(names, needed), strict=True))
