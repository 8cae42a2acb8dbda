"""fgnet-bench report: recorded results as one page with plots."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fgnet.cli.bench_result import require_places
from fgnet.cli.console import print_text


def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="For the page, index.html.")],
    results: Annotated[list[Path], typer.Argument(metavar="RESULT.json...", help="What -o or --report wrote.")],
) -> None:
    """Draw results as one page of HTML that stands by itself: DIR/index.html, whose path is printed.

    Try it: fgnet-bench report bench bench/engine.json bench/decode.json.
    """
    from fgnet.benchmarks.report import report_page
    from fgnet.benchmarks.result_file import read_result
    from fgnet.engine.atomic_file import write_atomically

    recorded = [read_result(path) for path in results]
    require_places(None, folder)
    page = folder / "index.html"
    write_atomically(page, report_page(recorded).encode())
    print_text(str(page))
