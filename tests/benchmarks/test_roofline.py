from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fgnet.benchmarks import energy
from fgnet.benchmarks.device_peaks import DevicePeaks, measure_peaks
from fgnet.benchmarks.energy import energy_counter
from fgnet.benchmarks.peak_worker import _product
from fgnet.benchmarks.roofline import Roofline, Work, arithmetic, find_roofline
from fgnet.benchmarks.rows import Row
from fgnet.engine.bundle import default_bundle, load_bundle
from fgnet.volumes.errors import BackendError

EAGER = Row("eager", "torch", "fp32", "cpu", whole=True)
OURS = Row("ours", "openvino", "bf16", "cpu")
PEAKS = DevicePeaks("cpu", 1, {"fp32": 100e9, "bf16": 400e9}, 10e9, {})


def test_peaks_are_those_of_products_and_copies() -> None:
    found = measure_peaks("cpu", ["fp32"], 1)
    # No core is slower than a gigaflop, nor as fast as a thousand; no memory slower than 100 MB/s.
    assert 1e9 < found.flops_per_second["fp32"] < 1e12
    assert 1e8 < found.bytes_per_second < 1e12
    assert (found.threads, found.missing) == (1, {})


def test_a_peak_that_nothing_measures_is_missing_with_its_reason() -> None:
    with pytest.raises(RuntimeError, match="no product of 8-bit integers on a GPU"):
        _product("cuda", "int8")


def test_products_of_8_bit_integers_are_summed_in_32_bits() -> None:
    pytest.importorskip("onnxruntime", reason="it computes them; the extra fgnet[cpu]")
    pytest.importorskip("onnx", reason="their graph is made with it; the extra fgnet[train]")
    (product,) = _product("cpu", "int8")()
    values = np.random.default_rng(0).integers(-100, 100, product.shape, dtype=np.int8)
    np.testing.assert_array_equal(product[:2], values[:2].view(np.uint8).astype(np.int32) @ values.astype(np.int32))


def test_a_limit_is_the_least_of_operations_and_memory() -> None:
    roofline = Roofline(PEAKS, Work(2e3, 1e3, 100, 10), None)
    limit = roofline.limit(EAGER)
    assert limit is not None
    assert (limit.flops_per_voxel, limit.bytes_per_voxel) == (2e3, 400)
    assert (limit.voxels_per_second, limit.by) == (10e9 / 400, "memory")
    limit = roofline.limit(OURS)
    assert limit is not None
    assert (limit.flops_per_voxel, limit.bytes_per_voxel) == (1e3, 20)
    assert (limit.voxels_per_second, limit.by) == (400e9 / 1e3, "operations")


def test_of_two_measurements_the_higher_peaks_count() -> None:
    busy = DevicePeaks("cpu", 1, {"fp32": 50e9, "bf16": 500e9}, 12e9, {})
    assert PEAKS.or_better(busy) == DevicePeaks("cpu", 1, {"fp32": 100e9, "bf16": 500e9}, 12e9, {})


def test_there_is_no_limit_without_a_peak() -> None:
    int8 = Row("int8", "openvino", "int8", "cpu")
    assert Roofline(PEAKS, Work(2e3, 1e3, 100, 10), None).limit(int8) is None
    assert Roofline(None, Work(2e3, 1e3, 100, 10), "no").limit(EAGER) is None
    assert Roofline(PEAKS, None, "no").limit(EAGER) is None


def test_fp16_graphs_are_computed_in_fp32_on_a_cpu() -> None:
    assert arithmetic(Row("a", "onnxruntime", "fp16", "cpu")) == "fp32"
    assert arithmetic(Row("b", "tensorrt", "fp16", "cuda")) == "fp16"


def test_why_a_network_cannot_be_counted_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacks(_: Path) -> None:
        raise BackendError("the package onnx is not installed")

    monkeypatch.setattr("fgnet.export.graph_inspection.inspect_graph", lacks)
    monkeypatch.setattr("fgnet.benchmarks.roofline.measure_peaks", lambda *_: PEAKS)
    assert find_roofline(load_bundle(default_bundle()), [EAGER], None) == Roofline(
        PEAKS, None, "the package onnx is not installed"
    )


def package(folder: Path, name: str, kind: str, joules: float) -> Path:
    place = folder / name
    place.mkdir()
    (place / "name").write_text(f"{kind}\n")
    (place / "energy_uj").write_text(f"{round(joules * 1e6)}\n")
    (place / "max_energy_range_uj").write_text("100000000\n")
    return place


def test_energy_is_that_of_all_packages_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "_POWERCAP", tmp_path)
    first = package(tmp_path, "intel-rapl:0", "package-0", 10)
    second = package(tmp_path, "intel-rapl:1", "package-1", 90)
    package(tmp_path, "intel-rapl:0:0", "core", 5)
    package(tmp_path, "intel-rapl:2", "psys", 200)
    counter = energy_counter("cpu")
    assert (counter.source, counter.reason) == ("RAPL", None)
    before = counter.read()
    (first / "energy_uj").write_text("12500000")
    # The counter was full in between.
    (second / "energy_uj").write_text("4000000")
    assert counter.used(before, counter.read()) == pytest.approx(2.5 + 14)


def test_without_counters_there_is_no_energy_but_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "_POWERCAP", tmp_path)
    counter = energy_counter("cpu")
    assert counter.source is None
    assert "no counters" in str(counter.reason)
    assert counter.used(counter.read(), counter.read()) is None


def test_counters_that_may_not_be_read_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "_POWERCAP", tmp_path)
    place = package(tmp_path, "intel-rapl:0", "package-0", 1)
    (place / "energy_uj").unlink()
    counter = energy_counter("cpu")
    assert counter.source is None
    assert "administrator" in str(counter.reason)
