from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import zarr

from fgnet.benchmarks import pipeline_ways, pipeline_worker
from fgnet.benchmarks.pipeline_benchmark import PipelineOptions, PipelineVolume, _result, _Scored, measure_pipelines
from fgnet.benchmarks.pipeline_rounds import Rounds
from fgnet.benchmarks.pipeline_run import Decoding, Measured, Task, run_way
from fgnet.benchmarks.pipeline_ways import BASELINES, Way, plan_ways
from fgnet.benchmarks.pipeline_worker import Clock, Eager, monai_affinities, paper_affinities
from fgnet.benchmarks.tissue import write_sample
from fgnet.engine.bundle import Bundle
from fgnet.engine.bundle import Decoding as Advice
from fgnet.engine.inference import ArraySource, predict_affinities
from fgnet.engine.torch_runner import TorchRunner
from fgnet.postproc.metrics import score
from fgnet.postproc.waterz_decoder import WaterzOptions
from fgnet.volumes.errors import BackendError, VolumeError
from fgnet.volumes.reading import open_volume, read_gray, read_labels

torch = pytest.importorskip("torch", reason="the rows need the extra fgnet[train]")

SHAPE = (6, 80, 96)


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Addresses of gray and labels."""
    return write_sample(tmp_path_factory.mktemp("sample") / "sample.zarr", SHAPE)


@pytest.fixture
def monai() -> None:
    pytest.importorskip("monai", reason="MONAI's way needs the extra fgnet[bench]")


class Pointwise(torch.nn.Module):
    """A network whose affinities are known at every voxel, whatever block it lies in."""

    def infer(self, gray: Any) -> Any:
        assert gray.shape == (1, 1, 4, 64, 64)
        return torch.cat([torch.logit(gray * scale + 0.1) for scale in (0.3, 0.5, 0.7)], dim=1)


@pytest.mark.parametrize("shape", [(4, 64, 64), (9, 64, 101), (3, 70, 40)], ids=str)
@pytest.mark.parametrize("way", ["paper", "monai"])
def test_blocks_are_blended_into_the_volume(way: str, shape: tuple[int, int, int], request: Any) -> None:
    blend: Callable[..., Any] = paper_affinities
    if way == "monai":
        request.getfixturevalue("monai")
        blend = monai_affinities
    gray = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    eager = Eager(Pointwise(), (4, 64, 64), "cpu", Clock())  # type: ignore[arg-type]
    found = blend(gray, eager)
    assert (found.dtype, found.shape) == (np.float32, (3, *shape))
    for channel, scale in zip(found, (0.3, 0.5, 0.7), strict=True):
        np.testing.assert_allclose(channel, gray / 255 * scale + 0.1, atol=1e-5)
    assert eager.clock.seconds["inference"] > 0
    assert eager.clock.seconds["blending"] > 0


def test_the_papers_affinities_are_those_of_fgnet_run_but_for_rounding(
    bundle: Bundle, build: Callable[[Bundle], Any], sample: tuple[str, str], one_torch_thread: None
) -> None:
    with open_volume(sample[0]) as volume:
        gray = read_gray(volume, volume.box)
    patch = bundle.manifest.patch
    found = paper_affinities(gray, Eager(build(bundle), patch, "cpu", Clock()))
    stride = (patch[0] // 2, patch[1] // 2, patch[2] // 2)
    ours = predict_affinities(ArraySource(gray), TorchRunner(build(bundle), patch, device="cpu"), stride=stride)
    # A patch is rounded to 1/255 before it is blended, and so is the blend.
    assert np.abs(found * 255 - ours).max() < 1.01


@pytest.mark.parametrize("min_size", [0, 200])
def test_monais_way_is_gone_to_its_end(
    bundle: Bundle, sample: tuple[str, str], tmp_path: Path, monai: None, min_size: int, one_torch_thread: None
) -> None:
    order = {
        "kind": "monai",
        "bundle": str(bundle.path),
        "volume": sample[0],
        "output": str(tmp_path / "labels"),
        "device": "cpu",
        "threads": 1,
        "threshold": 0.5,
        "waterz": {"fragments": "sections", "scoring": "mean"},
        "min_size": min_size,
    }
    told = pipeline_worker._segment(order)
    labels = zarr.open_array(tmp_path / "labels", mode="r")[:]
    assert (labels.shape, labels.dtype) == (SHAPE, np.uint64)
    ids, counts = np.unique(labels[labels > 0], return_counts=True)
    assert ids.tolist() == list(range(1, told["segments"] + 1))
    assert counts.min() >= min_size
    assert list(told["stages"]) == ["read", "inference", "blending", "decode", "write"]
    assert (told["precision"], told["device"], told["threads"]) == ("fp32", "cpu", 1)


def test_ways_are_pytorchs_and_fgnet_runs(bundle: Bundle, monai: None) -> None:
    ways, left_out = plan_ways(bundle, "cpu", run=["--threads", "1"], more_runs=[["--decoder", "blockwise"]])
    kinds = [(way.kind, way.keeps_memory) for way in ways]
    assert kinds[:4] == [("paper", False), ("paper", True), ("monai", False), ("monai", True)]
    assert [way.is_reference for way in ways] == [True] + [False] * 5
    assert [way.name for way in ways[4:]] == ["fgnet-run --threads 1", "fgnet-run --decoder blockwise"]
    assert left_out == []
    # In the order of the table, whatever the order they were asked for in; the same row is not run twice.
    ways, _ = plan_ways(bundle, "cpu", baselines=["monai", "paper"], more_runs=[[]])
    assert [way.kind for way in ways] == ["paper", "monai", "fgnet-run"]


def test_what_cannot_be_gone_is_left_out_with_a_reason(
    bundle: Bundle, altered: Callable[..., Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    ways, left_out = plan_ways(altered(checkpoint=None), "cpu")
    assert [way.kind for way in ways] == ["fgnet-run"]
    assert len(left_out) == len(BASELINES)
    assert all("no checkpoint" in one.reason for one in left_out)
    _, left_out = plan_ways(bundle, "cuda", baselines=["paper", "paper-kept"])
    assert [(one.name, "on a GPU" in one.reason) for one in left_out] == [("the paper's way, memory kept", True)]
    monkeypatch.setattr(pipeline_ways, "find_spec", lambda name: None)
    _, left_out = plan_ways(bundle, "cpu", baselines=["paper", "monai"])
    assert [(one.name, "pip install 'fgnet[bench]'" in one.reason) for one in left_out] == [("MONAI", True)]


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"baselines": ["tensorflow"]}, "there is no way 'tensorflow'"),
        ({"run": ["--roi", "0:4,:,:"]}, "--roi is not for a comparison"),
        ({"run": ["--decoder", "none"]}, "no segmentation to compare"),
        ({"more_runs": [["--model=other.bundle"]]}, "--model=other.bundle is not for a comparison"),
    ],
    ids=str,
)
def test_ways_that_would_compare_something_else_are_refused(asked: Any, told: str) -> None:
    with pytest.raises(BackendError, match=told):
        PipelineOptions(**asked)


def test_pytorchs_ways_decode_as_fgnet_run_did(altered: Callable[..., Bundle]) -> None:
    bundle = altered(decoding=Advice(quantile=75, threshold=0.25))
    advised = Decoding(0.25, WaterzOptions(quantile=75))
    assert Decoding.advised(bundle) == advised
    options = WaterzOptions(scoring="mean", mask_threshold=0.1)
    told = {"decoder": "waterz", "threshold": 0.7, "min_size": 9, "save_affinities": False, **vars(options)}
    assert Decoding.of_run(told, bundle) == Decoding(0.7, options, 9)
    assert Decoding.of_run({"decoder": "blockwise", "threshold": 0.7}, bundle) == advised


def test_volumes_and_labels_that_do_not_do_are_refused_before_anything_runs(
    bundle: Bundle, sample: tuple[str, str], tmp_path: Path
) -> None:
    gray, labels = sample
    other = zarr.create_array(str(tmp_path / "other.zarr"), shape=(2, 4, 4), dtype="uint8")
    blank = zarr.create_array(str(tmp_path / "blank.zarr"), shape=SHAPE, dtype="uint8")
    for address, truth, told in (
        (gray, str(tmp_path / "other.zarr"), r"the labels have shape \(2, 4, 4\), the volume \(6, 80, 96\)"),
        (gray, str(tmp_path / "blank.zarr"), "all labels are 0"),
        (labels, None, "gray values are uint32"),
    ):
        with pytest.raises(VolumeError, match=told):
            measure_pipelines(
                bundle, PipelineVolume(address, truth, "it"), PipelineOptions(), folder=tmp_path, say=print
            )
    assert (other.shape, blank.shape) == ((2, 4, 4), SHAPE)


@pytest.mark.parametrize(
    ("code", "errors", "told"),
    [
        (1, "1 % done\nerror: backend torch: PyTorch finds no GPU\n", "way: backend torch: PyTorch finds no GPU"),
        (2, "Usage: fgnet-run\n╭─ Error ─╮\n│ No such option: --bla │\n╰─╯\n", "exit code 2: No such option: --bla"),
        (-9, "", "way: its process was killed; the machine's memory may be too small for it"),
    ],
)
def test_a_way_that_fails_says_why(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, errors: str, told: str
) -> None:
    ended = SimpleNamespace(returncode=code, stderr=errors)
    monkeypatch.setattr("fgnet.benchmarks.pipeline_run.subprocess.run", lambda *_, **__: ended)
    task = Task(bundle, "v.zarr", "cpu", Decoding.advised(bundle))
    for way in (Way("way", "paper"), Way("way", "fgnet-run")):
        with pytest.raises(BackendError) as raised:
            run_way(way, task, tmp_path / "out.zarr")
        assert str(raised.value).endswith(told)


def test_stages_are_those_of_the_median_repeat(bundle: Bundle, tmp_path: Path) -> None:
    runner = {"backend": "b", "precision": "fp32", "device": "cpu", "threads": 1}
    paper, ours = Way("paper", "paper"), Way("ours", "fgnet-run")
    rounds = Rounds([paper, ours], [], tmp_path, print)
    for way, taken in ((paper, [40.0, 30.0, 90.0, 50.0]), (ours, [4.0, 9.0, 2.0])):
        rounds.measured[way] = [
            Measured(seconds, {"start": seconds}, {}, int(100 * seconds), 1, runner) for seconds in taken
        ]
    scores = _Scored(dict.fromkeys(rounds.measured), dict.fromkeys(rounds.measured))
    task = Task(bundle, "v.zarr", "cpu", Decoding.advised(bundle))
    theirs, row = (_result(way, told, scores, rounds, task, voxels=450) for way, told in rounds.measured.items())
    # Of an even number the faster one of the middle.
    assert (theirs.seconds, theirs.stages) == (45, {"start": 40})
    assert (row.seconds, row.stages, row.peak_memory_bytes) == (4, {"start": 4}, 900)
    assert (row.ratio, theirs.ratio, theirs.voxels_per_second, row.ratio_memory_kept) == (11.25, 1, 10, None)
    assert row.all_seconds == (4, 9, 2)


def test_every_row_is_timed_and_scored(bundle: Bundle, sample: tuple[str, str], tmp_path: Path) -> None:
    said: list[str] = []
    options = PipelineOptions(
        baselines=["paper", "paper-kept"],
        more_runs=[["--depth", "7"]],
        repeats=1,
        threads=1,
        device="cpu",
        command=["fgnet-bench", "pipeline"],
    )
    benchmark = measure_pipelines(
        bundle, PipelineVolume(*sample, "synthetic neuropil"), options, folder=tmp_path, say=said.append
    )
    told = json.loads(json.dumps(benchmark.to_dict(), allow_nan=False))
    assert list(tmp_path.iterdir()) == []
    paper, kept, ours = told["results"]
    assert [row["name"] for row in told["results"]] == ["the paper's way", "the paper's way, memory kept", "fgnet-run"]
    assert [one["name"] for one in told["left_out"]] == ["fgnet-run --depth 7"]
    assert "No such option: --depth" in told["left_out"][0]["reason"]
    for row in told["results"]:
        assert row["seconds"] == pytest.approx(sum(row["stages"].values()), abs=0.01)
        assert row["all_seconds"] == [row["seconds"]]
        assert row["voxels_per_second"] == pytest.approx(np.prod(SHAPE) / row["seconds"], rel=0.01)
        assert row["ratio"] == pytest.approx(paper["seconds"] / row["seconds"], abs=2e-3)
        assert row["ratio_memory_kept"] == pytest.approx(kept["seconds"] / row["seconds"], abs=2e-3)
        assert row["peak_memory_bytes"] > 1 << 24
        assert row["device"] == "cpu"
        assert row["threads"] == 1
        assert row["delta_voi"] == pytest.approx(row["voi_to_truth"] - paper["voi_to_truth"], abs=1e-5)
        assert row["voi_to_truth"] == pytest.approx(row["voi_split_to_truth"] + row["voi_merge_to_truth"], abs=1e-5)
    assert told["ratio"] == ours["ratio"]
    assert paper["ratio"] == paper["voi_to_reference"] + 1 == paper["arand_to_reference"] + 1 == 1
    # Of noise, the segmentations are many small segments, which rounding changes a little.
    assert 0 <= ours["voi_to_reference"] < 0.1 * ours["voi_to_truth"]
    assert (paper["stages"]["inference"] > 0, paper["busy"], paper["command"]) == (True, {}, [])
    assert list(ours["stages"]) == ["start", "affinities", "decode", "write"]
    assert ours["busy"]["decode"] > 0
    assert ours["command"][:4] == ["fgnet-run", "VOLUME", "--model", bundle.path.name]
    assert [line for line in said if line.startswith("round 1 of 1: fgnet-run:")]
    assert told["decoding"]["options"]["fragments"] == bundle.manifest.decoding.fragments
    with open_volume(sample[1]) as volume:
        one_segment = score(np.ones(SHAPE, np.uint64), read_labels(volume, volume.box))
    assert paper["voi_to_truth"] != pytest.approx(one_segment.voi)
