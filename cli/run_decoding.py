"""What decoding options ask for: which decoder, scores, thresholds, workers and merge tree."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import typer

if TYPE_CHECKING:
    from fgnet.engine.bundle import Decoding
    from fgnet.engine.decoding_crew import Crew
    from fgnet.engine.run_options import Decoder
    from fgnet.postproc.waterz_decoder import WaterzOptions

MOST_FOR_WATERZ = 2**27
"""Voxels of a region up to which `--decoder auto` takes waterz for scores by quantiles: at 30 to 49 bytes each, it
needs some 6 GB for them."""


@dataclass(frozen=True)
class DecodingRequest:
    """The options of fgnet-run, or of fgnet-eval curve, as they were given; None where they were not."""

    decoder: str
    threshold: str | None
    fragments: str | None
    scoring: str | None
    quantile: int | None
    workers: int | None = None
    cluster: str | None = None
    cluster_options: str | None = None
    host: str | None = None
    save_graph: Path | None = None
    graph_threshold: float | None = None
    min_size: int = 0

    def __post_init__(self) -> None:
        """Refuse options that contradict each other.

        Raises:
            BadParameter: they do, or one is unknown.
        """
        _one_of("decoder", self.decoder, "auto", "waterz", "blockwise", "none")
        if self.decoder == "blockwise" and self._of_waterz:
            raise typer.BadParameter(
                "it scores by mean affinity; other --scoring and --quantile are waterz's",
                param_hint="--decoder blockwise",
            )
        if self._of_waterz and self._of_blockwise:
            raise typer.BadParameter(
                "only waterz scores by quantiles, and it does not do that", param_hint=self._of_blockwise
            )
        if self.decoder in ("waterz", "none") and self._of_blockwise:
            raise typer.BadParameter(f"--decoder {self.decoder} does not do that", param_hint=self._of_blockwise)
        settings = {
            "--threshold": self.threshold,
            "--fragments": self.fragments,
            "--scoring": self.scoring,
            "--quantile": self.quantile,
            "--min-size": self.min_size or None,
        }
        if self.decoder == "none" and (given := [name for name, value in settings.items() if value is not None]):
            raise typer.BadParameter("--decoder none makes no segments", param_hint=given[0])
        _one_of("cluster", self.cluster or "local", "local", "slurm", "lsf")
        asked = {"--cluster": self.cluster, "--cluster-options": self.cluster_options, "--host": self.host}
        if self.workers is None and (given := [name for name, value in asked.items() if value is not None]):
            raise typer.BadParameter("give the number of --workers too", param_hint=given[0])

    def refuse_unread(self, advised: Decoding) -> None:
        """Refuse a quantile of scores by mean, which nothing reads.

        Args:
            advised: the model's settings.

        Raises:
            BadParameter: it was given.
        """
        if self.quantile is None or (self.scoring or advised.scoring) != "mean":
            return
        by = "scores by mean have none" if self.scoring else "the model scores by mean; add --scoring quantile"
        raise typer.BadParameter(by, param_hint="--quantile")

    @property
    def _of_waterz(self) -> bool:
        """Whether options are given that only waterz knows."""
        return self.scoring not in (None, "mean") or self.quantile is not None

    @property
    def _of_blockwise(self) -> str | None:
        """An option that only the blockwise decoder knows."""
        asked = {
            "--workers": self.workers,
            "--save-graph": self.save_graph,
            "--threshold": self.threshold is not None and "," in self.threshold,
        }
        return next((name for name, value in asked.items() if value), None)

    @property
    def thresholds(self) -> tuple[float, ...]:
        """Those that were given.

        Raises:
            BadParameter: they are no numbers.
        """
        if self.threshold is None:
            return ()
        try:
            # Those out of range are refused by whoever takes them.
            return tuple(float(part) for part in self.threshold.split(","))
        except ValueError:
            raise typer.BadParameter(
                f"{self.threshold!r} is not a number from 0 to 1, or several by commas", param_hint="--threshold"
            ) from None

    def resolved(self, voxels: int, advised: Decoding) -> Decoder:
        """The decoder for a region.

        Args:
            voxels: of the region.
            advised: the model's settings.

        Raises:
            BadParameter: the region is too large for waterz, and what the threshold is of is not clear.
        """
        if self.decoder != "auto":
            return cast("Decoder", self.decoder)
        if self._of_blockwise:
            return "blockwise"
        if not self._of_waterz and (self.scoring or advised.scoring) == "mean":
            # Both decoders do this equally well, and this one sooner and in less memory.
            return "blockwise"
        if voxels <= MOST_FOR_WATERZ or self._of_waterz:
            return "waterz"
        if self.threshold is not None:
            raise typer.BadParameter(
                f"for a region of {voxels / 1e6:.0f} Mvoxels say of what it is: --decoder blockwise scores by mean"
                " affinity, waterz as the model advises",
                param_hint="--threshold",
            )
        return "blockwise" if advised.mean_threshold is not None else "waterz"

    def note(self, voxels: int, advised: Decoding) -> str | None:
        """What is to be said where `auto` does not what is to be expected; None where it does.

        It may score otherwise than the model advises, or hold a large region in memory.

        Args:
            voxels: of the region.
            advised: the model's settings.

        Raises:
            BadParameter: as for `resolved`.
        """
        scored_by_mean = (self.scoring or advised.scoring) == "mean"
        if self.decoder != "auto" or scored_by_mean:
            return None
        if self.resolved(voxels, advised) != "blockwise":
            if voxels <= MOST_FOR_WATERZ or self._of_waterz:
                return None
            return (
                f"decoder waterz, with all {voxels / 1e6:.0f} Mvoxels in memory: the model knows no threshold for mean"
                " affinities; with one, --decoder blockwise --threshold T needs memory for a few blocks"
            )
        asked = self._of_blockwise
        reason = "several thresholds ask for it" if asked == "--threshold" else f"{asked} asks for it"
        if asked is None:
            reason = f"the region of {voxels / 1e6:.0f} Mvoxels is too large for waterz"
        return f"decoder blockwise, mean affinity: {reason}; the model advises {advised.scoring}s, by waterz"

    def for_run(self, voxels: int, advised: Decoding) -> dict[str, Any]:
        """The fields of RunOptions that follow.

        Args:
            voxels: of the region.
            advised: the model's settings, for what was not given.

        Raises:
            BadParameter: as said above.
            DecodingError: a value is out of range, or the model knows no threshold for such scores.
        """
        decoder = self.resolved(voxels, advised)
        decoding = self.scores(decoder, advised)
        thresholds = self.thresholds
        if not thresholds:
            thresholds = (advised.threshold if decoder == "none" else advised.threshold_of(decoding.scoring),)
        return {
            "decoder": decoder,
            "decoding": decoding,
            "threshold": thresholds[0],
            "more_thresholds": thresholds[1:],
            "crew": self.crew(),
            "graph": self.save_graph,
            "graph_threshold": self.graph_threshold,
        }

    def crew(self) -> Crew | None:
        """The workers that were asked for.

        Raises:
            BadParameter: the options for a cluster are no words of a shell.
            DecodingError: daisy is not installed, or there are options for a cluster and there is none.
        """
        from fgnet.engine.decoding_crew import Crew

        if self.workers is None:
            return None
        try:
            options = tuple(shlex.split(self.cluster_options or ""))
        except ValueError as error:
            raise typer.BadParameter(f"{self.cluster_options!r}: {error}", param_hint="--cluster-options") from None
        return Crew(self.workers, cast("Literal['local', 'slurm', 'lsf']", self.cluster or "local"), options, self.host)

    def scores(self, decoder: Decoder, advised: Decoding) -> WaterzOptions:
        """How fragments are made and contacts scored: as the model advises, where no option says otherwise.

        Args:
            decoder: as `resolved`.
            advised: the model's settings.

        Raises:
            DecodingError: a value is out of range.
        """
        from fgnet.postproc.waterz_decoder import WaterzOptions

        scoring = "mean" if decoder == "blockwise" else self.scoring or advised.scoring
        # Values that are out of range are refused by WaterzOptions itself, whose message names the option.
        return replace(
            WaterzOptions(),
            fragments=cast(Literal["sections", "affinity"], self.fragments or advised.fragments),
            scoring=cast(Literal["quantile", "mean"], scoring),
            quantile=advised.quantile if self.quantile is None else self.quantile,
        )


def _one_of(option: str, value: str, *allowed: str) -> None:
    if value not in allowed:
        raise typer.BadParameter(f"{value!r} is not one of {', '.join(allowed)}", param_hint=f"--{option}")
