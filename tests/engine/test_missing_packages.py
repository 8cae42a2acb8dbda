"""Installations that lack packages: what is chosen, and what is said, in an interpreter that has not got them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr

Run = Callable[..., "subprocess.CompletedProcess[str]"]

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
def without(tmp_path: Path) -> Run:
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
from fgnet.volumes.errors import BackendError
bundle = load_bundle(Path(sys.argv[2]))
try:
    choice = choose_backend(bundle, sys.argv[1], device="cpu" if sys.argv[1] == "auto" else None)
    print(choice.backend)
    if sys.argv[1] != "auto":
        open_runner(choice, bundle, lambda bundle: None, threads=1)
except BackendError as error:
    print(error)
"""

REFUSED = [
    ("onnxruntime", "onnxruntime", "backend onnxruntime: onnxruntime is not installed (pip install 'fgnet[cpu]')"),
    ("openvino", "openvino", "backend openvino: openvino is not installed (pip install 'fgnet[cpu]')"),
    ("torch", "torch", "backend torch: torch is not installed (pip install 'fgnet[train]')"),
    ("tensorrt", "tensorrt", "backend tensorrt: tensorrt is not installed (pip install 'fgnet[gpu]')"),
    (
        "onnxruntime,openvino,torch",
        "auto",
        "backend auto: no backend is installed that runs this bundle and was not found wanting"
        " (pip install 'fgnet[cpu]' or 'fgnet[gpu]', or choose --precision fp32)",
    ),
]


@pytest.mark.parametrize(("hidden", "backend", "says"), REFUSED, ids=[case[0] for case in REFUSED])
def test_a_package_that_is_not_installed_is_named_with_its_extra(
    without: Run, tiny_bundle: Path, hidden: str, backend: str, says: str
) -> None:
    result = without(hidden, "-c", CHOOSE, backend, tiny_bundle)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines()[-1] == says


@pytest.mark.parametrize(
    ("hidden", "chosen"),
    [("torch,openvino", "onnxruntime"), ("onnxruntime,torch", "openvino"), ("onnxruntime,openvino", "torch")],
)
def test_auto_takes_what_there_is(without: Run, tiny_bundle: Path, hidden: str, chosen: str) -> None:
    result = without(hidden, "-c", CHOOSE, "auto", tiny_bundle)
    assert (result.stdout, result.stderr) == (f"{chosen}\n", "")


@pytest.mark.parametrize(
    ("hidden", "backend", "says"),
    [
        ("onnxruntime", "onnxruntime", "pip install 'fgnet[cpu]'"),
        ("openvino", "openvino", "pip install 'fgnet[cpu]'"),
        ("torch", "torch", "pip install 'fgnet[train]'"),
        ("sam2", "torch", "pip install 'fgnet[train]'"),
    ],
)
def test_the_command_says_which_package_is_missing_in_one_line(
    without: Run, tiny_bundle: Path, tmp_path: Path, hidden: str, backend: str, says: str
) -> None:
    zarr.create_array(str(tmp_path / "v.zarr"), data=np.zeros((4, 64, 64), np.uint8))
    command = ["-m", "fgnet.cli.run", tmp_path / "v.zarr", "--model", tiny_bundle, "--backend", backend]
    result = without(hidden, *command, "-o", tmp_path / "out.zarr")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.splitlines()[-1].startswith("error: ")
    assert says in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out.zarr").exists()
