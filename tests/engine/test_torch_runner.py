"""What is particular to PyTorch: the whole network at once, autocast and compilation."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from fgnet.engine.bundle import Bundle, load_bundle
from fgnet.engine.columns import run_block
from fgnet.engine.torch_runner import TorchRunner
from fgnet.volumes.errors import BackendError

pytestmark = pytest.mark.usefixtures("one_torch_thread")

PATCH = (4, 64, 64)


@pytest.fixture(scope="module")
def network(tiny_bundle: Path, build: Callable[[Bundle], Any]) -> Any:
    return build(load_bundle(tiny_bundle))


@pytest.fixture(scope="module")
def block() -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, PATCH, dtype=np.uint8)


@pytest.mark.parametrize("sections", [None, 1, 3, 4])
def test_the_whole_network_and_its_halves_agree_whatever_the_sections_of_a_call(
    network: Any, block: npt.NDArray[np.uint8], sections: int | None
) -> None:
    runner = TorchRunner(network, PATCH, sections=sections, device="cpu")
    assert runner.sections == (sections or 4)
    whole = runner.run(block)
    assert (whole.shape, whole.dtype) == ((3, *PATCH), np.float32)
    assert 0 <= whole.min() < whole.max() <= 1
    np.testing.assert_allclose(run_block(runner, block) / 255, whole, rtol=0, atol=0.501 / 255)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_autocast_rounds_and_no_more(network: Any, block: npt.NDArray[np.uint8], precision: Any) -> None:
    exact = TorchRunner(network, PATCH, device="cpu").run(block)
    halved = TorchRunner(network, PATCH, precision=precision, device="cpu").run(block)
    assert halved.dtype == np.float32
    assert 0 < np.abs(halved - exact).mean() < 0.02


def small_network() -> Any:
    """What the runner asks of a network in two convolutions: the real one takes minutes to compile."""
    import torch

    class SmallNetwork(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = torch.nn.Conv2d(1, 8, 4, stride=4)
            self.spread = torch.nn.ConvTranspose2d(8, 3, 4, stride=4)

        def encode(self, stack: Any) -> list[Any]:
            return [torch.nn.functional.gelu(self.embed(stack))]

        def refine(self, stack: Any, features: list[Any], depth: int) -> Any:
            above = features[0].unflatten(0, (-1, depth)).roll(1, 1).flatten(0, 1)
            return 4 * self.spread(features[0] + above) + stack

        def infer(self, gray: Any) -> Any:
            stack = gray.transpose(1, 2).flatten(0, 1)
            logits = self.refine(stack, self.encode(stack), gray.shape[2])
            return logits.unflatten(0, (len(gray), -1)).transpose(1, 2)

    torch.manual_seed(0)
    return SmallNetwork()


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
def test_a_compiled_network_gives_the_affinities_of_the_eager_one(block: npt.NDArray[np.uint8]) -> None:
    if shutil.which("c++") is None:
        pytest.skip("PyTorch compiles with a C++ compiler, and there is none")
    network = small_network()
    runner = TorchRunner(network, PATCH, sections=2, compiled=True, device="cpu")
    assert runner.describe()["backend"] == runner.name == "torch-compile"
    eager = TorchRunner(network, PATCH, sections=2, device="cpu")
    assert np.ptp(eager.run(block)) > 0.5
    differences = run_block(runner, block).astype(int) - run_block(eager, block)
    assert np.abs(differences).max() <= 1
    assert np.abs(differences).mean() < 0.01
    np.testing.assert_allclose(runner.run(block), eager.run(block), rtol=0, atol=1e-4)


def test_threads_are_those_asked_for(network: Any) -> None:
    assert TorchRunner(network, PATCH, device="cpu", threads=2).describe()["threads"] == 2


def test_int8_is_refused_with_what_there_is(network: Any) -> None:
    with pytest.raises(BackendError, match=r"runs no int8 network here \(choose --precision fp32, bf16 or fp16\)"):
        TorchRunner(network, PATCH, precision="int8", device="cpu")


def test_a_gpu_that_is_not_there_is_refused(network: Any) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(BackendError, match=r"PyTorch finds no GPU \(choose --device cpu\)"):
        TorchRunner(network, PATCH, device="cuda")
