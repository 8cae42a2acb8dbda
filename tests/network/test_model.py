"""The whole network in all its ablations, at tiny widths."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
import torch
from torch import Tensor

from fgnet.network.config import FGNetConfig, preset
from fgnet.network.losses import fgnet_loss
from fgnet.network.model import FGNet

WIDTHS = (4, 6, 8, 10, 12)

ABLATIONS: list[dict[str, Any]] = [
    {},
    *({"modules": name} for name in ("without_sam2", "without_fge", "without_fga")),
    *({"guidance": name} for name in ("se", "cbam", "eca", "cross_attention")),
    *({"depth": depth} for depth in (3, 5)),
    *({"depth": depth, "modules": name} for depth in (3, 5) for name in ("without_sam2", "without_fge")),
    *({"input_scale": scale} for scale in (2, 4)),
    {"adaptation": "frozen"},
    {"context_sections": 0, "finest_depth_kernel": 3, "finest_blocks": 2, "expansion": 3},
]


def tiny_config(encoder: Any = "nano", **changes: Any) -> FGNetConfig:
    depth = changes.get("depth", 4)
    return preset(encoder, **{"widths": WIDTHS[:depth], "patch": (4, 32, 32)} | changes)


def network_of(config: FGNetConfig) -> FGNet:
    torch.manual_seed(0)
    return FGNet(config)


def gray(batch: int = 1, depth: int = 3, height: int = 32, width: int = 32) -> Tensor:
    return torch.rand(batch, 1, depth, height, width, generator=torch.Generator().manual_seed(1))


def trained_a_little(network: FGNet) -> FGNet:
    """Batch statistics other than those of initialisation, so that evaluation has something to apply."""
    network.train()
    with torch.no_grad():
        network(gray(2, 3, 64, 64))
    return network.eval()


def targets(like: Tensor) -> Tensor:
    return (torch.rand(like.shape, generator=torch.Generator().manual_seed(2)) > 0.4).float()


@pytest.mark.parametrize("changes", ABLATIONS, ids=str)
def test_every_ablation_trains_every_trainable_parameter(changes: dict[str, Any]) -> None:
    network = network_of(tiny_config(**changes)).train()
    block = gray(2, 3, 32, 64)
    prediction = network(block)
    fgnet_loss(prediction, targets(prediction.result)).backward()
    assert prediction.result.shape == (2, 3, 3, 32, 64)
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
        else:
            assert parameter.grad is None, name


@pytest.mark.parametrize("guidance", ["fga", "se", "cbam", "eca", "cross_attention"])
def test_the_result_depends_on_the_encoders_features(guidance: str) -> None:
    network = trained_a_little(network_of(tiny_config(guidance=guidance)))
    block = gray()
    stack = block.transpose(1, 2).flatten(0, 1)
    with torch.inference_mode():
        features = network.encode(stack)
        usual = network.refine(stack, features, 3)
        for index in range(len(features)):
            changed = [f + 1 if i == index else f for i, f in enumerate(features)]
            assert not torch.allclose(network.refine(stack, changed, 3), usual)


@pytest.mark.parametrize(
    ("modules", "refined", "coarse"),
    [
        ("full", True, True),
        ("without_sam2", True, False),
        ("without_fge", False, True),
        ("without_fga", True, True),
    ],
)
def test_each_ablation_has_the_decoders_that_it_needs(modules: str, refined: bool, coarse: bool) -> None:
    prediction = network_of(tiny_config(modules=modules)).eval()(gray())
    assert (prediction.refined is not None, prediction.coarse is not None) == (refined, coarse)


@pytest.mark.parametrize("modules", ["full", "without_sam2", "without_fge", "without_fga"])
def test_inference_gives_the_result_without_the_coarse_decoder(modules: str) -> None:
    network = trained_a_little(network_of(tiny_config(modules=modules)))
    block = gray(2)
    with torch.inference_mode():
        expected = network(block).result
        if modules != "without_fge":
            network.coarse = None
        assert torch.equal(network.infer(block), expected)


@pytest.mark.parametrize("guidance", ["fga", "se", "cbam", "eca", "cross_attention"])
def test_a_batch_of_two_equals_two_batches_of_one(guidance: str) -> None:
    network = trained_a_little(network_of(tiny_config(guidance=guidance)))
    pair = gray(2)
    with torch.inference_mode():
        together = network(pair)
        for index in range(2):
            alone = network(pair[index : index + 1])
            for both, one in zip(together, alone, strict=True):
                torch.testing.assert_close(both[index : index + 1], one, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("context", [0, 1])
def test_blocks_of_a_batch_do_not_leak_into_each_other_along_z(context: int) -> None:
    network = trained_a_little(network_of(tiny_config(context_sections=context)))
    pair = gray(2).requires_grad_()
    network(pair).result[0].sum().backward()
    assert pair.grad is not None
    assert pair.grad[0].any()
    assert not pair.grad[1].any()


def test_neighbouring_sections_reach_the_result() -> None:
    network = trained_a_little(network_of(tiny_config()))
    block = gray(1, 5).requires_grad_()
    network(block).result[0, :, 2].sum().backward()
    assert block.grad is not None
    assert all(block.grad[0, 0, z].any() for z in range(5))


@pytest.mark.parametrize("encoder", ["nano", "tiny"])
def test_a_frozen_encoder_stays_in_evaluation_and_without_gradient(encoder: str) -> None:
    network = network_of(tiny_config(encoder, adaptation="frozen", input_scale=1))
    assert network.encoder is not None
    network.train()
    assert network.training
    assert not any(module.training for module in network.encoder.modules())
    assert not any(level.requires_grad for level in network.encode(gray()[:, :, 0]))
    assert any(parameter.requires_grad for parameter in network.parameters())
    network.eval()
    assert not any(module.training for module in network.modules())


def test_a_fine_tuned_encoder_trains() -> None:
    network = network_of(tiny_config()).eval().train()
    assert all(module.training for module in network.modules())


@pytest.mark.parametrize("encoder", ["tiny", "small", "base_plus", "large"])
def test_every_sam2_variant_makes_a_network(encoder: str) -> None:
    network = network_of(tiny_config(encoder)).eval()
    with torch.inference_mode():
        assert network(gray(1, 2)).result.shape == (1, 3, 2, 32, 32)


def test_the_shipped_preset_keeps_its_tensors_names_and_shapes() -> None:
    # Trained checkpoints of it are in use.
    network = FGNet(preset("nano"))
    assert sum(p.numel() for p in network.parameters()) == 1_596_566
    layout = "\n".join(f"{key} {tuple(value.shape)}" for key, value in network.state_dict().items())
    assert (
        hashlib.sha256(layout.encode()).hexdigest()
        == "91893562249931930c76a3faad047581c19162c309ef4dc787e3fe5c47f66989"
    )
