"""Where the result of a benchmark goes: to stdout as a table or as JSON, into a file, and into a page with plots."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typer.core import TyperGroup

from fgnet.benchmarks.result_file import without_folders
from fgnet.cli.console import print_json, print_renderable, say
from fgnet.volumes.errors import OutputError

if TYPE_CHECKING:
    import typer

_ARGUMENTS = "fgnet-bench arguments"


class Recorded(TyperGroup):
    """Subcommands that can tell what they were called with."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Keep the arguments before they are parsed."""
        ctx.meta[_ARGUMENTS] = list(args)
        rest: list[str] = super().parse_args(ctx, args)
        return rest


def require_places(output: Path | None, report: Path | None) -> None:
    """Refuse a file or a report that could not be written once everything is measured.

    Raises:
        FGNetError: a folder does not exist, or what draws a report is not installed.
    """
    if output is not None and not output.absolute().parent.is_dir():
        raise OutputError("the folder does not exist", where=output, remedy="make it, or name another one")
    if report is not None:
        from fgnet.benchmarks.report import require_packages

        require_packages()
        if report.exists() and not report.is_dir():
            raise OutputError("it is no folder", where=report, remedy="name another one")
        report.mkdir(parents=True, exist_ok=True)


def publish(
    result: dict[str, Any],
    table: Callable[[], Any],
    *,
    context: typer.Context,
    output: Path | None,
    report: Path | None,
    as_json: bool,
) -> None:
    """Write a result into its file and its report, and print it.

    Args:
        result: as plain data; it is told which benchmark it is of, how that was called, and when.
        table: makes what rich prints of it.
        context: of the subcommand.
        output: the file, if one is wanted.
        report: the folder of the page, if one is wanted.
        as_json: whether to print JSON in place of the table.
    """
    kind = str(context.info_name)
    arguments = [without_folders(argument) for argument in context.meta.get(_ARGUMENTS, [kind])]
    recorded = datetime.now(UTC).isoformat(timespec="minutes")
    result = {"benchmark": kind, "invocation": ["fgnet-bench", *arguments], "recorded": recorded, **result}
    text = (json.dumps(result, indent=2, allow_nan=False) + "\n").encode()
    if output is not None:
        _write(output, text)
    if report is not None:
        from fgnet.benchmarks.report import report_page
        from fgnet.benchmarks.result_file import as_result

        _write(report / f"{kind}.json", text)
        _write(report / f"{kind}.html", report_page([as_result(json.loads(text), f"{kind}.json")]).encode())
        say(f"report: {report / f'{kind}.html'}")
    if as_json:
        print_json(result)
    else:
        print_renderable(table())


def _write(path: Path, content: bytes) -> None:
    from fgnet.engine.atomic_file import write_atomically

    write_atomically(path, content)
