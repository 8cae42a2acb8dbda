"""What do SAM2's features let through? The gates a_i of the feature-guided attention, section by section.

Source: arXiv 2511.13063, Figure 4.
"""

from __future__ import annotations

import io
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fgnet.engine.atomic_file import write_atomically
from fgnet.network.model import FGNet
from fgnet.volumes.errors import OutputError, TrainingError

_GUIDES_WITH_MAPS = ("fga", "cbam")


def attention_maps(network: FGNet, gray: npt.NDArray[np.uint8]) -> list[npt.NDArray[np.float32]]:
    """The gates of a block, their channels averaged.

    Args:
        network: whose guidance has a factor for each voxel.
        gray: (z, y, x) uint8, y and x multiples of what the network asks for.

    Returns:
        a_1, a_2, ..., each (z, y / stride_i, x / stride_i) in [0, 1].

    Raises:
        TrainingError: a network without such gates, or a block that it cannot halve.
    """
    config = network.config
    if network.fine is None or network.fine.guides is None or config.modules == "without_fga":
        raise TrainingError(f"a network {config.modules} guides nothing", remedy="take a full network")
    if config.guidance not in _GUIDES_WITH_MAPS:
        raise TrainingError(
            f"guidance by {config.guidance} has no factor for each voxel",
            remedy=f"take a network with guidance by {' or '.join(_GUIDES_WITH_MAPS)}",
        )
    multiple = config.section_multiple
    if any(side % multiple for side in gray.shape[1:]) or 0 in gray.shape:
        raise TrainingError(f"a block of shape {gray.shape}", remedy=f"give y and x as multiples of {multiple}")
    maps: list[npt.NDArray[np.float32]] = []

    def keep(_module: Any, _inputs: Any, gate: torch.Tensor) -> None:
        maps.append(gate.mean(dim=1).float().cpu().numpy())

    with ExitStack() as hooks, torch.inference_mode():
        for guide in network.fine.guides:
            hooks.callback(guide.gate.register_forward_hook(keep).remove)  # type: ignore[union-attr]
        place = next(network.parameters()).device
        network.eval().infer(torch.from_numpy(gray[None, None]).to(place).float() / 255)
    return maps


def save_attention_maps(
    path: Path, gray: npt.NDArray[np.uint8], maps: list[npt.NDArray[np.float32]], first: int = 0, sections: int = 6
) -> None:
    """Draw some sections, one per column: gray, and each map below it.

    Args:
        path: of the PNG.
        gray: (z, y, x) uint8.
        maps: as `attention_maps` gives them; every row of the picture has a scale of its own.
        first: number of the first section in its volume, for the captions.
        sections: at most this many, evenly apart.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
        OutputError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    chosen = np.unique(np.linspace(0, len(gray) - 1, min(sections, len(gray))).round().astype(int))
    height = 1.7 * gray.shape[1] / gray.shape[2]
    figure = Figure(figsize=(1.7 * len(chosen) + 0.9, (height + 0.12) * (1 + len(maps)) + 0.3), layout="constrained")
    axes: Any = figure.subplots(1 + len(maps), len(chosen), squeeze=False)
    for column, z in enumerate(chosen):
        axes[0][column].imshow(gray[z], cmap="gray", vmin=0, vmax=255)
        axes[0][column].set_title(f"z {first + z}", fontsize=9)
    axes[0][0].set_ylabel("gray", fontsize=9)
    for row, level in enumerate(maps, start=1):
        low, high = float(level[chosen].min()), float(level[chosen].max())
        for column, z in enumerate(chosen):
            shown = axes[row][column].imshow(level[z], cmap="viridis", vmin=low, vmax=high)
        axes[row][0].set_ylabel(f"$a_{row}$", fontsize=11, rotation=0, labelpad=10)
        figure.colorbar(shown, ax=list(axes[row]), fraction=0.02, pad=0.01).ax.tick_params(labelsize=7)
    for panel in axes.flat:
        panel.set(xticks=[], yticks=[])
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110)
    try:
        write_atomically(path, picture.getvalue())
    except OSError as error:
        raise OutputError(f"the picture cannot be written ({error.strerror})", where=path) from error
