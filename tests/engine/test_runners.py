from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import zarr

from fgnet.engine.backends import Choice, choose_backend, open_runner
from fgnet.engine.bundle import Bundle, BundleManifest, load_bundle
from fgnet.engine.onnxruntime_runner import OnnxRuntimeRunner
from fgnet.engine.torch_runner import TorchRunner
from fgnet.volumes.errors import BackendError, BundleError
from fgnet.volumes.geometry import Box
from fgnet.volumes.reading import open_volume, read_gray

pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture(scope="session")
def bundle(tiny_bundle: Path) -> Bundle:
    return load_bundle(tiny_bundle)


def build(bundle: Bundle) -> Any:
    from fgnet.network.checkpoint import load_checkpoint

    return load_checkpoint(bundle.checkpoint).build()


def never(bundle: Bundle) -> Any:
    raise AssertionError("the eager network is not needed")


@pytest.fixture(scope="session")
def tissue(shared_data: Callable[[str], Path]) -> npt.NDArray[np.uint8]:
    """Patches of real tissue (n, 1, 4, 64, 64)."""
    with open_volume(f"{shared_data('fib25_t2.h5')}:raw") as volume:
        starts = [(0, 0, 0), (100, 90, 30), (246, 186, 186)]
        blocks = [Box.from_shape((4, 64, 64)).shift(start) for start in starts]
        return np.stack([read_gray(volume, block)[None] for block in blocks])


def test_onnxruntime_gives_the_affinities_of_eager_pytorch_on_real_tissue(
    bundle: Bundle, tissue: npt.NDArray[np.uint8]
) -> None:
    runner, eager = OnnxRuntimeRunner(bundle, threads=1), TorchRunner(build(bundle), bundle.manifest.patch)
    for patch in tissue:
        found, expected = runner.run(patch), eager.run(patch)
        assert found.shape == expected.shape == (1, 3, 4, 64, 64)
        assert found.dtype == expected.dtype == np.float32
        assert 0 <= found.min() < 0.2
        assert 0.8 < found.max() <= 1
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_the_same_patch_gives_the_same_bits_twice(bundle: Bundle) -> None:
    patch = np.random.default_rng(0).integers(0, 256, (1, 4, 64, 64), dtype=np.uint8)
    for runner in (OnnxRuntimeRunner(bundle, threads=1), TorchRunner(build(bundle), bundle.manifest.patch)):
        np.testing.assert_array_equal(runner.run(patch), runner.run(patch))


def test_runners_say_what_they_are(bundle: Bundle) -> None:
    import onnxruntime

    common = {"device": "cpu", "precision": "fp32"}
    runner = OnnxRuntimeRunner(bundle, threads=2)
    assert runner.describe() == common | {
        "backend": "onnxruntime",
        "version": onnxruntime.__version__,
        "threads": 2,
    }
    eager = TorchRunner(build(bundle), bundle.manifest.patch)
    assert eager.describe() == common | {
        "backend": "torch",
        "version": version("torch"),
        "threads": 1,
    }
    for each in (runner, eager):
        assert (each.name, each.patch, each.batch) == (each.describe()["backend"], (4, 64, 64), 1)


def test_threads_default_to_the_cores_that_the_process_may_use(bundle: Bundle) -> None:
    assert OnnxRuntimeRunner(bundle).describe()["threads"] == len(os.sched_getaffinity(0))


def test_a_runner_that_was_closed_runs_no_more(bundle: Bundle) -> None:
    patch = np.zeros((1, 4, 64, 64), np.uint8)
    for runner in (OnnxRuntimeRunner(bundle, threads=1), TorchRunner(build(bundle), bundle.manifest.patch)):
        runner.close()
        with pytest.raises(AttributeError):
            runner.run(patch)


def graph_of(inputs: list[tuple[str, str, list[Any]]], outputs: list[tuple[str, str, list[Any]]]) -> bytes:
    """An ONNX graph that gives zeros, whatever it takes."""
    from onnx import TensorProto, checker, helper

    kinds = {"uint8": TensorProto.UINT8, "float": TensorProto.FLOAT, "double": TensorProto.DOUBLE}
    nodes = []
    for name, kind, shape in outputs:
        extents = [1 if isinstance(extent, str) else extent for extent in shape]
        numbers = helper.make_tensor(f"{name}_extents", TensorProto.INT64, [len(extents)], extents)
        nodes.append(helper.make_node("Constant", [], [f"{name}_shape"], value=numbers))
        zero = helper.make_tensor(f"{name}_zero", kinds[kind], [1], [0])
        nodes.append(helper.make_node("ConstantOfShape", [f"{name}_shape"], [name], value=zero))
    ends = [[helper.make_tensor_value_info(n, kinds[k], s) for n, k, s in side] for side in (inputs, outputs)]
    model = helper.make_model(
        helper.make_graph(nodes, "zeros", *ends), opset_imports=[helper.make_opsetid("", 18)], ir_version=8
    )
    checker.check_model(model)
    return model.SerializeToString()  # type: ignore[no-any-return]


def bundle_of(folder: Path, graph: bytes) -> Bundle:
    (folder / "model.onnx").write_bytes(graph)
    manifest = BundleManifest("zeros", {}, (4, 64, 64), (2, 32, 32), (), {"model.onnx": ""})
    return Bundle(folder, manifest)


GRAY = ("gray", "uint8", [1, 1, 4, 64, 64])
AFFINITIES = ("affinities", "float", [1, 3, 4, 64, 64])


def test_a_graph_of_another_maker_runs_where_its_ends_are_as_promised(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    runner = OnnxRuntimeRunner(bundle_of(tmp_path, graph_of([GRAY], [AFFINITIES])), threads=1)
    assert not runner.run(np.ones((1, 4, 64, 64), np.uint8)).any()


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [
        ([("gray", "uint8", [1, 1, 8, 64, 64])], [AFFINITIES]),
        ([("gray", "uint8", [1, 1, "depth", 64, 64])], [AFFINITIES]),
        ([("gray", "uint8", [4, 64, 64])], [AFFINITIES]),
        ([("gray", "float", [1, 1, 4, 64, 64])], [AFFINITIES]),
        ([GRAY, ("mask", "uint8", [1])], [AFFINITIES]),
        ([GRAY], [("affinities", "float", [1, 2, 4, 64, 64])]),
        ([GRAY], [("affinities", "float", [1, 3, 4, 32, 32])]),
        ([GRAY], [("affinities", "double", [1, 3, 4, 64, 64])]),
        ([GRAY], [AFFINITIES, ("more", "float", [1])]),
    ],
    ids=["depth", "dynamic", "rank", "dtype", "two inputs", "channels", "size", "double", "two outputs"],
)
def test_a_graph_that_is_not_as_the_manifest_promises_is_refused(tmp_path: Path, inputs: Any, outputs: Any) -> None:
    pytest.importorskip("onnx")
    with pytest.raises(BackendError, match="the graph takes") as caught:
        OnnxRuntimeRunner(bundle_of(tmp_path, graph_of(inputs, outputs)))
    assert caught.value.where == str(tmp_path / "model.onnx")


@pytest.mark.parametrize("content", [b"", b"no graph at all", b"\x08\x08" * 50])
def test_a_file_that_is_no_graph_is_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(BackendError, match="ONNX Runtime does not take the graph") as caught:
        OnnxRuntimeRunner(bundle_of(tmp_path, content))
    assert "\n" not in str(caught.value)


def test_auto_takes_onnxruntime_and_says_why(bundle: Bundle) -> None:
    choice = choose_backend("auto", bundle)
    assert choice == Choice("onnxruntime", "the fastest installed backend for the CPU")
    assert isinstance(open_runner(choice, bundle, never, threads=1), OnnxRuntimeRunner)


def test_a_backend_that_is_asked_for_is_taken(bundle: Bundle) -> None:
    choice = choose_backend("torch", bundle)
    assert choice == Choice("torch", "asked for")
    assert isinstance(open_runner(choice, bundle, build), TorchRunner)


def test_pytorch_needs_the_checkpoint_in_the_bundle(bundle: Bundle) -> None:
    without = Bundle(bundle.path, replace(bundle.manifest, checkpoint=None))
    with pytest.raises(BundleError, match="holds no checkpoint"):
        open_runner(choose_backend("torch", without), without, build)


# Hides packages from the import system as if they had never been installed.
HIDE = """
import importlib.machinery, os
hidden = os.environ["HIDDEN"].split(",")
find = importlib.machinery.PathFinder.find_spec
def find_spec(name, path=None, target=None):
    return None if name.partition(".")[0] in hidden else find(name, path, target)
importlib.machinery.PathFinder.find_spec = find_spec
"""


@pytest.fixture
def without(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a Python program in an interpreter that lacks some packages."""
    (tmp_path / "hide").mkdir()
    (tmp_path / "hide" / "sitecustomize.py").write_text(HIDE)

    def run(packages: str, *command: object) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"PYTHONPATH": str(tmp_path / "hide"), "HIDDEN": packages}
        return subprocess.run(
            [sys.executable, *map(str, command)], env=environment, capture_output=True, text=True, check=False
        )

    return run


CHOOSE = """
import sys
from pathlib import Path
from fgnet.engine.backends import choose_backend, open_runner
from fgnet.engine.bundle import load_bundle
from fgnet.engine.torch_runner import TorchRunner
from fgnet.volumes.errors import BackendError
bundle = load_bundle(Path(sys.argv[2]))
try:
    choice = choose_backend(sys.argv[1], bundle)
    print(choice.backend, "|", choice.reason)
    if choice.backend == "onnxruntime":
        open_runner(choice, bundle, lambda bundle: None, threads=1)
    elif sys.argv[1] == "torch":
        TorchRunner(None, (1, 1, 1))
except BackendError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("hidden", "backend", "says"),
    [
        ("onnxruntime", "onnxruntime", "onnxruntime is not installed (pip install 'fgnet[cpu]' or 'fgnet[gpu]')"),
        ("torch", "torch", "PyTorch is not installed (pip install 'fgnet[train]')"),
        ("onnxruntime,torch", "auto", "no backend is installed (pip install 'fgnet[cpu]' or 'fgnet[gpu]')"),
        ("torch", "auto", "onnxruntime | the fastest installed backend for the CPU"),
    ],
)
def test_a_package_that_is_not_installed_is_named_with_its_extra(
    without: Callable[..., subprocess.CompletedProcess[str]], tiny_bundle: Path, hidden: str, backend: str, says: str
) -> None:
    result = without(hidden, "-c", CHOOSE, backend, tiny_bundle)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines()[-1].endswith(says)


def test_auto_falls_back_to_pytorch_where_onnxruntime_is_missing_and_there_is_a_checkpoint(
    without: Callable[..., subprocess.CompletedProcess[str]], tiny_bundle: Path
) -> None:
    result = without("onnxruntime", "-c", CHOOSE, "auto", tiny_bundle)
    assert (result.stdout, result.stderr) == ("torch | onnxruntime is not installed\n", "")


@pytest.mark.parametrize(
    ("hidden", "backend", "says"),
    [("onnxruntime", "onnxruntime", "pip install 'fgnet[cpu]'"), ("torch", "torch", "pip install 'fgnet[train]'")],
)
def test_the_command_says_which_package_is_missing_in_one_line(
    without: Callable[..., subprocess.CompletedProcess[str]],
    tiny_bundle: Path,
    tmp_path: Path,
    hidden: str,
    backend: str,
    says: str,
) -> None:
    zarr.create_array(str(tmp_path / "v.zarr"), data=np.zeros((4, 64, 64), np.uint8))
    command = ["-m", "fgnet.cli.run", tmp_path / "v.zarr", "--model", tiny_bundle, "--backend", backend]
    result = without(hidden, *command, "-o", tmp_path / "out.zarr")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.splitlines()[-1].startswith("error: ")
    assert says in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out.zarr").exists()
