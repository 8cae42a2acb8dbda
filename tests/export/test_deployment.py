"""The deployed network against the trained one in evaluation mode: same numbers, fewer parts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the export needs the extra fgnet[train]")
pytest.importorskip("sam2", reason="the export needs the extra fgnet[train]")

from fgnet.export.deployment import Deployment  # noqa: E402
from fgnet.network.config import FGNetConfig, preset  # noqa: E402
from fgnet.network.model import FGNet  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_torch_thread")

WIDTHS = (4, 6, 8, 10, 12)

ABLATIONS: list[dict[str, Any]] = [
    {},
    *({"modules": name} for name in ("without_sam2", "without_fge", "without_fga")),
    *({"guidance": name} for name in ("se", "cbam", "eca", "cross_attention")),
    *({"depth": depth} for depth in (3, 5)),
    *({"finest_depth_kernel": kernel, "context_sections": context} for kernel in (1, 3) for context in (0, 1)),
    {"input_scale": 2},
    {"patch": (3, 32, 96)},
    {"adaptation": "frozen"},
    {"finest_blocks": 2, "expansion": 3, "finest_expansion": 2},
]


def config_of(changes: dict[str, Any]) -> FGNetConfig:
    return preset("nano", **{"widths": WIDTHS[: changes.get("depth", 4)], "patch": (4, 64, 64)} | changes)


def trained_a_little(config: FGNetConfig) -> FGNet:
    """Random weights, batch norms whose statistics and scales are those of no initialisation."""
    torch.manual_seed(0)
    network = FGNet(config).train()
    with torch.no_grad():
        for _ in range(2):
            network(torch.rand(2, 1, *config.patch))
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d | torch.nn.BatchNorm3d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.5, 0.5)
    return network.eval()


def gray(patch: tuple[int, int, int]) -> Any:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (1, 1, *patch), dtype=torch.uint8, generator=generator)


def affinities(network: FGNet, block: Any) -> Any:
    with torch.inference_mode():
        return torch.sigmoid(network(block.float() / 255).result)


@pytest.mark.parametrize("changes", ABLATIONS, ids=str)
def test_every_ablation_is_deployed_with_the_same_affinities(changes: dict[str, Any]) -> None:
    config = config_of(changes)
    network, block = trained_a_little(config), gray(config.patch)
    expected = affinities(network, block)
    with torch.inference_mode():
        found = Deployment(network)(block)
    assert found.shape == (1, 3, *config.patch)
    assert expected.std() > 1e-3
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_a_sam2_variant_is_deployed_with_the_same_affinities() -> None:
    config = preset("tiny", widths=WIDTHS[:4], patch=(2, 64, 64))
    network, block = trained_a_little(config), gray(config.patch)
    with torch.inference_mode():
        torch.testing.assert_close(Deployment(network)(block), affinities(network, block), rtol=0, atol=1e-5)


def test_the_trained_network_is_left_as_it_was() -> None:
    network = trained_a_little(config_of({}))
    before = {key: value.clone() for key, value in network.state_dict().items()}
    Deployment(network)
    after = network.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert network.coarse is not None


@pytest.mark.parametrize("modules", ["full", "without_sam2", "without_fge", "without_fga"])
def test_no_batch_norm_is_left(modules: str) -> None:
    network = trained_a_little(config_of({"modules": modules}))
    kinds = torch.nn.modules.batchnorm._BatchNorm
    assert any(isinstance(module, kinds) for module in network.modules())
    assert not any(isinstance(module, kinds) for module in Deployment(network).modules())


@pytest.mark.parametrize(("modules", "kept"), [("full", False), ("without_fga", False), ("without_fge", True)])
def test_the_coarse_decoder_goes_where_nothing_reads_it(modules: str, kept: bool) -> None:
    deployment = Deployment(trained_a_little(config_of({"modules": modules})))
    assert any(".coarse." in name for name, _ in deployment.named_parameters()) == kept


def test_positions_are_interpolated_once_and_not_again(monkeypatch: pytest.MonkeyPatch) -> None:
    network = trained_a_little(config_of({}))
    block = gray((4, 64, 64))
    modes: list[str] = []
    interpolate = torch.nn.functional.interpolate

    def noted(*arguments: Any, **options: Any) -> Any:
        modes.append(options.get("mode", "nearest"))
        return interpolate(*arguments, **options)

    monkeypatch.setattr(torch.nn.functional, "interpolate", noted)
    affinities(network, block)
    assert "bicubic" in modes
    deployment = Deployment(network)
    modes.clear()
    with torch.inference_mode():
        deployment(block)
    assert modes
    assert "bicubic" not in modes


def test_gray_is_taken_as_bytes_from_0_to_255() -> None:
    network = trained_a_little(config_of({"modules": "without_sam2"}))
    deployment = Deployment(network)
    ramp = torch.from_numpy(np.resize(np.arange(256, dtype=np.uint8), (1, 1, 4, 64, 64)))
    with torch.inference_mode():
        torch.testing.assert_close(deployment(ramp), affinities(network, ramp), rtol=0, atol=1e-5)
