from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fgnet.benchmarks.compare import compare, main
from fgnet.benchmarks.result_file import Result, as_result, label_of, read_result
from fgnet.volumes.errors import FGNetError

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
ENGINES = RESULTS / "engine-tiny-scale1-epyc-2cores.json"
DECODERS = RESULTS / "decode-fib25-epyc-2cores.json"
PIPELINES = RESULTS / "pipeline-tiny-500-steps-xeon-2cores.json"
SIZES = RESULTS / "scale-nano-onnxruntime-wide-stride-epyc-2cores.json"

Change = Callable[[dict[str, Any]], None]


def changed(path: Path, *changes: Change) -> Result:
    data = json.loads(path.read_text())
    for change in changes:
        change(data)
    return as_result(data, path.name)


def faster(name: str, times: float, ratio: float | None = None) -> Change:
    """A row of engines that runs so many times as fast, and beside its reference so many times."""

    def change(data: dict[str, Any]) -> None:
        for row in data["results"]:
            if row["name"] == name:
                for key in ("voxels_per_second", "slowest", "fastest"):
                    row[key] *= times
                row["ratio"] *= times if ratio is None else ratio

    return change


def verdicts(old: Result, new: Result, **options: Any) -> dict[str, str]:
    return {change.label: change.verdict for change in compare(old, new, **options)}


@pytest.mark.parametrize(
    ("times", "ratio", "verdict"),
    [
        (0.8, None, "slower"),
        (1.25, None, "faster"),
        (0.95, None, "within noise"),
        (1.05, None, "within noise"),
        # The machine was slower, or the reference faster: neither is a change of the row.
        (0.7, 1.0, "within noise"),
        (1.0, 0.7, "within noise"),
    ],
)
def test_a_row_changed_where_speed_and_ratio_say_so(times: float, ratio: float | None, verdict: str) -> None:
    found = verdicts(changed(ENGINES), changed(ENGINES, faster("openvino int8", times, ratio)))
    assert found.pop("openvino int8") == verdict
    assert found.pop("torch fp32 (eager)") == "reference"
    assert set(found.values()) == {"within noise"}


def test_a_slower_machine_is_no_regression() -> None:
    names = [row["name"] for row in changed(ENGINES).rows]
    assert (
        "slower"
        not in verdicts(changed(ENGINES), changed(ENGINES, *(faster(name, 0.5, 1.0) for name in names))).values()
    )


def test_noise_is_what_the_windows_of_both_spread() -> None:
    def wide(data: dict[str, Any]) -> None:
        row = data["results"][0]
        middle = row["voxels_per_second"]
        row["all_voxels_per_second"] = [0.7 * middle, middle, 1.3 * middle]

    old, new = changed(ENGINES, wide), changed(ENGINES, wide, faster("openvino int8", 0.8))
    new.rows[0]["all_voxels_per_second"] = [0.8 * each for each in new.rows[0]["all_voxels_per_second"]]
    (change,) = [each for each in compare(old, new) if each.label == "openvino int8"]
    assert change.noise == pytest.approx(2**0.5 * 0.3)
    assert change.verdict == "within noise"


def test_a_row_measured_once_needs_a_large_change() -> None:
    def decoder(times: float) -> Change:
        def change(data: dict[str, Any]) -> None:
            row = data["results"][2]
            row |= {"seconds": row["seconds"] / times, "all_seconds": [row["seconds"] / times]}
            row |= {"voxels_per_second": row["voxels_per_second"] * times, "ratio": row["ratio"] * times}

        return change

    label = "blockwise, affinity, 2 workers, 64 x 512 x 512"
    assert verdicts(changed(DECODERS), changed(DECODERS, decoder(0.85)))[label] == "within noise"
    assert verdicts(changed(DECODERS), changed(DECODERS, decoder(0.7)))[label] == "slower"


def test_a_command_that_starts_or_decodes_slower_is_slower_though_its_affinities_are_not() -> None:
    def slower(data: dict[str, Any]) -> None:
        row = data["results"][0]
        row["seconds"] *= 2

    assert verdicts(changed(SIZES), changed(SIZES, slower)) == {
        "256 x 1024 x 1024": "slower",
        "1024 x 1024 x 1024": "within noise",
    }


def test_where_waterz_did_not_run_the_first_row_is_ours_and_no_reference() -> None:
    def slower(data: dict[str, Any]) -> None:
        for row in data["results"]:
            if row["shape"] == [256, 1024, 1024]:
                row |= {"seconds": row["seconds"] * 2, "all_seconds": [row["seconds"] * 2]}
                row |= {"voxels_per_second": row["voxels_per_second"] / 2}

    found = verdicts(changed(DECODERS), changed(DECODERS, slower))
    assert [label for label, verdict in found.items() if verdict == "slower"] == [
        "blockwise, affinity, 2 workers, 256 x 1024 x 1024",
        "blockwise, sections, 2 workers, 256 x 1024 x 1024",
    ]


def test_rows_of_one_file_alone_are_told_and_judged_not() -> None:
    def without(data: dict[str, Any]) -> None:
        data["results"] = [row for row in data["results"] if row["name"] != "openvino int8"]

    assert verdicts(changed(ENGINES), changed(ENGINES, without))["openvino int8"] == "only in old"
    assert verdicts(changed(ENGINES, without), changed(ENGINES))["openvino int8"] == "only in new"


def test_a_row_that_failed_is_worse(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def failed(data: dict[str, Any]) -> None:
        data["results"] = [row for row in data["results"] if row["name"] != "openvino int8"]
        data["failed"] = [{"name": "openvino int8", "reason": "it broke"}]

    new = changed(ENGINES, failed)
    assert verdicts(changed(ENGINES), new)["openvino int8"] == "failed"
    (tmp_path / "new.json").write_text(json.dumps(new.data))
    assert main([str(ENGINES), str(tmp_path / "new.json")]) == 1
    assert "0 slower, 0 faster, beyond noise, 1 failed" in capsys.readouterr().out


def test_decoders_are_held_to_waterz_on_the_same_fragments() -> None:
    rows = {label_of("decode", row): row for row in read_result(DECODERS).rows}
    for name in ("affinity", "sections"):
        ours = rows[f"blockwise, {name}, 2 workers, 128 x 1024 x 1024"]
        theirs = rows[f"waterz, {name}, uint8, 128 x 1024 x 1024"]
        assert ours["ratio"] == pytest.approx(theirs["seconds"] / ours["seconds"], abs=1e-3)
        assert rows[f"blockwise, {name}, 2 workers, 256 x 1024 x 1024"]["ratio"] is None


@pytest.mark.parametrize(
    ("path", "change", "told"),
    [
        (SIZES, lambda data: data.update(command=["fgnet-run", "VOLUME"]), "another command"),
        (ENGINES, lambda data: data["results"][0].update(threads=7), "another threads"),
        (PIPELINES, lambda data: data["decoding"].update(threshold=0.9), "another decoding"),
        (PIPELINES, lambda data: data["results"][-1].update(command=["fgnet-run"]), "another command"),
    ],
)
def test_what_ran_in_another_way_is_not_judged(path: Path, change: Change, told: str) -> None:
    with pytest.raises(FGNetError, match=rf"{told}.*--across-machines"):
        compare(changed(path), changed(path, change))
    assert compare(changed(path), changed(path, change), across_machines=True)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda data: data["machine"].update(cpu="another"), "another cpu"),
        (lambda data: data["machine"].update(cores=64), "another cores"),
        (lambda data: data["machine"].update(gpus=[{"name": "G"}]), "another GPU"),
        (lambda data: data.update(model="other"), "another model"),
    ],
)
def test_other_machines_and_settings_are_refused_unless_asked_for(change: Change, told: str) -> None:
    old, new = changed(ENGINES), changed(ENGINES, change)
    with pytest.raises(FGNetError, match=rf"{told}.*--across-machines"):
        compare(old, new)
    assert compare(old, new, across_machines=True)


def test_other_benchmarks_and_other_rows_are_refused() -> None:
    with pytest.raises(FGNetError, match="one is of fgnet-bench engine, the other of decode"):
        compare(changed(ENGINES), changed(DECODERS), across_machines=True)

    def renamed(data: dict[str, Any]) -> None:
        for row in data["results"]:
            row["name"] = f"my {row['name']}"

    with pytest.raises(FGNetError, match="no row is in both"):
        compare(changed(ENGINES), changed(ENGINES, renamed))


def test_the_exit_code_tells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    slow = changed(ENGINES, faster("openvino bf16", 0.5))
    (tmp_path / "slow.json").write_text(json.dumps(slow.data))
    assert main([str(ENGINES), str(ENGINES)]) == 0
    table = capsys.readouterr().out
    assert "0 slower, 0 faster, beyond noise" in table
    assert table.endswith("ranking: the same, of rows that both files tell apart\n")
    assert main([str(ENGINES), str(tmp_path / "slow.json")]) == 1
    table = capsys.readouterr().out
    assert re.search(r"^ranking: openvino bf16 was faster than \S.*, and is slower$", table, re.MULTILINE)
    assert [line for line in table.splitlines() if line.startswith("openvino bf16") and line.endswith("slower")]
    assert main([str(ENGINES), str(tmp_path / "slow.json"), "--floor", "2"]) == 0
    assert main([str(ENGINES), str(DECODERS)]) == 2
    assert main([str(ENGINES), str(tmp_path / "none.json")]) == 2
    assert "none.json: it cannot be read" in capsys.readouterr().err


def test_it_runs_as_a_script() -> None:
    script = [sys.executable, ROOT / "benchmarks" / "compare.py", ENGINES, ENGINES]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_it_was_given_is_left_as_it_was() -> None:
    old, new = changed(ENGINES), changed(ENGINES)
    before = copy.deepcopy((old.data, new.data))
    compare(old, new)
    assert (old.data, new.data) == before
