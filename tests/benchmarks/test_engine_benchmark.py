from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from fgnet.benchmarks import engine_benchmark
from fgnet.benchmarks.engine_benchmark import EngineOptions, measure_engines
from fgnet.benchmarks.engine_results import EngineBenchmark, settled
from fgnet.benchmarks.row_process import RowProcess
from fgnet.benchmarks.rows import Row, RowPlan, plan_rows
from fgnet.benchmarks.tissue import column_of, column_shape, sections_at, synthetic_column
from fgnet.engine.bundle import Bundle
from fgnet.export.inspection import inspect_bundle
from fgnet.volumes.errors import BackendError, BundleError, VolumeError
from fgnet.volumes.geometry import Box
from fgnet.volumes.reading import open_volume
from fgnet.volumes.space import Space
from fgnet.volumes.writing import create_image

Alter = Callable[..., Bundle]
EAGER = Row("torch fp32 (eager)", "torch", "fp32", "cpu", whole=True)
PAIRS = replace(EAGER, name="torch fp32 (eager, batch 2)", batch=2)
KEPT = replace(EAGER, name="torch fp32 (eager, memory kept)", keeps_memory=True)
ORT = Row("onnxruntime fp32", "onnxruntime", "fp32", "cpu")
QUICK = EngineOptions(blocks=2, repeats=2, threads=1, apart=False, roofline=False)


@pytest.fixture(autouse=True)
def _installed() -> None:
    for package in ("torch", "onnxruntime"):
        pytest.importorskip(package, reason="rows need the extra fgnet[train]")


@pytest.fixture(scope="session")
def gray(bundle: Bundle) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, column_shape(bundle.manifest, 2), dtype=np.uint8)


@pytest.fixture(scope="session")
def together(bundle: Bundle, gray: npt.NDArray[np.uint8]) -> tuple[EngineBenchmark, list[str]]:
    """Four rows measured in turn, with the device's peaks, and what was said."""
    said: list[str] = []
    plan = RowPlan((EAGER, KEPT, PAIRS, ORT), None)
    options = replace(QUICK, roofline=True)
    return measure_engines(bundle, gray, plan, options, source="noise", say=said.append), said


def test_every_row_has_its_speed_beside_eager_pytorch(together: tuple[EngineBenchmark, list[str]]) -> None:
    found = together[0]
    by_name = {result.name: result for result in found.results}
    assert by_name.keys() == {EAGER.name, KEPT.name, PAIRS.name, ORT.name}
    rates = [result.voxels_per_second for result in found.results]
    assert rates == sorted(rates, reverse=True)
    assert by_name[EAGER.name].ratio == 1
    assert by_name[KEPT.name].ratio_memory_kept == 1
    ratio, kept = by_name[ORT.name].ratio, by_name[KEPT.name].ratio
    assert ratio is not None
    assert kept is not None
    assert by_name[ORT.name].ratio_memory_kept == pytest.approx(ratio / kept)
    assert (found.no_reference, found.failed, found.apart) == (None, (), False)


def test_a_voxel_of_output_is_one_that_no_other_block_gives(
    together: tuple[EngineBenchmark, list[str]], bundle: Bundle
) -> None:
    for result in together[0].results:
        assert result.windows == QUICK.repeats
        assert result.slowest <= result.voxels_per_second <= result.fastest
        assert result.spread == pytest.approx((result.fastest - result.slowest) / 2 / result.voxels_per_second)
        assert result.voxels_per_second * result.seconds_per_block == pytest.approx(np.prod(bundle.manifest.stride))
        assert result.warm_up_seconds > 0
        assert result.peak_memory_bytes is None or result.peak_memory_bytes > 1 << 24


def test_every_window_is_told(together: tuple[EngineBenchmark, list[str]]) -> None:
    for result in together[0].results:
        assert len(result.all_voxels_per_second) == len(result.all_ratios) == QUICK.repeats
        assert min(result.all_voxels_per_second) == result.slowest
        assert max(result.all_voxels_per_second) == result.fastest
        eager = next(other for other in together[0].results if other.name == EAGER.name)
        assert result.ratio == pytest.approx(result.voxels_per_second / eager.voxels_per_second)
    assert {result.name: result.batch for result in together[0].results}[PAIRS.name] == 2


def test_every_row_has_its_share_of_what_the_device_does(
    together: tuple[EngineBenchmark, list[str]], bundle: Bundle
) -> None:
    roofline = together[0].roofline
    assert roofline is not None
    assert roofline.reason is None
    assert roofline.peaks is not None
    cost = inspect_bundle(bundle).precisions[0].cost
    for result in together[0].results:
        flops = cost.voxel_reusing if result.name == ORT.name else cost.voxel_alone
        assert result.flops_per_voxel == flops
        assert result.bytes_per_voxel is not None
        limits = {
            "operations": roofline.peaks.flops_per_second["fp32"] / flops,
            "memory": roofline.peaks.bytes_per_second / result.bytes_per_voxel,
        }
        assert result.limit_voxels_per_second == pytest.approx(min(limits.values()))
        assert result.limited_by == min(limits, key=lambda name: limits[name])
        assert result.share_of_limit == pytest.approx(result.voxels_per_second / min(limits.values()))


def test_energy_is_told_or_why_there_is_none(together: tuple[EngineBenchmark, list[str]]) -> None:
    energy = together[0].energy
    assert (energy["source"] is None) != (energy["reason"] is None)
    for result in together[0].results:
        assert (result.joules_per_gigavoxel is None) == (energy["source"] is None)


def test_all_rows_gave_the_affinities_of_eager_pytorch(together: tuple[EngineBenchmark, list[str]]) -> None:
    for result in together[0].results:
        assert result.mean_difference is not None
        assert result.mean_difference < 1e-3


def test_rounds_are_announced_and_the_result_is_plain_data(together: tuple[EngineBenchmark, list[str]]) -> None:
    found, said = together
    assert [line for line in said if line.startswith("round")] == ["round 1 of at most 2", "round 2 of at most 2"]
    data = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert data.keys() >= {"machine", "model", "patch", "stride", "blocks", "gray", "results", "failed"}
    assert data["results"][0].keys() >= {"backend", "precision", "device", "voxels_per_second", "ratio", "settled"}


def test_apart_each_row_has_eager_pytorch_beside_it(bundle: Bundle, gray: npt.NDArray[np.uint8]) -> None:
    second = replace(ORT, name="again")
    plan, options = RowPlan((EAGER, ORT, second), None), replace(QUICK, apart=True, repeats=1)
    found = measure_engines(bundle, gray, plan, options, source="noise")
    windows = {result.name: result.windows for result in found.results}
    assert windows == {EAGER.name: 2, ORT.name: 1, second.name: 1}
    assert all(result.ratio is not None for result in found.results)
    assert found.apart


@pytest.mark.parametrize("apart", [False, True])
def test_launches_are_new_processes_whose_windows_count_alike(
    bundle: Bundle, gray: npt.NDArray[np.uint8], apart: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pids: list[tuple[str, int]] = []
    started = RowProcess.open

    def noting(process: RowProcess, *order: Any) -> dict[str, Any]:
        pids.append((process.row.name, process.pid))
        return started(process, *order)

    monkeypatch.setattr(RowProcess, "open", noting)
    second = replace(ORT, name="again")
    plan, options = RowPlan((EAGER, ORT, second), None), replace(QUICK, apart=apart, launches=2)
    found = measure_engines(bundle, gray, plan, options, source="noise")
    windows = {result.name: result.windows for result in found.results}
    # Apart, the reference runs beside each of the others.
    assert windows == {EAGER.name: 8 if apart else 4, ORT.name: 4, second.name: 4}
    assert len(set(pids)) == len(pids)
    names = [name for name, _ in pids]
    assert {name: names.count(name) for name in windows} == {EAGER.name: 3 if apart else 2, ORT.name: 2, second.name: 2}
    assert found.launches == 2
    assert found.failed == ()


def test_a_row_that_fails_in_its_second_process_is_told_of(
    bundle: Bundle, gray: npt.NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    started, opened = RowProcess.open, []

    def failing(process: RowProcess, *order: Any) -> dict[str, Any]:
        opened.append(process.row.name)
        if opened.count(ORT.name) == 2 and process.row.name == ORT.name:
            os.kill(process.pid, signal.SIGKILL)
        return started(process, *order)

    monkeypatch.setattr(RowProcess, "open", failing)
    plan = RowPlan((EAGER, ORT), None)
    found = measure_engines(bundle, gray, plan, replace(QUICK, launches=2), source="noise")
    assert [(result.name, result.windows) for result in found.results] == [(EAGER.name, 4)]
    assert [row.name for row in found.failed] == [ORT.name]
    assert "was killed" in found.failed[0].reason


@pytest.mark.parametrize(("free", "apart"), [(1 << 20, True), (None, False)])
def test_rows_are_measured_apart_where_memory_is_short(
    free: int | None, apart: bool, bundle: Bundle, gray: npt.NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_benchmark, "available_memory", lambda: free)
    second = replace(ORT, name="again")
    options = replace(QUICK, apart=None, repeats=1)
    assert measure_engines(bundle, gray, RowPlan((ORT, second), "no"), options, source="noise").apart is apart


def test_without_pytorch_there_are_speeds_but_no_ratios(bundle: Bundle, gray: npt.NDArray[np.uint8]) -> None:
    options = replace(QUICK, repeats=5, agreement=1000.0)
    found = measure_engines(bundle, gray, RowPlan((ORT,), "it is not there"), options, source="noise")
    (result,) = found.results
    assert (result.ratio, result.ratio_memory_kept, result.mean_difference) == (None, None, None)
    assert found.no_reference == "it is not there"
    # Once the last three agree no more are run.
    assert (result.windows, result.settled) == (3, True)


def test_a_row_that_fails_is_told_of_and_ends_nothing(altered: Alter, gray: npt.NDArray[np.uint8]) -> None:
    broken = altered()
    assert broken.manifest.checkpoint is not None
    (broken.path / broken.manifest.checkpoint).unlink()
    found = measure_engines(broken, gray, RowPlan((EAGER, ORT), None), replace(QUICK, repeats=1), source="noise")
    assert [result.name for result in found.results] == [ORT.name]
    assert found.results[0].ratio is None
    (failed,) = found.failed
    assert failed.name == EAGER.name
    assert "no such file" in failed.reason
    assert found.no_reference is not None
    assert "no such file" in found.no_reference


def test_if_all_rows_fail_the_error_says_why(altered: Alter, gray: npt.NDArray[np.uint8]) -> None:
    broken = altered()
    (broken.path / broken.manifest.graphs[0].decoder).unlink()
    (broken.path / broken.manifest.graphs[0].decoder).write_bytes(b"no graph")
    with pytest.raises(BackendError, match=r"no row could be measured .*onnxruntime fp32: .*does not take the graph"):
        measure_engines(broken, gray, RowPlan((ORT,), "no"), QUICK, source="noise")


def test_default_rows_are_pytorchs_ways_and_what_is_installed(bundle: Bundle) -> None:
    plan = plan_rows(bundle, device="cpu")
    names = [row.name for row in plan.rows]
    assert plan.rows[0] == EAGER
    assert plan.no_reference is None
    assert {"torch bf16 (autocast)", "torch fp32 (torch.compile)", ORT.name} <= set(names)
    assert len(set(names)) == len(names)
    assert [row.is_reference for row in plan.rows].count(True) == 1


def test_eager_pytorch_is_measured_whatever_was_asked_for(bundle: Bundle) -> None:
    rows = plan_rows(bundle, backends=["onnxruntime"], device="cpu").rows
    assert [row for row in rows if not row.is_eager] == [ORT]
    assert rows[0] == EAGER
    rows = plan_rows(bundle, precisions=["bf16"], device="cpu").rows
    assert {row.precision for row in rows if not row.is_eager} == {"bf16"}


def test_on_a_gpu_autocast_is_fp16_and_memory_is_not_the_c_librarys(bundle: Bundle) -> None:
    rows = plan_rows(bundle, backends=["torch"], device="cuda").rows
    assert [row.name for row in rows] == ["torch fp32 (eager)", "torch fp16 (autocast)"]


def test_batches_are_rows_of_pytorch_alone(bundle: Bundle) -> None:
    rows = plan_rows(bundle, device="cpu", batches=[1, 2, 2]).rows
    larger = [row for row in rows if row.batch > 1]
    assert {row.batch for row in larger} == {2}
    assert all(row.whole and row.name.endswith(", batch 2)") for row in larger)
    assert len({row.name for row in rows}) == len(rows)
    assert [row for row in rows if row.is_reference] == [EAGER]


def test_max_autotune_is_measured_where_it_is_asked_for(bundle: Bundle) -> None:
    assert not [row for row in plan_rows(bundle, device="cpu").rows if row.mode is not None]
    rows = plan_rows(bundle, backends=["torch-compile-max-autotune"], device="cpu").rows
    assert {row.mode for row in rows if not row.is_eager} == {"max-autotune"}
    assert {row.backend for row in rows if not row.is_eager} == {"torch-compile"}


def test_a_bundle_without_checkpoint_leaves_pytorch_out_and_says_so(altered: Alter) -> None:
    bare = altered(checkpoint=None)
    plan = plan_rows(bare, device="cpu")
    assert plan.rows
    assert not [row for row in plan.rows if row.whole]
    assert plan.no_reference is not None
    assert "no checkpoint" in plan.no_reference
    with pytest.raises(BundleError, match="no checkpoint"):
        plan_rows(bare, backends=["torch"], device="cpu")
    with pytest.raises(BundleError, match="no checkpoint"):
        plan_rows(bare, backends=["torch-compile-max-autotune"], device="cpu")


@pytest.mark.parametrize(
    ("backends", "precisions", "message"),
    [
        (["tflite"], [], "no backend 'tflite'"),
        (["tensorrt"], [], "does not run on the device cpu"),
        ([], ["fp8"], "no precision 'fp8'"),
        ([], ["int8"], "no graphs of precision int8"),
        (["onnxruntime"], ["bf16"], "no graphs of precision bf16"),
        (["onnxruntime", "torch"], ["bf16"], "onnxruntime: it does not run this bundle at bf16 here"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    bundle: Bundle, backends: list[str], precisions: list[str], message: str
) -> None:
    with pytest.raises((BackendError, BundleError), match=message):
        plan_rows(bundle, backends=backends, precisions=precisions, device="cpu")


def test_rows_settle_when_the_last_three_agree() -> None:
    assert not settled([1.0, 1.0], 0.05)
    assert not settled([1.0, 1.0, 1.1], 0.05)
    assert settled([3.0, 1.0, 1.02, 1.04], 0.05)


def test_the_column_is_a_ring() -> None:
    sections = np.arange(6, dtype=np.uint8)[:, None, None] * np.ones((1, 2, 2), np.uint8)
    assert sections_at(sections, 4, 4)[:, 0, 0].tolist() == [4, 5, 0, 1]
    assert sections_at(sections, 6 * 7 + 1, 3)[:, 1, 1].tolist() == [1, 2, 3]


def test_synthetic_tissue_fills_the_column(bundle: Bundle) -> None:
    column = synthetic_column(bundle.manifest, 2)
    assert column.shape == column_shape(bundle.manifest, 2) == (4, 64, 64)
    assert column.std() > 5


def test_a_volume_gives_its_middle_and_has_to_be_large_enough(bundle: Bundle, tmp_path: Path) -> None:
    gray = np.random.default_rng(1).integers(0, 256, (8, 66, 68), dtype=np.uint8)
    writer = create_image(tmp_path / "v.zarr", shape=gray.shape, dtype=gray.dtype, space=Space((10.0, 10.0, 10.0)))
    writer.write(Box.from_shape(gray.shape), gray)
    writer.finish()
    with open_volume(tmp_path / "v.zarr") as volume:
        assert np.array_equal(column_of(volume, bundle.manifest, 2), gray[2:6, 1:65, 2:66])
        with pytest.raises(VolumeError, match=r"8 x 66 x 68 voxels, and 5 blocks .* need 10 x 64 x 64"):
            column_of(volume, bundle.manifest, 5)
