"""Depthwise convolutions over z as one in 3-D give the numbers of three shifted ones; nothing else becomes one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from fgnet.engine import openvino_runner
from fgnet.engine.bundle import Bundle, default_bundle, load_bundle
from fgnet.engine.columns import run_block
from fgnet.engine.openvino_depthwise import join_depthwise
from fgnet.engine.openvino_runner import OpenVINORunner

ov = pytest.importorskip("openvino", reason="it is OpenVINO that they are put together for")
ops = pytest.importorskip("openvino.opset13")

# Of a network of the default depth: two in each of three guides, and those of the levels and of the way up.
DEPTHWISE = 11

Floats = npt.NDArray[np.float32]
Shift = Callable[[Any], Any]


def plane(stack: Any, kernel: Floats, stride: int = 1, padding: int = 1) -> Any:
    return ops.group_convolution(stack, ops.constant(kernel), [stride] * 2, [padding] * 2, [padding] * 2, [1, 1])


def shifted(stack: Any, start: int, stop: int, before: int, after: int, filling: float = 0.0) -> Any:
    cut = ops.slice(stack, np.array([start]), np.array([stop]), np.array([1]), np.array([0]))
    return ops.pad(cut, [before, 0, 0, 0], [after, 0, 0, 0], "constant", ops.constant(np.float32(filling)))


def before(stack: Any) -> Any:
    return shifted(stack, 0, -1, 1, 0)


def after(stack: Any) -> Any:
    return shifted(stack, 1, 2**63 - 1, 0, 1)


def stack_of(sections: int = 5, channels: int = 6) -> Any:
    return ops.parameter([sections, channels, 12, 16], np.float32, name="stack")


def kernels(channels: int = 6, side: int = 3) -> Floats:
    return np.random.default_rng(0).normal(size=(3, channels, 1, 1, side, side)).astype(np.float32)


def computed(model: Any, *inputs: npt.NDArray[Any]) -> npt.NDArray[Any]:
    compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1})
    found: npt.NDArray[Any] = compiled(list(inputs))[0]
    return found


@pytest.mark.parametrize("sections", [1, 2, 5])
@pytest.mark.parametrize(("side", "stride"), [(3, 1), (5, 4)])
@pytest.mark.parametrize("ends", ["bare", "bias", "bias and relu"])
def test_three_shifted_ones_become_one(sections: int, side: int, stride: int, ends: str) -> None:
    def model() -> Any:
        stack, (first, second, third) = stack_of(sections), kernels(side=side)
        of_plane = [
            plane(shift(stack), kernel, stride, side // 2)
            for shift, kernel in zip((before, lambda x: x, after), (first, second, third), strict=True)
        ]
        bias = ops.constant(np.random.default_rng(1).normal(size=(1, 6, 1, 1)).astype(np.float32))
        middle = of_plane[1] if ends == "bare" else ops.add(of_plane[1], bias)
        total = ops.add(ops.add(of_plane[0], middle), of_plane[2])
        # Read by two, or by a ReLU alone.
        last = [ops.relu(total)] if ends == "bias and relu" else [ops.exp(total), ops.sin(total)]
        return ov.Model([ops.concat(last, 0)], [stack])

    plain, joined = model(), model()
    assert join_depthwise(joined) == 1
    shapes = [node.get_input_shape(1) for node in joined.get_ops() if node.get_type_name() == "GroupConvolution"]
    assert [list(shape) for shape in shapes] == [[6, 1, 1, 3, side, side]]
    gray = np.random.default_rng(2).normal(size=(sections, 6, 12, 16)).astype(np.float32)
    np.testing.assert_allclose(computed(joined, gray), computed(plain, gray), rtol=1e-5, atol=1e-5)


def another(stack: Any) -> Any:
    """The sections before, of something else."""
    return before(ops.relu(stack))


def filled(stack: Any) -> Any:
    """The sections before, and one of ones where there is none."""
    return shifted(stack, 0, -1, 1, 0, filling=1.0)


def farther(stack: Any) -> Any:
    """The sections two before."""
    return shifted(stack, 0, -2, 2, 0)


@pytest.mark.parametrize("shift", [after, another, filled, farther])
def test_other_sums_stay_as_they_are(shift: Shift) -> None:
    stack, (first, second, third) = stack_of(), kernels()
    total = ops.add(ops.add(plane(shift(stack), first), plane(stack, second)), plane(after(stack), third))
    model = ov.Model([total], [stack])
    assert join_depthwise(model) == 0
    assert sum(node.get_type_name() == "GroupConvolution" for node in model.get_ops()) == 3


def test_a_sum_with_something_that_is_no_bias_stays_as_it_is() -> None:
    stack, (first, second, third) = stack_of(), kernels()
    total = ops.add(ops.add(plane(before(stack), first), plane(stack, second)), plane(after(stack), third))
    assert join_depthwise(ov.Model([ops.add(total, stack)], [stack])) == 1
    total = ops.add(ops.add(plane(before(stack), first), plane(stack, second)), stack)
    assert join_depthwise(ov.Model([ops.add(total, plane(after(stack), third))], [stack])) == 0


def affinities(bundle: Bundle, precision: Any) -> npt.NDArray[np.int64]:
    block = np.random.default_rng(0).integers(0, 256, bundle.manifest.patch, dtype=np.uint8)
    return run_block(OpenVINORunner(bundle, precision=precision, threads=1), block).astype(np.int64)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_a_networks_affinities_are_those_of_shifted_ones_or_nearer_to_the_true_ones(
    precise: Bundle, precision: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if precision != "fp32" and not openvino_runner.computes_bf16():
        pytest.skip("this CPU computes no bfloat16")
    joined: list[int] = []
    monkeypatch.setattr(openvino_runner, "join_depthwise", lambda model: joined.append(join_depthwise(model)))
    found = affinities(precise, precision)
    # Those of the decoder; the encoder has none.
    assert sorted(joined) == [0, DEPTHWISE]
    monkeypatch.setattr(openvino_runner, "join_depthwise", lambda model: 0)
    true = affinities(precise, "fp32")
    apart = np.abs(affinities(precise, precision) - true)
    assert np.abs(found - true).max() <= max(1, 1.5 * apart.max())
    assert np.abs(found - true).mean() <= max(1e-3, 1.05 * apart.mean())


def test_the_shipped_model_has_them() -> None:
    bundle = load_bundle(default_bundle())
    assert join_depthwise(ov.Core().read_model(bundle.path / bundle.graphs("fp32").decoder)) == DEPTHWISE
