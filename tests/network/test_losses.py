from __future__ import annotations

import math

import pytest
import torch

from fgnet.network.losses import affinity_loss, fgnet_loss
from fgnet.network.model import Prediction


def by_hand(logits: list[float], target: list[int]) -> float:
    """The loss of one channel's voxels, in plain Python."""
    fraction = min(max(sum(target) / len(target), 0.05), 0.95)
    probability = [1 / (1 + math.exp(-value)) for value in logits]
    entropy = 0.0
    for p, t in zip(probability, target, strict=True):
        entropy -= math.log(p) * 0.5 / fraction if t else math.log(1 - p) * 0.5 / (1 - fraction)
    overlap = sum(p * t for p, t in zip(probability, target, strict=True))
    dice = 1 - (2 * overlap + 1) / (sum(probability) + sum(target) + 1)
    return entropy / len(target) + 0.5 * dice


CHANNELS = [
    ([0.3, -1.2, 2.0, 0.0], [1, 0, 1, 1]),
    ([-2.0, 0.5, 0.1, 1.0], [0, 0, 1, 0]),
    ([1.0, 1.5, -0.5, 0.2], [1, 1, 1, 1]),
]


def tensors() -> tuple[torch.Tensor, torch.Tensor]:
    logits = torch.tensor([values for values, _ in CHANNELS]).view(1, 3, 1, 2, 2)
    target = torch.tensor([values for _, values in CHANNELS], dtype=torch.float32).view(1, 3, 1, 2, 2)
    return logits, target


def test_the_loss_is_the_mean_over_channels_of_balanced_cross_entropy_and_half_dice() -> None:
    expected = sum(by_hand(*channel) for channel in CHANNELS) / 3
    assert affinity_loss(*tensors()).item() == pytest.approx(expected, rel=1e-5)


def test_voxels_of_a_batch_are_weighed_together() -> None:
    logits, target = tensors()
    together = affinity_loss(logits.view(2, 3, 1, 1, 2), target.view(2, 3, 1, 1, 2))
    assert together.isfinite()
    pair = affinity_loss(torch.cat((logits, logits)), torch.cat((target, target)))
    alone = [by_hand(values * 2, truth * 2) for values, truth in CHANNELS]
    assert pair.item() == pytest.approx(sum(alone) / 3, rel=1e-5)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_channel_of_one_class_is_weighed_finitely(value: float) -> None:
    target = torch.full((1, 3, 1, 2, 2), value)
    loss = affinity_loss(torch.zeros_like(target), target)
    dice = 1 - (2 * 4 * 0.5 * value + 1) / (2 + 4 * value + 1)
    assert loss.item() == pytest.approx(math.log(2) * 0.5 / 0.95 + 0.5 * dice, rel=1e-5)


def test_both_decoders_are_supervised_with_the_same_affinities() -> None:
    logits, target = tensors()
    one = affinity_loss(logits, target)
    both = fgnet_loss(Prediction(refined=logits, coarse=-logits), target)
    torch.testing.assert_close(both, one + affinity_loss(-logits, target))
    torch.testing.assert_close(fgnet_loss(Prediction(refined=None, coarse=logits), target), one)


def test_half_precision_logits_are_scored_in_single_precision() -> None:
    logits, target = tensors()
    assert fgnet_loss(Prediction(refined=logits.bfloat16(), coarse=None), target).dtype == torch.float32


def test_a_prediction_prefers_refined_affinities_and_needs_some() -> None:
    logits, _ = tensors()
    assert Prediction(refined=logits, coarse=-logits).result is logits
    assert torch.equal(Prediction(refined=None, coarse=-logits).result, -logits)
    with pytest.raises(ValueError, match="without refined"):
        _ = Prediction(None, None).result


def test_masked_voxels_are_as_if_they_were_not_there() -> None:
    logits, target = tensors()
    expected = affinity_loss(logits, target)
    wide_logits, wide_target = (torch.cat((part, 1 - part), dim=2) for part in (logits, target))
    mask = torch.zeros_like(wide_target, dtype=torch.bool)
    mask[:, :, :1] = True
    torch.testing.assert_close(affinity_loss(wide_logits, wide_target, mask), expected)
    both = fgnet_loss(Prediction(refined=wide_logits, coarse=wide_logits), wide_target, mask)
    torch.testing.assert_close(both, 2 * expected)


def test_a_mask_of_everything_is_no_mask() -> None:
    logits, target = tensors()
    everything = torch.ones_like(target, dtype=torch.bool)
    assert affinity_loss(logits, target, everything).item() == affinity_loss(logits, target).item()


def test_masked_voxels_have_no_gradient() -> None:
    logits, target = tensors()
    logits.requires_grad_()
    mask = torch.rand(target.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    affinity_loss(logits, target, mask).backward()
    assert logits.grad is not None
    assert not logits.grad[~mask].any()
    assert logits.grad[mask].all()


def test_a_channel_of_which_nothing_is_known_adds_nothing() -> None:
    logits, target = tensors()
    logits.requires_grad_()
    mask = torch.ones_like(target, dtype=torch.bool)
    mask[:, 0] = False
    loss = affinity_loss(logits, target, mask)
    loss.backward()
    assert loss.isfinite()
    assert logits.grad is not None
    assert not logits.grad[:, 0].any()
    nothing = affinity_loss(logits, target, torch.zeros_like(mask))
    assert nothing.item() == 0
    nothing.backward()
    assert logits.grad.isfinite().all()
