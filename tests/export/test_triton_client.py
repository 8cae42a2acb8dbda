from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

onnxruntime = pytest.importorskip("onnxruntime", reason="the models are run with the extra fgnet[cpu]")
pytest.importorskip("onnx", reason="graphs are read with the extra fgnet[train]")
pytest.importorskip("tritonclient", reason="the program in the README imports it")

from fgnet.engine.bundle import Bundle, load_bundle  # noqa: E402
from fgnet.export.triton import write_triton_repository  # noqa: E402


class Server:
    """What the client of the README is given for `tritonclient.grpc`: models run in this process.

    Args:
        repository: whose models.
    """

    def __init__(self, repository: Path) -> None:
        self.sessions = {
            path.parent.parent.name: onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
            for path in repository.glob("*/1/model.onnx")
        }
        self.calls: list[tuple[str, dict[str, npt.NDArray[Any]]]] = []

    def module(self) -> ModuleType:
        module = ModuleType("tritonclient.grpc")
        vars(module).update(InferInput=_InferInput, InferenceServerClient=lambda url: self)
        return module

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *error: object) -> None:
        return

    def infer(self, model: str, inputs: list[_InferInput]) -> Any:
        arrays = {given.name: given.array for given in inputs}
        self.calls.append((model, arrays))
        names = [value.name for value in self.sessions[model].get_outputs()]
        outputs = dict(zip(names, self.sessions[model].run(names, arrays), strict=True))
        response = SimpleNamespace(outputs=[SimpleNamespace(name=name) for name in names])
        return SimpleNamespace(get_response=lambda: response, as_numpy=outputs.__getitem__)


class _InferInput:
    def __init__(self, name: str, shape: list[int], datatype: str) -> None:
        self.name, self.shape, self.datatype = name, shape, datatype

    def set_data_from_numpy(self, array: npt.NDArray[Any]) -> None:
        assert array.flags.c_contiguous
        assert list(array.shape) == self.shape
        assert {"uint8": "UINT8", "float32": "FP32", "float16": "FP16"}[str(array.dtype)] == self.datatype
        self.array = array


def client_of(repository: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names that the README's program defines."""
    (code,) = re.findall(r"```python\n(.*?)```", (repository / "README.md").read_text(), re.DOTALL)
    monkeypatch.setitem(sys.modules, "tritonclient.grpc", server.module())
    names: dict[str, Any] = {"__name__": "client"}
    exec(compile(code, "README.md", "exec"), names)  # noqa: S102 - the program is ours, and this is its test
    return names


def blocks_alone(bundle: Bundle, gray: npt.NDArray[np.uint8], start: int) -> npt.NDArray[np.uint8]:
    """Affinities of a block by calling the bundle's graphs, nothing kept from any other block."""
    manifest, graphs = bundle.manifest, bundle.graphs()
    block = gray[start : start + manifest.patch[0]]

    def run(file: str, arrays: dict[str, Any]) -> dict[str, Any]:
        session = onnxruntime.InferenceSession(str(bundle.path / file), providers=["CPUExecutionProvider"])
        given = {value.name: arrays[value.name] for value in session.get_inputs()}
        names = [value.name for value in session.get_outputs()]
        return dict(zip(names, session.run(names, given), strict=True))

    arrays: dict[str, Any] = {"gray": block}
    if graphs.encoder is not None:
        calls = [
            run(graphs.encoder, {"gray": block[z : z + manifest.sections]})
            for z in range(0, len(block), manifest.sections)
        ]
        arrays |= {name: np.concatenate([call[name] for call in calls]) for name in calls[0]}
    affinities: npt.NDArray[np.uint8] = run(graphs.decoder, arrays)["affinities"]
    return affinities


def check_client(bundle: Bundle, repository: Path, monkeypatch: pytest.MonkeyPatch, sections: int) -> Server:
    server = Server(repository)
    names = client_of(repository, server, monkeypatch)
    depth, *size = bundle.manifest.patch
    gray = np.random.default_rng(1).integers(0, 256, (sections, *size), dtype=np.uint8)
    found = list(names["affinities"](server, gray))
    assert [start for start, _ in found] == sorted(
        {*range(0, sections - depth, bundle.manifest.stride[0]), sections - depth}
    )
    for start, affinities in found:
        np.testing.assert_array_equal(affinities, blocks_alone(bundle, gray, start))
    return server


def test_the_program_in_the_readme_gets_the_affinities_and_encodes_each_section_once(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = load_bundle(tiny_bundle)
    assert (tiny.manifest.patch[0], tiny.manifest.stride[0]) == (4, 2)
    write_triton_repository(tiny, tmp_path / "r", device="cpu", name="tiny")
    server = check_client(tiny, tmp_path / "r", monkeypatch, 8)
    encoded = [len(arrays["gray"]) for model, arrays in server.calls if model == "tiny_encoder"]
    assert sum(encoded) == 8


@pytest.mark.parametrize(
    "kind",
    [{"gray": True}, {"gray": False}, {"features": "FLOAT16"}, {"encoder": False}],
    ids=["gray", "features only", "float16", "no encoder"],
)
@pytest.mark.parametrize("sections", [4, 5, 9])
def test_the_program_fits_every_kind_of_network_and_any_height(
    make_bundle: Callable[..., Bundle],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: dict[str, Any],
    sections: int,
) -> None:
    bundle = make_bundle(tmp_path / "b", **kind)
    write_triton_repository(bundle, tmp_path / "r")
    check_client(bundle, tmp_path / "r", monkeypatch, sections)


def test_the_program_runs_as_it_stands(
    make_bundle: Callable[..., Bundle],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_triton_repository(make_bundle(tmp_path / "b"), tmp_path / "r")
    client_of(tmp_path / "r", Server(tmp_path / "r"), monkeypatch)["main"]()
    assert capsys.readouterr().out.splitlines()[0].startswith("sections 0 to 4: (3, 4, 8, 8), mean 0.")
