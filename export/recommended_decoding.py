"""Which decoder settings does a bundle recommend? What the user says, or else what the validation found best."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fgnet.engine.bundle import Decoding
from fgnet.postproc.waterz_decoder import WaterzOptions


@dataclass(frozen=True)
class DecodingWishes:
    """What the user said about decoding; None where nothing was said.

    Attributes:
        fragments: "sections" or "affinity".
        scoring: "quantile" or "mean".
        quantile: in percent, for "quantile".
        threshold: agglomeration score, 0 to 1.
        mean_threshold: the same for scores by mean, where `scoring` is another.
    """

    fragments: str | None = None
    scoring: str | None = None
    quantile: int | None = None
    threshold: float | None = None
    mean_threshold: float | None = None

    def settled(self, training: Mapping[str, Any]) -> Decoding:
        """The settings of a bundle.

        Args:
            training: the provenance of a checkpoint of fgnet-train. The threshold of its validation is recommended only
                with the fragments and scores that it was found with.

        Raises:
            DecodingError: settings that no decoder takes.
        """
        plain, validated = Decoding(), _validated(training)
        start = validated or plain
        fragments = self.fragments or start.fragments
        scoring = self.scoring or start.scoring
        quantile = start.quantile if self.quantile is None else self.quantile
        WaterzOptions(fragments=fragments, scoring=scoring, quantile=quantile)  # type: ignore[arg-type]
        same = (fragments, scoring) == (start.fragments, start.scoring) and (
            scoring == "mean" or quantile == start.quantile
        )
        found = start.threshold if same else plain.threshold
        threshold = found if self.threshold is None else self.threshold
        return Decoding(fragments, scoring, quantile, threshold, self.mean_threshold)


def _validated(training: Mapping[str, Any]) -> Decoding | None:
    """What the kept weights were scored with; None where they were not."""
    settings, figures = training.get("decoding"), training.get("validation")
    if not settings or not figures:
        return None
    # The blockwise decoder scores by means, whatever the settings that waterz would have followed.
    scoring = "mean" if settings.get("decoder") == "blockwise" else settings["scoring"]
    return Decoding(settings["fragments"], scoring, settings["quantile"], float(figures["threshold"]))


def described(decoding: Decoding) -> str:
    """Settings in one line, as `sections, quantile 75 %, threshold 0.4`."""
    scores = decoding.scoring + (f" {decoding.quantile} %" if decoding.scoring == "quantile" else "")
    return f"{decoding.fragments}, {scores}, threshold {decoding.threshold:g}"
