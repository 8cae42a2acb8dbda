from __future__ import annotations

from typing import Any

import pytest

from fgnet.engine.bundle import Decoding
from fgnet.export.recommended_decoding import DecodingWishes, described
from fgnet.volumes.errors import DecodingError

WATERZ = {"fragments": "affinity", "scoring": "quantile", "quantile": 75, "decoder": "waterz"}
FIGURES = {"voi": 1.2, "threshold": 0.3}


def validated(**settings: Any) -> dict[str, Any]:
    return {"decoding": WATERZ | settings, "validation": FIGURES}


def test_what_the_validation_found_is_recommended() -> None:
    assert DecodingWishes().settled(validated()) == Decoding("affinity", "quantile", 75, 0.3)


@pytest.mark.parametrize("training", [{}, {"decoding": WATERZ}, {"validation": FIGURES}, {"validation": None}])
def test_without_a_validation_the_defaults_are_recommended(training: dict[str, Any]) -> None:
    assert DecodingWishes().settled(training) == Decoding()


def test_the_blockwise_decoder_was_scored_by_means() -> None:
    assert DecodingWishes().settled(validated(decoder="blockwise")) == Decoding("affinity", "mean", 75, 0.3)


@pytest.mark.parametrize(
    ("wishes", "expected"),
    [
        (DecodingWishes(threshold=0.8), Decoding("affinity", "quantile", 75, 0.8)),
        # A threshold that was found with other fragments or scores says nothing.
        (DecodingWishes(fragments="sections"), Decoding("sections", "quantile", 75, 0.5)),
        (DecodingWishes(quantile=50), Decoding("affinity", "quantile", 50, 0.5)),
        (DecodingWishes(scoring="mean"), Decoding("affinity", "mean", 75, 0.5)),
        (DecodingWishes(quantile=75, mean_threshold=0.9), Decoding("affinity", "quantile", 75, 0.3, 0.9)),
        (DecodingWishes(threshold=0.0), Decoding("affinity", "quantile", 75, 0.0)),
    ],
)
def test_what_the_user_says_goes_first(wishes: DecodingWishes, expected: Decoding) -> None:
    assert wishes.settled(validated()) == expected


NANO = {"fragments": "sections", "scoring": "quantile", "quantile": 75, "threshold": 0.5, "mean_threshold": 0.8}


def test_without_a_validation_the_first_model_is_followed() -> None:
    assert DecodingWishes().settled({"recommended": NANO}) == Decoding(**NANO)
    assert DecodingWishes(scoring="mean").settled({"recommended": NANO}) == Decoding("sections", "mean", 75, 0.8)
    assert DecodingWishes(quantile=50).settled({"recommended": NANO}) == Decoding("sections", "quantile", 50, 0.5, 0.8)


def test_the_validation_goes_before_the_first_model_whose_threshold_for_means_stays() -> None:
    training = validated(fragments="sections") | {"recommended": NANO}
    assert DecodingWishes().settled(training) == Decoding("sections", "quantile", 75, 0.3, 0.8)
    assert DecodingWishes(mean_threshold=0.7).settled(training).mean_threshold == 0.7
    by_means = validated(fragments="sections", decoder="blockwise") | {"recommended": NANO}
    assert DecodingWishes().settled(by_means) == Decoding("sections", "mean", 75, 0.3)
    # Other fragments: what is known of means does not hold for them.
    assert DecodingWishes().settled(validated() | {"recommended": NANO}).mean_threshold is None


def test_means_do_not_ask_for_the_quantile() -> None:
    assert DecodingWishes(quantile=50).settled(validated(scoring="mean")).threshold == 0.3


def test_settings_that_no_decoder_takes_are_refused() -> None:
    with pytest.raises(DecodingError, match="quantile"):
        DecodingWishes(quantile=51).settled({})


def test_settings_are_told_in_one_line() -> None:
    assert described(Decoding(quantile=75, threshold=0.4)) == "sections, quantile 75 %, threshold 0.4"
    assert described(Decoding("affinity", "mean", 75, 0.25)) == "affinity, mean, threshold 0.25"
