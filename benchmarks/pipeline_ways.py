"""Which ways from a volume to its segmentation are compared: the paper's, a peer's, and fgnet-run's."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

from fgnet.engine.backends import installed
from fgnet.engine.bundle import Bundle
from fgnet.engine.torch_runner import Device
from fgnet.volumes.errors import BackendError

Kind = Literal["paper", "monai", "fgnet-run"]

BASELINES = ("paper", "paper-kept", "monai", "monai-kept")
"""PyTorch's ways by the names that choose them; "-kept": with the C library keeping its memory."""

_NAMES: dict[str, str] = {
    "paper": "the paper's way",
    "paper-kept": "the paper's way, memory kept",
    "monai": "MONAI",
    "monai-kept": "MONAI, memory kept",
}
# What a benchmark says itself, and what would make of a part of the volume what the other rows make of all of it.
_NOT_TO_BE_GIVEN = (
    *("-o", "--output", "--model", "--overwrite", "--resume", "--dry-run", "--preview", "--roi", "--mask"),
    *("--gray-range", "--rescale", "--zarr-format"),
)


@dataclass(frozen=True)
class Way:
    """One way from gray on the disk to a segmentation on the disk.

    Attributes:
        name: in words; no two have the same.
        kind: "paper": PyTorch eager fp32, NumPy blending, waterz. "monai": the same network through MONAI's
            `sliding_window_inference`, waterz. "fgnet-run": the command.
        keeps_memory: whether the C library is told not to give freed memory back; see `fgnet.benchmarks.rows.Row`.
        options: of fgnet-run.
    """

    name: str
    kind: Kind
    keeps_memory: bool = False
    options: tuple[str, ...] = ()

    @property
    def is_reference(self) -> bool:
        """Whether all others are held to it: the paper's way with PyTorch as it comes."""
        return self.kind == "paper" and not self.keeps_memory


@dataclass(frozen=True)
class LeftOut:
    """A way that was not measured.

    Attributes:
        name: of the way.
        reason: why.
    """

    name: str
    reason: str


def require_comparable(baselines: Sequence[str], runs: Sequence[Sequence[str]]) -> None:
    """Refuse ways that there are not, and options of fgnet-run that would make its row another comparison.

    Raises:
        BackendError: as said.
    """
    for key in baselines:
        if key not in BASELINES:
            raise BackendError(
                f"there is no way {key!r}", where="--baselines", remedy=f"some of {', '.join(BASELINES)}, by commas"
            )
    for options in runs:
        for option in options:
            if option.partition("=")[0] in _NOT_TO_BE_GIVEN:
                raise BackendError(
                    f"{option} is not for a comparison, whose rows segment one volume with one model",
                    where="options of fgnet-run",
                    remedy="leave it out",
                )
        if "--decoder none" in " ".join(options).replace("=", " "):
            raise BackendError("without a decoder there is no segmentation to compare", where="--decoder none")


def plan_ways(
    bundle: Bundle,
    device: Device,
    *,
    baselines: Sequence[str] = BASELINES,
    run: Sequence[str] = (),
    more_runs: Sequence[Sequence[str]] = (),
) -> tuple[list[Way], list[LeftOut]]:
    """The ways that can be gone here, the reference first, and those that cannot.

    Args:
        bundle: the model.
        device: that PyTorch runs on.
        baselines: of `BASELINES`.
        run: options of fgnet-run.
        more_runs: options of further rows of fgnet-run.
    """
    ways, left_out = [], []
    for key in (name for name in BASELINES if name in baselines):
        kind: Kind = "monai" if key.startswith("monai") else "paper"
        way = Way(_NAMES[key], kind, keeps_memory=key.endswith("-kept"))
        reason = _why_not(way, bundle, device)
        if reason is None:
            ways.append(way)
        else:
            left_out.append(LeftOut(way.name, reason))
    runs = dict.fromkeys(tuple(options) for options in (run, *more_runs))
    ours = [Way(" ".join(("fgnet-run", *options)), "fgnet-run", options=options) for options in runs]
    return [*ways, *ours], left_out


def _why_not(way: Way, bundle: Bundle, device: Device) -> str | None:
    if bundle.manifest.checkpoint is None:
        return "the bundle holds no checkpoint, so PyTorch has nothing to run (export it with its checkpoint)"
    if not installed("torch"):
        return "PyTorch is not installed (pip install 'fgnet[train]')"
    if way.kind == "monai" and find_spec("monai") is None:
        return "MONAI is not installed (pip install 'fgnet[bench]', or pip install --no-deps monai)"
    if way.keeps_memory and device != "cpu":
        return "the C library's memory has no part in inference on a GPU"
    if way.keeps_memory and platform.libc_ver()[0] != "glibc":
        return "only glibc can be told to keep memory"
    return None
