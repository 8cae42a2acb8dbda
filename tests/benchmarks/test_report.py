from __future__ import annotations

import copy
import io
import re
import shutil
import subprocess
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("matplotlib", reason="reports need the extra fgnet[report]")
pytest.importorskip("jinja2", reason="reports need the extra fgnet[report]")

from fgnet.benchmarks.plot_growth import curves_of
from fgnet.benchmarks.plot_style import OURS, REFERENCE, SERIES, spread_apart
from fgnet.benchmarks.report import report_page
from fgnet.benchmarks.report_tables import table_of
from fgnet.benchmarks.result_file import Result, as_result, label_of, read_result, speeds
from fgnet.volumes.errors import FGNetError

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
RECORDED = sorted(RESULTS.glob("*.json"))
STAGES = {"reading": 2.0, "network": 60.0, "decoding": 18.0}


def recorded(name: str) -> Result:
    return read_result(RESULTS / name)


@pytest.fixture(scope="module")
def pipeline() -> Result:
    machine = recorded("engine-nano-epyc-2cores.json").machine
    rows = []
    for name, speed in (("the paper's way", 1.0), ("fgnet-run <fast> & small", 8.0)):
        rows.append(
            {
                "name": name,
                "seconds": 80 / speed,
                "all_seconds": [80 / speed, 78 / speed, 84 / speed],
                "voxels_per_second": 1e5 * speed,
                "ratio": speed,
                "peak_memory_bytes": 1 << 30,
                "stages": {stage: seconds / speed for stage, seconds in STAGES.items()},
                "voi_to_reference": 0.1,
                "arand_to_reference": 0.05,
                "voi_to_truth": 1.0,
                "delta_voi": 0.01,
            }
        )
    data = {
        "benchmark": "pipeline",
        "invocation": ["fgnet-bench", "pipeline", "--run-options", "a b"],
        "model": "nano",
        "volume": "synthetic <b>neuropil</b>",
        "shape": [16, 256, 256],
        "machine": machine,
        "results": rows,
        "ratio": 8.0,
        "left_out": [{"name": "monai", "reason": "it is not installed"}],
    }
    return as_result(data, "pipeline.json")


@pytest.fixture(scope="module")
def limited() -> Result:
    """A result of engines with limits, as they are told today."""
    data = copy.deepcopy(recorded("engine-nano-epyc-2cores.json").data)
    for row in data["results"]:
        row |= {
            "all_voxels_per_second": [row["slowest"], row["voxels_per_second"], row["fastest"]],
            "all_ratios": [row["ratio"]] * 3,
            "flops_per_voxel": 2e5,
            "bytes_per_voxel": 2e4,
            "limit_voxels_per_second": 1e6,
            "limited_by": "operations",
            "share_of_limit": row["voxels_per_second"] / 1e6,
            "joules_per_gigavoxel": 1234.0,
        }
    peaks = {"device": "cpu", "threads": 2, "flops_per_second": {"fp32": 2e11, "bf16": 4e11}}
    peaks |= {"bytes_per_second": 3e10, "missing": {"int8": "it is not there"}}
    data |= {"roofline": {"peaks": peaks, "reason": None, "counted": "all"}, "energy": {"source": "RAPL"}}
    return as_result(data, "engine.json")


@pytest.fixture(scope="module")
def everything(pipeline: Result, limited: Result) -> list[Result]:
    """A result of each kind, some of before there was all that is told today."""
    older = (
        "decode-fib25-epyc-2cores.json",
        "scale-nano-onnxruntime-wide-stride-epyc-2cores.json",
        "engine-nano-epyc-2cores.json",
    )
    return [*map(recorded, older), pipeline, limited]


@pytest.fixture(scope="module")
def html(everything: list[Result]) -> str:
    return report_page(everything)


class Page(HTMLParser):
    """What a page would fetch or run, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.words: list[str] = []
        self.ids: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "srcset")]
        self.ids += [value or "" for name, value in attrs if name == "id"]

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_every_recorded_file_can_still_be_read(path: Path) -> None:
    result = read_result(path)
    assert result.kind == path.name.partition("-")[0]
    labels = [label_of(result.kind, row) for row in result.rows]
    assert len(set(labels)) == len(labels)
    for row in result.rows:
        assert speeds(result.kind, row).middle == pytest.approx(row["voxels_per_second"], rel=0.1)
    assert table_of(result).rows


def test_megavoxels_a_second_of_volume_sizes_are_of_the_whole_command_as_their_seconds_are() -> None:
    result = recorded("scale-nano-onnxruntime-small-epyc-2cores.json")
    table = table_of(result)
    (cells,) = (dict(zip(table.headings, row, strict=True)) for row in table.rows)
    voxels = 128 * 384 * 512
    assert (cells["s"], cells["affinities, s"]) == ("36.96", "35.29")
    assert float(cells["Mvoxels/s"]) == pytest.approx(voxels / 36.96 / 1e6, abs=1e-3)
    assert speeds("scale", result.rows[0] | {"all_seconds": [10.0, 20.0]}).values == (voxels / 10, voxels / 20)


def test_the_page_stands_by_itself(html: str) -> None:
    page = Page(html)
    assert not {"script", "link", "img", "iframe", "object", "embed"} & set(page.tags)
    assert page.tags.count("svg") == 2 + 1 + 1 + 2 + 1
    assert {address[:1] for address in page.addresses} == {"#"}
    assert {address[1:] for address in page.addresses} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert not re.search(r"@import|url\((?!#)|https?://(?!www\.w3\.org)", html)
    kinds = re.findall(r'<section id="(\w+)-\d', html)
    assert kinds == sorted(kinds, key=["engine", "pipeline", "decode", "scale"].index)


def test_the_page_tells_machine_versions_commit_command_and_spread(html: str, everything: list[Result]) -> None:
    text = " ".join(" ".join(Page(html).words).split())
    machine = everything[0].machine
    assert machine["cpu"] in text
    assert machine["commit"].rstrip("+") in text
    assert f"onnxruntime {machine['packages']['onnxruntime']}" in text
    assert "fgnet-bench pipeline --run-options 'a b'" in text
    assert "fgnet-run VOLUME --decoder none" in text
    assert "decode-fib25-epyc-2cores.json was recorded before commands were" in text
    assert "80 s (the median of 3 repeats, 78 to 84 s)" in text
    assert "16 times the voxels take 31.2 times as long (voxels to the power of 1.20)" in text
    assert "monai was left out: it is not installed" in text
    assert "No peak of int8: it is not there." in text
    assert "1,234" in text


def test_what_a_user_named_is_text_and_no_markup(pipeline: Result) -> None:
    html = report_page([pipeline])
    page = Page(html)
    assert "b" not in page.tags
    assert "fast" not in page.tags
    assert "synthetic <b>neuropil</b>" in "".join(page.words)
    assert "fgnet-run <fast> & small" in page.words


def test_the_same_results_give_the_same_page(pipeline: Result) -> None:
    assert report_page([pipeline]) == report_page([pipeline])


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"benchmark": "cake", "results": [{}], "machine": {}}'])
def test_what_is_no_result_is_refused_by_name(content: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(FGNetError, match=r"x\.json: .*fgnet-bench"):
        read_result(tmp_path / "x.json")


def test_a_result_that_lacks_something_is_named(pipeline: Result) -> None:
    lacking = copy.deepcopy(pipeline)
    del lacking.rows[0]["stages"]
    with pytest.raises(FGNetError, match=r"pipeline\.json: it lacks .*stages.* \(measure it again\)"):
        report_page([lacking])


def test_curves_tell_the_exponent_of_each_way(html: str) -> None:
    curves = {curve.name: curve for curve in curves_of(recorded("decode-fib25-epyc-2cores.json"))}
    found = curves["blockwise, affinity, 2 workers"]
    assert found.voxels == (2.0**24, 2.0**27, 2.0**28)
    assert found.exponent == pytest.approx(
        np.polyfit(np.log(found.voxels), np.log([2.575, 24.406, 80.339]), 1)[0], abs=1e-3
    )
    assert f"blockwise, affinity, 2 workers: voxels^{found.exponent:.2f}" in html


def test_labels_are_moved_apart_and_no_farther_than_needed() -> None:
    assert spread_apart([0.5, 0.1, 0.9], 0.1) == [0.5, 0.1, 0.9]
    moved = spread_apart([0.5, 0.5, 0.52, 0.9], 0.1)
    assert np.diff(sorted(moved)).min() == pytest.approx(0.1)
    assert np.mean(moved[:3]) == pytest.approx(np.mean([0.5, 0.5, 0.52]))
    assert moved[3] == 0.9


def _pixels(folder: Path, html: str) -> npt.NDArray[np.uint8]:
    """A page as Chromium draws it, (y, x, 3)."""
    from PIL import Image

    chromium = next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
    )
    if chromium is None:
        pytest.skip("Chromium is not installed, which draws the page")
    page, shot = folder / "page.html", folder / "page.png"
    page.write_text(html)
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--force-device-scale-factor=1"]
    options += ["--window-size=1100,3200", f"--user-data-dir={folder / 'profile'}", f"--screenshot={shot}"]
    done = subprocess.run([chromium, *options, page.as_uri()], capture_output=True, check=False, timeout=120)
    if not shot.is_file():
        pytest.skip(f"Chromium drew nothing: {done.stderr.decode(errors='replace')[-200:]}")
    return np.asarray(Image.open(io.BytesIO(shot.read_bytes())).convert("RGB"))


def _close(pixels: npt.NDArray[np.uint8], colour: str) -> npt.NDArray[np.bool_]:
    """Where a colour, "#rrggbb", is."""
    wanted = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)])
    close: npt.NDArray[np.bool_] = (np.abs(pixels.astype(np.int16) - wanted) <= 6).all(-1)
    return close


def _bars(pixels: npt.NDArray[np.uint8], colour: str) -> list[int]:
    """Lengths in pixels of a colour's bars, longest first: runs that at least 8 lines of the picture have."""
    same = _close(pixels, colour)
    lengths = []
    for line in same[same.any(1)]:
        edges = np.flatnonzero(np.diff(np.concatenate([[0], line.astype(np.int8), [0]])))
        lengths.append(max(int(end - begin) for begin, end in zip(edges[::2], edges[1::2], strict=True)))
    found: list[int] = []
    for length, lines in sorted(Counter(lengths).items(), reverse=True):
        if lines >= 8 and length >= 6:
            found.append(length)
    return found


@pytest.fixture(scope="module")
def drawn(
    pipeline: Result, limited: Result, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, npt.NDArray[np.uint8]]:
    """The sections of a page as a browser draws them, by kind."""
    pixels = _pixels(tmp_path_factory.mktemp("page"), report_page([limited, pipeline]))
    # Each section begins with a line of the page's colour from side to side.
    rules = [row for row in range(len(pixels)) if (pixels[row] == pixels[row, 550]).all(-1).sum() > 850]
    lines = [row for row in rules if _close(pixels[row, 550], OURS)]
    begin = [row for row in lines if row - 1 not in lines]
    assert len(begin) == 2
    return {"engine": pixels[begin[0] + 4 : begin[1]], "pipeline": pixels[begin[1] + 4 :]}


def test_plots_are_drawn_with_bars_where_they_must_be(drawn: dict[str, npt.NDArray[np.uint8]]) -> None:
    """The stages of the page in a browser, as long as the figures say."""
    pixels = drawn["pipeline"]
    network, decoding = (_bars(pixels, SERIES[list(STAGES).index(stage)]) for stage in ("network", "decoding"))
    assert network[0] > 300
    # The second way's are an eighth as long.
    assert any(abs(length - network[0] / 8) < 0.02 * network[0] for length in network)
    # Strokes of the repeats cut the last stage, but not all of its height.
    assert decoding[0] == pytest.approx(network[0] * STAGES["decoding"] / STAGES["network"], abs=4)


def test_bars_of_engines_have_their_colours_and_lengths(
    limited: Result, drawn: dict[str, npt.NDArray[np.uint8]]
) -> None:
    pixels = drawn["engine"]
    rows = {row["name"]: row["voxels_per_second"] for row in limited.rows}
    ours = _bars(pixels, OURS)
    assert ours[0] > 300
    share = rows["openvino fp32"] / rows["onnxruntime fp32"]
    assert any(length / ours[0] == pytest.approx(share, abs=0.01) for length in ours[1:])
    # The references are hatched, so in pieces, of which there are many.
    assert _close(pixels, REFERENCE).sum() > 5000
