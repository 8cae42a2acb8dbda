"""What is shown of the recorded results is what their files hold."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

pytest.importorskip("matplotlib", reason="the chart needs the extra fgnet[report]")

from fgnet.benchmarks.plot_history import panels_of
from fgnet.benchmarks.recorded import main, read_results, with_table

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of benchmarks with chart and table made now."""
    folder = tmp_path_factory.mktemp("benchmarks")
    shutil.copytree(FOLDER / "results", folder / "results")
    readme = (FOLDER / "README.md").read_text()
    (folder / "README.md").write_text(re.sub(r"(?m)^\| \[.*\n", "", readme))
    assert main([str(folder)]) == 0
    return folder


def words(chart: Path) -> list[str]:
    return ["".join(text.itertext()) for text in ET.parse(chart).iter("{http://www.w3.org/2000/svg}text")]  # noqa: S314


def test_the_chart_is_what_the_files_give(written: Path) -> None:
    """By its words, each value among them; where lines run may differ between versions of matplotlib."""
    made = words(written / "results.svg")
    assert len(made) > 20
    assert words(FOLDER / "results.svg") == made, "the chart is of other files: make charts"


def test_the_table_is_what_the_files_give(written: Path) -> None:
    assert (FOLDER / "README.md").read_text() == (written / "README.md").read_text(), "make charts"
    for path in (FOLDER / "results").iterdir():
        assert f"(results/{path.name})" in (written / "README.md").read_text()


def test_the_projects_readme_shows_the_chart() -> None:
    assert "(benchmarks/results.svg)" in (FOLDER.parent / "README.md").read_text()


def test_versions_stand_in_the_order_in_which_they_were_recorded() -> None:
    panels = {panel.title: panel for panel in panels_of(read_results(FOLDER / "results"))}
    tiny = panels["Engine, tiny_s1; AMD EPYC, 2 cores"]
    assert [str(result.machine["commit"])[:7] for result in tiny.results][:2] == ["648b860", "83f6771"]
    assert "torch fp32 (eager)" in tiny.references
    assert tiny.others
    assert not tiny.others & tiny.references


def test_a_readme_without_marks_and_a_folder_without_results_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(Exception, match="it lacks the marks"):
        with_table("no table", read_results(FOLDER / "results"))
    (tmp_path / "results").mkdir()
    assert main([str(tmp_path)]) == 1
    assert "it holds no results" in capsys.readouterr().err
