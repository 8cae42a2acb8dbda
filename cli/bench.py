"""fgnet-bench: how fast it is on this machine, and how it was measured. A file for each subcommand."""

from __future__ import annotations

import typer

from fgnet.cli.bench_decode import decode
from fgnet.cli.bench_engine import engine
from fgnet.cli.bench_pipeline import OptionsOfRunLast, pipeline
from fgnet.cli.bench_report import report
from fgnet.cli.bench_result import Recorded
from fgnet.cli.bench_scale import scale
from fgnet.cli.console import guarded, run_app

app = typer.Typer(cls=Recorded, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")


@app.callback()
def bench() -> None:
    """Measure FGNet on this machine."""


app.command()(guarded(engine))
# The options of fgnet-run come after "--".
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(guarded(scale))
app.command()(guarded(decode))
app.command(cls=OptionsOfRunLast)(guarded(pipeline))
app.command()(guarded(report))


def main() -> None:
    """Entry point of fgnet-bench."""
    run_app(app)


if __name__ == "__main__":
    main()
