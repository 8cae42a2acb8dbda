"""The loss of FGNet: L(A_s) + L(A_r), each a class-balanced cross-entropy plus half a Dice loss."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from fgnet.network.model import Prediction


def affinity_loss(logits: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Cross-entropy weighted by class ratio, plus 0.5 Dice.

    Args:
        logits: (B, 3, D, H, W).
        target: the same shape, 0 or 1.
        mask: the same shape, bool: what is scored, for nothing is known of the rest; everything without it.

    Returns:
        A scalar. The positive fraction of each channel is clipped to [0.05, 0.95], so that no class outweighs the other
        more than nineteenfold.
    """
    axes = (0, 2, 3, 4)
    scored = torch.ones_like(target) if mask is None else mask.to(target.dtype)
    target = target * scored
    # A channel of which nothing is known has neither a class ratio nor a loss.
    counted = scored.sum(dim=axes, keepdim=True).clamp(min=1)
    positive = (target.sum(dim=axes, keepdim=True) / counted).clamp(0.05, 0.95)
    weight = torch.where(target > 0.5, 0.5 / positive, 0.5 / (1 - positive)) * scored
    entropy = functional.binary_cross_entropy_with_logits(logits, target, weight=weight, reduction="sum")
    probability = torch.sigmoid(logits) * scored
    overlap = (probability * target).sum(dim=axes)
    total = (probability + target).sum(dim=axes)
    dice = 1 - ((2 * overlap + 1) / (total + 1)).mean()
    return entropy / scored.sum().clamp(min=1) + 0.5 * dice


def fgnet_loss(prediction: Prediction, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """The sum over the decoders that the network has; both are supervised with the same affinities.

    Args:
        prediction: of the network.
        target: (B, 3, D, H, W), 0 or 1.
        mask: the same shape, bool: what is scored; everything without it.
    """
    losses = [
        affinity_loss(logits.float(), target, mask)
        for logits in (prediction.refined, prediction.coarse)
        if logits is not None
    ]
    return torch.stack(losses).sum()
