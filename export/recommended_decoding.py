"""Which decoder settings does a bundle recommend? What the user says, or else what the validation found best."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fgnet.engine.bundle import Decoding
from fgnet.postproc.waterz_decoder import WaterzOptions

RECOMMENDED = "recommended"
"""In a checkpoint's provenance: what the model that it was started from recommends, the fields of `Decoding`."""


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
            training: the provenance of a checkpoint of fgnet-train. What its validation found goes before what the
                model that it was started from recommends. A threshold is recommended only with the fragments and
                scores that it was found with.

        Raises:
            DecodingError: settings that no decoder takes.
        """
        inherited = Decoding(**training[RECOMMENDED]) if training.get(RECOMMENDED) else Decoding()
        validated = _validated(training)
        known = [inherited] if validated is None else [validated, inherited]
        fragments = self.fragments or known[0].fragments
        scoring = self.scoring or known[0].scoring
        quantile = known[0].quantile if self.quantile is None else self.quantile
        WaterzOptions(fragments=fragments, scoring=scoring, quantile=quantile)  # type: ignore[arg-type]
        threshold, mean_threshold = self.threshold, self.mean_threshold
        for found in known:
            if found.fragments != fragments:
                continue
            same = found.scoring == scoring and (scoring == "mean" or found.quantile == quantile)
            if threshold is None:
                threshold = found.threshold if same else found.mean_threshold if scoring == "mean" else None
            if mean_threshold is None and scoring != "mean":
                mean_threshold = found.mean_threshold
        return Decoding(
            fragments, scoring, quantile, Decoding.threshold if threshold is None else threshold, mean_threshold
        )


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
