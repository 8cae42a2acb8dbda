"""The deployed network against the trained one in evaluation mode: same numbers, fewer parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the export needs the extra fgnet[train]")
pytest.importorskip("sam2", reason="the export needs the extra fgnet[train]")

from fgnet.export.deployment import Deployment  # noqa: E402
from fgnet.network.model import FGNet  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_torch_thread")

Make = Callable[..., Any]


def gray(patch: tuple[int, int, int]) -> Any:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (1, 1, *patch), dtype=torch.uint8, generator=generator)


def affinities(network: FGNet, block: Any) -> Any:
    with torch.inference_mode():
        return torch.sigmoid(network(block.float() / 255).result)


def test_every_ablation_is_deployed_with_the_same_affinities(make_network: Make, ablation: dict[str, Any]) -> None:
    network = make_network(**ablation)
    block = gray(network.config.patch)
    expected = affinities(network, block)
    with torch.inference_mode():
        found = Deployment(network)(block)
    assert found.shape == (1, 3, *network.config.patch)
    assert expected.std() > 1e-3
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_a_sam2_variant_is_deployed_with_the_same_affinities(make_network: Make) -> None:
    network, block = make_network("tiny", patch=(2, 64, 64)), gray((2, 64, 64))
    with torch.inference_mode():
        torch.testing.assert_close(Deployment(network)(block), affinities(network, block), rtol=0, atol=1e-5)


def test_the_trained_network_is_left_as_it_was(make_network: Make) -> None:
    network = make_network()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    Deployment(network)
    after = network.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert network.coarse is not None


@pytest.mark.parametrize("modules", ["full", "without_sam2", "without_fge", "without_fga"])
def test_no_batch_norm_is_left(make_network: Make, modules: str) -> None:
    network = make_network(modules=modules)
    kinds = torch.nn.modules.batchnorm._BatchNorm
    assert any(isinstance(module, kinds) for module in network.modules())
    assert not any(isinstance(module, kinds) for module in Deployment(network).modules())


@pytest.mark.parametrize(("modules", "kept"), [("full", False), ("without_fga", False), ("without_fge", True)])
def test_the_coarse_decoder_goes_where_nothing_reads_it(make_network: Make, modules: str, kept: bool) -> None:
    deployment = Deployment(make_network(modules=modules))
    assert any(".coarse." in name for name, _ in deployment.named_parameters()) == kept


def test_positions_are_interpolated_once_and_not_again(make_network: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    network = make_network()
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


def test_gray_is_taken_as_bytes_from_0_to_255(make_network: Make) -> None:
    network = make_network(modules="without_sam2")
    deployment = Deployment(network)
    ramp = torch.from_numpy(np.resize(np.arange(256, dtype=np.uint8), (1, 1, 4, 64, 64)))
    with torch.inference_mode():
        torch.testing.assert_close(deployment(ramp), affinities(network, ramp), rtol=0, atol=1e-5)
