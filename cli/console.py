"""How a command speaks: results on stdout, everything else on stderr, errors in one line and as an exit code."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import typer

from fgnet.volumes.errors import FGNetError

if TYPE_CHECKING:
    from rich.console import Console

P = ParamSpec("P")
R = TypeVar("R")

INTERRUPTED = 130


def stderr() -> Console:
    """The console for progress and messages."""
    from rich.console import Console

    return Console(stderr=True)


def guarded(function: Callable[P, R]) -> Callable[P, R]:
    """Turns a FGNetError into a red line on stderr and exit code 1, an interrupt into exit code 130."""

    @functools.wraps(function)
    def command(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except FGNetError as error:
            stderr().print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            stderr().print("interrupted", style="red")
            raise typer.Exit(INTERRUPTED) from None

    return command


def run_app(app: typer.Typer) -> None:
    """Runs a command; its functions are `guarded`."""
    app()
