"""The curves of a training run as a picture: loss over steps, and VOI where it was validated."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fgnet.engine.atomic_file import write_atomically

_INK = {"loss": "#4c78a8", "voi": "#222222", "voi_split": "#e45756", "voi_merge": "#54a24b"}


def save_curves(path: Path, steps: Sequence[dict[str, float]], validations: Sequence[dict[str, float]]) -> None:
    """Draw what the log holds.

    Args:
        path: of the PNG, which is replaced.
        steps: rows with step and loss.
        validations: rows with step, voi, voi_split and voi_merge, as far as they were found.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
        OSError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    panels = 2 if validations else 1
    figure = Figure(figsize=(5 * panels, 3.4), layout="constrained")
    axes: list[Any] = list(np.atleast_1d(figure.subplots(1, panels)))
    at, loss = _column(steps, "step"), _column(steps, "loss")
    width = max(1, len(loss) // 50)
    axes[0].plot(at, loss, color=_INK["loss"], alpha=0.3 if width > 1 else 1, linewidth=0.8, label="each step")
    if width > 1:
        means, middle = np.convolve(loss, np.full(width, 1 / width), mode="valid"), (width - 1) // 2
        axes[0].plot(
            at[middle : middle + len(means)], means, color=_INK["loss"], linewidth=1.8, label=f"mean of {width}"
        )
        axes[0].legend(frameon=False)
    axes[0].set(xlabel="step", ylabel="loss", title="training")
    if validations:
        for name, label in (("voi", "VOI"), ("voi_split", "split"), ("voi_merge", "merge")):
            rows = [row for row in validations if name in row]
            axes[1].plot(_column(rows, "step"), _column(rows, name), "o-", color=_INK[name], markersize=3, label=label)
        axes[1].set(xlabel="step", ylabel="bits", title="validation", ylim=(0, None))
        axes[1].legend(frameon=False)
    for panel in axes:
        panel.spines[["top", "right"]].set_visible(False)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110)
    write_atomically(path, picture.getvalue())


def _column(rows: Sequence[dict[str, float]], name: str) -> npt.NDArray[np.float64]:
    return np.array([row[name] for row in rows], dtype=np.float64)
