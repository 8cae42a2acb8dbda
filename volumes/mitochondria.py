"""Where do mitochondria lie? Chains of cones along the skeletons of the neurites wide enough to hold them."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray


def place_mitochondria(
    balls: NDArray[np.float64],
    parents: NDArray[np.int64],
    owner: NDArray[np.int32],
    rng: np.random.Generator,
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Place mitochondria, more of them in wider neurites.

    Args:
        balls: (n, 4) skeleton points (z, y, x) and radii, nm.
        parents: (n,) the point before each, -1 at a neurite's first.
        owner: (n,) the neurite of each.
        rng: of every random choice.

    Returns:
        Segments (m, 8), both ends and both radii in nm, and the neurite around each (m,).
    """
    lengths = np.linalg.norm(balls[:, :3] - balls[np.maximum(parents, 0), :3], axis=1)
    chance = np.where(balls[:, 3] > 105.0, lengths / 2000.0, 0.0) * np.where(balls[:, 3] > 300.0, 2.2, 1.0)
    starts = np.flatnonzero((rng.random(len(balls)) < chance) & (parents >= 0))
    rows: list[NDArray[np.float64]] = []
    around: list[int] = []
    for start in starts:
        wanted = rng.uniform(350.0, 1900.0)
        widest = rng.uniform(75.0, 190.0)
        shift = rng.standard_normal(3)
        shift /= np.linalg.norm(shift)
        chain: list[NDArray[np.float64]] = []
        ball, run = int(start), 0.0
        while ball >= 0 and run < wanted and balls[ball, 3] > 85.0:
            radius = min(widest, 0.68 * balls[ball, 3])
            centre = balls[ball, :3] + shift * 0.9 * (balls[ball, 3] - radius - 20.0)
            chain.append(np.append(centre, radius))
            run += lengths[ball]
            ball = int(parents[ball])
        if len(chain) < 2:
            continue
        for first, second in itertools.pairwise(chain):
            rows.append(np.concatenate([first[:3], second[:3], first[3:], second[3:]]))
            around.append(int(owner[start]))
    segments = np.array(rows, dtype=np.float32).reshape(-1, 8)
    return segments, np.array(around, dtype=np.int32)
