"""What the recorded results hold: a chart and a table of them, `python -m fgnet.benchmarks.recorded benchmarks`.

In the folder that is named, results/*.json are read, results.svg is written, and the table in README.md is written anew
between its marks.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from fgnet.benchmarks.plot_history import commit_text, draw_history, panels_of
from fgnet.benchmarks.plot_style import plotting, si, to_svg
from fgnet.benchmarks.report import require_packages
from fgnet.benchmarks.report_tables import markdown
from fgnet.benchmarks.result_file import KINDS, Result, read_result, seconds_of, size_text, speeds
from fgnet.volumes.errors import FGNetError

_TABLE = re.compile(r"(<!-- results -->\n).*?(<!-- end of results -->)", re.DOTALL)


def read_results(folder: Path) -> list[Result]:
    """Results of a folder, the oldest first; those of before dates were recorded come first, by name.

    Raises:
        FGNetError: there is none, or a file that is none.
    """
    found = [read_result(path) for path in sorted(folder.glob("*.json"))]
    if not found:
        raise FGNetError("it holds no results", where=folder)
    return sorted(found, key=lambda result: str(result.data.get("recorded", "")))


def chart(results: Sequence[Result]) -> str:
    """Engines, pipelines and decoders by version, as a file of SVG.

    Args:
        results: the oldest first.
    """
    with plotting():
        drawn = to_svg(draw_history(panels_of(results)), "recorded", "Voxels a second by version, measured")
    return f'<?xml version="1.0" encoding="utf-8"?>\n{drawn}\n'


def table(results: Sequence[Result]) -> str:
    """A row of Markdown for each file, by kind."""
    rows = [
        (f"[{result.name}](results/{result.name})", _machine(result), commit_text(result), _finding(result))
        for kind in KINDS
        for result in results
        if result.kind == kind
    ]
    return markdown(("file", "machine", "version", "in short"), rows)


def with_table(readme: str, results: Sequence[Result]) -> str:
    """A README whose table between the marks is that of the results.

    Raises:
        FGNetError: it has no marks.
    """
    told = table(results)
    text, count = _TABLE.subn(lambda marks: f"{marks[1]}{told}{marks[2]}", readme)
    if count != 1:
        raise FGNetError("it lacks the marks <!-- results --> and <!-- end of results -->", where="README.md")
    return text


def main(arguments: Sequence[str] | None = None) -> int:
    """Write chart and table."""
    parser = argparse.ArgumentParser(prog="recorded", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, help="that holds results/ and README.md")
    folder: Path = parser.parse_args(arguments).folder
    try:
        require_packages()
        results = read_results(folder / "results")
        readme = folder / "README.md"
        readme.write_text(with_table(readme.read_text(encoding="utf-8"), results), encoding="utf-8")
        (folder / "results.svg").write_text(chart(results), encoding="utf-8")
    except (FGNetError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


def _machine(result: Result) -> str:
    machine = result.machine
    gpus = "".join(f", {gpu['name']}" for gpu in machine["gpus"])
    load = "" if machine.get("load") is None else f", load {machine['load']:g}"
    return f"{machine['cpu']}, {machine['cores']} cores{gpus}{load}"


def _finding(result: Result) -> str:
    """The figure that says most, in a few words."""
    if result.kind == "engine":
        best = max(result.rows, key=lambda row: float(row["voxels_per_second"]))
        times = "" if best.get("ratio") is None else f", {best['ratio']:.3g} x eager fp32"
        return f"{result.data['model']}: {best['name']} {si(speeds('engine', best).middle)} voxels/s{times}"
    if result.kind == "decode":
        ratios = [f"{name} {ratio:.3g} x waterz" for name, ratio in result.data["ratio"].items()]
        return f"largest with both: {', '.join(ratios)}"
    if result.kind == "pipeline":
        ratio = result.data.get("ratio")
        return f"{size_text(result.data['shape'])}" + ("" if ratio is None else f": {ratio:.3g} x the first way")
    last = result.rows[-1]
    exponent = result.data["exponent"]
    grown = "" if exponent is None else f", voxels to the power of {exponent:.2f}"
    return f"{size_text(last['shape'])}: {seconds_of(last).middle:,.0f} s{grown}"


if __name__ == "__main__":
    sys.exit(main())
