"""What is particular to OpenVINO: arithmetic that it casts by itself, and CPUs that lack it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from fgnet.engine import openvino_runner
from fgnet.engine.bundle import Bundle, load_bundle
from fgnet.engine.columns import run_block
from fgnet.engine.openvino_runner import OpenVINORunner, computes_bf16
from fgnet.export.parity import TOLERANCES
from fgnet.network.config import GUIDANCES, MODULES
from fgnet.volumes.errors import BackendError, BundleError
from fgnet.volumes.neuropil import NeuropilOptions, make_neuropil


@pytest.fixture(scope="module")
def block() -> npt.NDArray[np.uint8]:
    return make_neuropil(NeuropilOptions((4, 64, 64), (10.0, 10.0, 10.0), 1)).raw


@pytest.fixture
def without_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU that OpenVINO computes no bfloat16 on."""
    monkeypatch.setattr(openvino_runner, "computes_bf16", lambda core=None: False)


def affinities(bundle: Bundle, precision: Any, block: npt.NDArray[np.uint8]) -> npt.NDArray[np.int16]:
    return run_block(OpenVINORunner(bundle, precision=precision, threads=1), block).astype(np.int16)


@pytest.mark.usefixtures("without_bf16")
def test_bf16_is_refused_on_a_cpu_without(precise: Bundle) -> None:
    with pytest.raises(BackendError, match=r"this CPU computes no bfloat16 \(choose --precision fp32\)"):
        OpenVINORunner(precise, precision="bf16")


@pytest.mark.usefixtures("without_bf16")
def test_int8_on_a_cpu_without_bf16_leaves_the_rest_in_fp32_and_is_within_its_tolerance(
    precise: Bundle, block: npt.NDArray[np.uint8]
) -> None:
    runner = OpenVINORunner(precise, precision="int8", threads=1)
    assert runner.describe()["arithmetic"] == "int8"
    differences = np.abs(run_block(runner, block).astype(np.int16) - affinities(precise, "fp32", block))
    assert 0 < differences.mean() / 255 <= TOLERANCES["int8"].mean
    assert (differences > 2).mean() <= TOLERANCES["int8"].off


def test_what_int8_leaves_is_computed_in_bf16_where_the_cpu_has_it_and_that_is_said(precise: Bundle) -> None:
    if not computes_bf16():
        pytest.skip("this CPU computes no bfloat16")
    assert OpenVINORunner(precise, precision="int8").describe()["arithmetic"] == "int8 and bf16"


def test_graphs_in_bf16_are_run_as_they_are_and_fp32_ones_are_cast_where_there_are_none(
    precise: Bundle, tiny_bundle: Path, block: npt.NDArray[np.uint8]
) -> None:
    if not computes_bf16():
        pytest.skip("this CPU computes no bfloat16")
    single = affinities(precise, "fp32", block)
    written, cast = (affinities(each, "bf16", block) for each in (precise, load_bundle(tiny_bundle)))
    assert 0 < np.abs(written - single).mean() / 255 <= TOLERANCES["bf16"].mean
    # Layer norms and residual sums too are cast: untrained weights suffer far more from it than trained ones.
    assert np.abs(written - single).mean() < np.abs(cast - single).mean() < 0.2 * 255


@pytest.mark.parametrize(
    "changes", [*({"guidance": kind} for kind in GUIDANCES), *({"modules": kind} for kind in MODULES[1:])], ids=str
)
def test_every_network_of_the_ablations_is_exported_and_run(changes: dict[str, Any], tmp_path: Path) -> None:
    """Compiling gives an output a second name where the conversion before it falls away; which, the network decides."""
    torch = pytest.importorskip("torch", reason="the export needs the extra fgnet[train]")
    from fgnet.export.bundle_writer import ExportOptions, export_bundle
    from fgnet.network.checkpoint import Checkpoint, save_checkpoint
    from fgnet.network.config import preset
    from fgnet.network.model import FGNet

    torch.manual_seed(0)
    config = preset("nano", depth=3, widths=(4, 6, 8), patch=(2, 32, 32), **changes)
    save_checkpoint(tmp_path / "model.pt", Checkpoint(config, FGNet(config).state_dict()))
    gray = np.random.default_rng(0).integers(0, 256, config.patch, dtype=np.uint8)
    written = export_bundle(tmp_path / "model.pt", tmp_path / "b", ExportOptions(backends=("openvino",)), gray)
    (report,) = [one for one in written.manifest.parity if one["precision"] == "fp32"]
    assert report["passed"]
    assert report["largest"] < 1e-5


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_precision_that_the_bundle_lacks_is_refused(tiny_bundle: Path, precision: Any) -> None:
    with pytest.raises(BundleError, match=f"no graphs of precision {precision}, only fp32"):
        OpenVINORunner(load_bundle(tiny_bundle), precision=precision)


def test_the_bundles_first_precision_is_the_default(precise: Bundle) -> None:
    assert OpenVINORunner(precise).precision == precise.manifest.graphs[0].precision == "fp32"


def test_nobody_is_told_of_a_run_and_nothing_is_forked() -> None:
    """OpenVINO's telemetry forks a process that may hang where another thread reads stdin, as in shared runs."""
    code = """
import multiprocessing, sys, threading, time
from fgnet.engine.openvino_runner import computes_bf16
computes_bf16()
time.sleep(0.5)
assert "openvino" in sys.modules
assert "openvino_telemetry" not in sys.modules
assert not multiprocessing.active_children()
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
