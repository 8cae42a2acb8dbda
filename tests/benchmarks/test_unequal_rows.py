"""Rows that the export found not equal to eager PyTorch are measured, and named as what fgnet-run refuses."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
from rich.console import Console

from fgnet.benchmarks.engine_benchmark import EngineOptions, measure_engines
from fgnet.benchmarks.engine_table import render
from fgnet.benchmarks.plot_style import plotting
from fgnet.benchmarks.report_sections import section_of
from fgnet.benchmarks.result_file import as_result
from fgnet.benchmarks.rows import Row, RowPlan
from fgnet.benchmarks.tissue import column_shape
from fgnet.engine.bundle import Bundle

pytest.importorskip("onnxruntime", reason="the row needs the extra fgnet[cpu]")

ROW = Row("onnxruntime fp32", "onnxruntime", "fp32", "cpu")
NOTE = "fgnet-run refuses what the export found not equal to eager PyTorch: onnxruntime fp32."


@pytest.mark.parametrize(("passed", "equal"), [((True, False), False), ((True, True), True), ((), None)])
def test_a_row_is_as_equal_as_its_reports_say(
    passed: tuple[bool, ...], equal: bool | None, altered: Callable[..., Bundle]
) -> None:
    reports = [{"backend": "onnxruntime", "precision": "fp32", "passed": one} for one in passed]
    bundle = altered(parity=(*reports, {"backend": "openvino", "precision": "fp32", "passed": False}))
    gray = np.random.default_rng(0).integers(0, 256, column_shape(bundle.manifest, 2), dtype=np.uint8)
    options = EngineOptions(blocks=2, repeats=1, threads=1, apart=False, roofline=False)
    found = measure_engines(bundle, gray, RowPlan((ROW,), "not asked for"), options, source="noise")
    assert [result.equal for result in found.results] == [equal]
    shown = io.StringIO()
    Console(file=shown, width=200).print(render(found))
    assert (NOTE in shown.getvalue()) == (equal is False)
    with plotting():
        section = section_of(as_result({"benchmark": "engine", "invocation": []} | found.to_dict(), "test"), 0)
    assert (NOTE in section.notes) == (equal is False)
