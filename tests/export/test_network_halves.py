"""The two halves of a network, one after the other as a runner calls them, against the whole one in PyTorch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the export needs the extra fgnet[train]")
pytest.importorskip("sam2", reason="the export needs the extra fgnet[train]")

from fgnet.engine.columns import calls_of  # noqa: E402
from fgnet.export import block_graph  # noqa: E402
from fgnet.export.block_graph import BlockGraph  # noqa: E402
from fgnet.export.deployment import inference_copy  # noqa: E402
from fgnet.export.section_graph import Cut, Neck, SectionGraph, cut_of  # noqa: E402
from fgnet.network.model import FGNet  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_torch_thread")

Make = Callable[..., Any]
ONE_SECTION: dict[str, Any] = {"finest_depth_kernel": 1, "context_sections": 0}


def halves_of(network: FGNet) -> tuple[SectionGraph, BlockGraph]:
    deployed = inference_copy(network)
    cut = cut_of(deployed)
    return SectionGraph(deployed, cut).eval(), BlockGraph(deployed, cut).eval()


def run_halves(network: FGNet, gray: Any, sections: int = 3) -> Any:
    """What the halves make of a block (z, y, x) uint8, the encoder taking some sections a call."""
    encoder, decoder = halves_of(network)
    held: list[Any] = []
    with torch.inference_mode():
        length = min(sections, len(gray))
        for first in calls_of([0], len(gray), length, len(gray)) if encoder.names else ():
            features = encoder(gray[first : first + length])
            assert len(features) == len(encoder.names)
            held = held or [level.new_full((len(gray), *level.shape[1:]), torch.nan) for level in features]
            for whole, level in zip(held, features, strict=True):
                whole[first : first + len(level)] = level
        return decoder(*([gray] if decoder.cut.gray else []), *held)


def composed(level: int) -> list[str]:
    """The features of a level that both DW blocks of its guide read."""
    return [f"{role}_{part}_{level}" for role in ("gate", "bias") for part in ("hidden", "shortcut")]


def check_halves(network: FGNet, monkeypatch: pytest.MonkeyPatch) -> None:
    gray = torch.randint(0, 256, network.config.patch, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        logits = network(gray[None, None].float() / 255).result[0]
    expected = torch.sigmoid(logits)
    assert expected.std() > 1e-3
    bytes_ = run_halves(network, gray)
    assert bytes_.dtype == torch.uint8
    assert bytes_.shape == expected.shape
    assert (bytes_.double() - expected.double() * 255).abs().max() <= 0.5 + 255 * 2e-5
    with monkeypatch.context() as patched:
        patched.setattr(block_graph, "_quantised", lambda stack: stack.transpose(0, 1))
        found = run_halves(network, gray)
    torch.testing.assert_close(torch.sigmoid(found), expected, rtol=0, atol=2e-5)
    torch.testing.assert_close(found, logits, rtol=1e-4, atol=1e-4)


def test_the_halves_of_every_ablation_give_the_affinities_of_the_whole(
    make_network: Make, ablation: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    check_halves(make_network(**ablation), monkeypatch)


@pytest.mark.parametrize(
    "changes",
    [
        {"modules": "without_sam2", **ONE_SECTION},
        {"modules": "without_sam2", "depth": 3, "input_scale": 4, "patch": (2, 34, 38)},
        {"modules": "without_fga", **ONE_SECTION},
        {"modules": "without_fge", "depth": 5, "patch": (1, 32, 64)},
        {"modules": "without_fge", "input_scale": 2, "depth": 3},
        {"guidance": "cross_attention", "depth": 5, **ONE_SECTION},
        {"guidance": "se", "input_scale": 2, **ONE_SECTION},
        {"input_scale": 4, "patch": (2, 32, 32), **ONE_SECTION},
        {"depth": 5, "input_scale": 2, "finest_depth_kernel": 3},
        {"depth": 3, "expansion": 1, **ONE_SECTION},
        {"encoder": "tiny", "patch": (2, 64, 96)},
        {"encoder": "tiny", "depth": 5, "input_scale": 2, "patch": (1, 32, 32)},
    ],
    ids=str,
)
def test_parts_that_are_left_out_or_changed_together_go_together(
    make_network: Make, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    check_halves(make_network(**changes), monkeypatch)


@pytest.mark.parametrize(
    ("changes", "cut", "names"),
    [
        ({}, Cut(True, 0, True), [*composed(1), *composed(2), *composed(3)]),
        ({"depth": 3, **ONE_SECTION}, Cut(True, 2, False), [*composed(1), *composed(2), "fine_0", "fine_1"]),
        (
            {"modules": "without_fga", "depth": 3, "finest_depth_kernel": 3},
            Cut(True, 0, True),
            ["bias_hidden_1", "bias_shortcut_1", "bias_hidden_2", "bias_shortcut_2"],
        ),
        ({"guidance": "eca", "depth": 3}, Cut(False, 0, True), ["features_1", "features_2"]),
        ({"modules": "without_fge"}, Cut(False, 0, False), ["features_1", "features_2", "features_3"]),
        ({"modules": "without_sam2"}, Cut(False, 0, True), []),
        ({"modules": "without_sam2", **ONE_SECTION}, Cut(False, 2, False), ["fine_0", "fine_1"]),
    ],
    ids=str,
)
def test_the_cut_lies_as_late_as_one_section_allows(
    make_network: Make, changes: dict[str, Any], cut: Cut, names: list[str] | None
) -> None:
    deployed = inference_copy(make_network(**changes))
    assert cut_of(deployed) == cut
    if names is not None:
        assert SectionGraph(deployed, cut).names == names


@pytest.mark.parametrize("changes", [{}, {"guidance": "se", **ONE_SECTION}], ids=str)
def test_features_of_a_section_depend_on_no_other(make_network: Make, changes: dict[str, Any]) -> None:
    encoder, _ = halves_of(make_network(**changes))
    gray = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        together, alone = encoder(gray), encoder(gray[1:2])
    for whole, single in zip(together, alone, strict=True):
        torch.testing.assert_close(whole[1:2], single, rtol=1e-5, atol=1e-5)
        assert (whole[0] - whole[1]).abs().max() > 1e-3


def test_the_trained_network_is_left_as_it_was(make_network: Make) -> None:
    network = make_network()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    run_halves(network, torch.zeros(network.config.patch, dtype=torch.uint8))
    after = network.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_a_neck_that_averages_is_refused(make_network: Make) -> None:
    encoder = copy.deepcopy(make_network().encoder)
    encoder.image_encoder.neck.fuse_type = "avg"
    with pytest.raises(ValueError, match="a neck that fuses by avg"):
        Neck(encoder, None)
