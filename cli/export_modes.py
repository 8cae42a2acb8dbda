"""What fgnet-export is asked to do, and which of its options that reads."""

from __future__ import annotations

import typer

# What is done with a bundle that is there; the option that asks for it, and the others that are read.
_MODES = {
    "verify": ("--verify", {"backend", "parity_volume", "parity_roi", "parity_labels"}),
    "inspect": ("--inspect", set[str]()),
    "bundle": ("--triton with --bundle", {"triton", "backend", "precision", "architecture", "overwrite"}),
}


def refuse_unread(context: typer.Context) -> None:
    """Refuse options of fgnet-export that what it is asked for does not read.

    Args:
        context: of the command.

    Raises:
        BadParameter: there is one; it is named.
    """
    given = [name for name in context.params if _given(context, name)]
    asked = [name for name in _MODES if name in given]
    if "model" in given and asked == ["bundle"]:
        raise typer.BadParameter("of MODEL a bundle is made, and --triton serves that one", param_hint="--bundle")
    if not asked:
        return
    mode, read = _MODES[asked[0]]
    for name in given:
        if name not in read | {asked[0], "as_json"}:
            hint = "MODEL" if name == "model" else f"--{'no-checkpoint' if name == 'checkpoint' else name}"
            raise typer.BadParameter(f"{mode} does not read that", param_hint=hint.replace("_", "-"))


def _given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
