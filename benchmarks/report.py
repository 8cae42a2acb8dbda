"""Results of benchmarks as one page of HTML that stands by itself."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from fgnet.benchmarks.plot_style import plotting
from fgnet.benchmarks.report_sections import section_of
from fgnet.benchmarks.result_file import KINDS, Result
from fgnet.volumes.errors import FGNetError

_TEMPLATE = "report.html.jinja"


def require_packages() -> None:
    """Refuse what could not be drawn once everything is measured.

    Raises:
        FGNetError: matplotlib or Jinja is not installed.
    """
    for package in ("jinja2", "matplotlib"):
        if find_spec(package) is None:
            raise FGNetError(
                f"the package {package} is not installed, and reports are made with it",
                remedy="pip install 'fgnet[report]'",
            )


def report_page(results: Sequence[Result], title: str = "fgnet-bench: how fast, and how it was measured") -> str:
    """A page with a section for each result: engines, then pipelines, decoders and growth.

    Args:
        results: at least one.
        title: of the page.

    Raises:
        FGNetError: matplotlib or Jinja is not installed, or a result lacks what its kind holds.
    """
    require_packages()
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    folder = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=folder, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    sections = []
    with plotting():
        for number, result in enumerate(sorted(results, key=lambda each: KINDS.index(each.kind))):
            try:
                sections.append(section_of(result, number))
            except (KeyError, TypeError, AttributeError) as error:
                raise FGNetError(
                    f"it lacks what a result of fgnet-bench {result.kind} holds ({error})",
                    where=result.name,
                    remedy="measure it again",
                ) from error
    return environment.get_template(_TEMPLATE).render(title=title, sections=sections, version=version("fgnet"))
