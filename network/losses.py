"""The loss of FGNet: L(A_s) + L(A_r), each a class-balanced cross-entropy plus half a Dice loss."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from fgnet.network.model import Prediction


def affinity_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy weighted by class ratio, plus 0.5 Dice.

    Args:
        logits: (B, 3, D, H, W).
        target: the same shape, 0 or 1.

    Returns:
        A scalar. The positive fraction of each channel is clipped to [0.05, 0.95], so that no class outweighs the other
        more than nineteenfold.
    """
    positive = target.mean(dim=(0, 2, 3, 4), keepdim=True).clamp(0.05, 0.95)
    weight = torch.where(target > 0.5, 0.5 / positive, 0.5 / (1 - positive))
    entropy = functional.binary_cross_entropy_with_logits(logits, target, weight=weight)
    probability = torch.sigmoid(logits)
    overlap = (probability * target).sum(dim=(0, 2, 3, 4))
    total = (probability + target).sum(dim=(0, 2, 3, 4))
    dice = 1 - ((2 * overlap + 1) / (total + 1)).mean()
    return entropy + 0.5 * dice


def fgnet_loss(prediction: Prediction, target: Tensor) -> Tensor:
    """The sum over the decoders that the network has; both are supervised with the same affinities."""
    losses = [
        affinity_loss(logits.float(), target)
        for logits in (prediction.refined, prediction.coarse)
        if logits is not None
    ]
    return torch.stack(losses).sum()
