"""How do neurites share a piece of tissue? Branching skeletons with radii, each grown into the space that is free."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from fgnet.volumes.mitochondria import place_mitochondria

DENDRITE, AXON, GLIA = 0, 1, 2
GRID_NM = 32.0
"""Spacing of the grid that holds the distance to the nearest neurite already placed."""
PAD_NM = 450.0
"""Tissue grown around the volume, so that its faces look like its middle."""

# Per class: kind, radius range nm, thinnest nm, branches, varicosities and spines per um, persistence, reach of the
# clearance nm, share of the tissue filled when it ends (0: all that is left).
_CLASSES: tuple[tuple[int, tuple[float, float], float, float, float, float, float, float, float], ...] = (
    (DENDRITE, (330.0, 680.0), 160.0, 0.08, 0.0, 0.6, 9.0, 680.0, 0.13),
    (DENDRITE, (150.0, 360.0), 75.0, 0.12, 0.15, 0.7, 5.0, 360.0, 0.38),
    (AXON, (55.0, 150.0), 42.0, 0.05, 0.55, 0.0, 3.5, 230.0, 0.62),
    (GLIA, (120.0, 320.0), 38.0, 2.0, 0.4, 0.0, 0.7, 230.0, 0.70),
    (AXON, (48.0, 110.0), 38.0, 0.04, 0.45, 0.0, 3.0, 160.0, 0.0),
)


@dataclass(frozen=True)
class Neurites:
    """Neurites as round cones.

    Args:
        segments: (n, 8) float32; both ends (z, y, x, z, y, x) and both radii, in nm from the volume's first corner.
        owner: (n,) int32, the neurite of each segment.
        kind: (k,) uint8 per neurite, one of DENDRITE, AXON, GLIA.
        flatness: (k, 3) float32, direction in which a neurite is flattened; its length f stretches distances there by
            sqrt(1 + f^2).
        mitochondria: (m, 8) float32, segments as above.
        mitochondria_owner: (m,) int32, the neurite around each of them.
    """

    segments: NDArray[np.float32]
    owner: NDArray[np.int32]
    kind: NDArray[np.uint8]
    flatness: NDArray[np.float32]
    mitochondria: NDArray[np.float32]
    mitochondria_owner: NDArray[np.int32]


@njit(cache=True)
def _uniform(state: Any) -> Any:
    """The next number in [0, 1) of a splitmix64 stream; `state` is (1,) uint64."""
    state[0] += np.uint64(0x9E3779B97F4A7C15)
    word = state[0]
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    word = word ^ (word >> np.uint64(31))
    return float(word >> np.uint64(11)) / 9007199254740992.0


@njit(cache=True)
def _normal(state: Any) -> Any:
    return math.sqrt(-2.0 * math.log(1.0 - _uniform(state))) * math.cos(2.0 * math.pi * _uniform(state))


@njit(cache=True)
def _clearance(field: Any, z: float, y: float, x: float) -> Any:
    """Distance (nm) from a point in the padded tissue to the nearest neurite, trilinear; -1 outside."""
    depth, height, width = field.shape
    u, v, w = z / GRID_NM, y / GRID_NM, x / GRID_NM
    if u < 0.0 or v < 0.0 or w < 0.0 or u >= depth - 1 or v >= height - 1 or w >= width - 1:
        return -1.0
    i, j, k = int(u), int(v), int(w)
    u, v, w = u - i, v - j, w - k
    near = (field[i, j, k] * (1 - w) + field[i, j, k + 1] * w) * (1 - v)
    near += (field[i, j + 1, k] * (1 - w) + field[i, j + 1, k + 1] * w) * v
    far = (field[i + 1, j, k] * (1 - w) + field[i + 1, j, k + 1] * w) * (1 - v)
    far += (field[i + 1, j + 1, k] * (1 - w) + field[i + 1, j + 1, k + 1] * w) * v
    return near * (1 - u) + far * u


@njit(cache=True)
def _stamp(field: Any, z: float, y: float, x: float, radius: float, reach: float) -> Any:
    """Lower the distance field around one ball; returns the grid points that the ball newly covers."""
    depth, height, width = field.shape
    extent = radius + reach
    covered = 0
    for i in range(max(0, int((z - extent) / GRID_NM)), min(depth, int((z + extent) / GRID_NM) + 2)):
        for j in range(max(0, int((y - extent) / GRID_NM)), min(height, int((y + extent) / GRID_NM) + 2)):
            for k in range(max(0, int((x - extent) / GRID_NM)), min(width, int((x + extent) / GRID_NM) + 2)):
                a, b, c = i * GRID_NM - z, j * GRID_NM - y, k * GRID_NM - x
                distance = math.sqrt(a * a + b * b + c * c) - radius
                if distance < field[i, j, k]:
                    if distance <= 0.0 < field[i, j, k]:
                        covered += 1
                    field[i, j, k] = distance
    return covered


@njit(cache=True)
def _best_step(
    field: Any,
    point: tuple[float, float, float],
    direction: tuple[float, float, float],
    step: float,
    target: float,
    thinnest: float,
    persistence: float,
    state: Any,
) -> tuple[float, float, float, float]:
    """Of a few random directions the one with most room for radius `target`, straight ahead rather than aside.

    Returns:
        The direction (z, y, x), and the clearance (nm) after a step there, -1 where there is no room at all.
    """
    best, bz, by, bx, room = -9.0, 0.0, 0.0, 0.0, -1.0
    for attempt in range(30):
        if attempt == 12 and room >= thinnest:
            break
        hold = persistence if attempt < 12 else 0.4
        vz, vy, vx = _unit(
            direction[0] * hold + _normal(state),
            direction[1] * hold + _normal(state),
            direction[2] * hold + _normal(state),
        )
        free = _clearance(field, point[0] + step * vz, point[1] + step * vy, point[2] + step * vx)
        along = vz * direction[0] + vy * direction[1] + vx * direction[2]
        if free < thinnest or along < -0.3:
            continue
        ahead = _clearance(field, point[0] + 2.5 * step * vz, point[1] + 2.5 * step * vy, point[2] + 2.5 * step * vx)
        score = min(free, target) / target + 0.35 * along + 0.3 * min(ahead, target) / target
        if score > best:
            best, bz, by, bx, room = score, vz, vy, vx, free
    return bz, by, bx, room


@njit(cache=True)
def _unit(z: float, y: float, x: float) -> tuple[float, float, float]:
    norm = math.sqrt(z * z + y * y + x * x) + 1e-9
    return z / norm, y / norm, x / norm


@njit(cache=True)
def _grow_tip(
    field: Any, balls: Any, parents: Any, count: int, tip: Any, tips: Any, n_tips: int, shape: Any, state: Any
) -> tuple[int, int]:
    """Extend one tip (z, y, x, direction, radius, parent ball, steps left) until the free space or the tissue ends.

    Branches and spines are added to `tips`. Returns the numbers of balls and of tips.
    """
    thinnest, branch_rate, bouton_rate, spine_rate, persistence, reach = shape
    z, y, x, dz, dy, dx, base = tip[0], tip[1], tip[2], tip[3], tip[4], tip[5], tip[6]
    parent, steps, spine = int(tip[7]), int(tip[8]), tip[9] > 0.0
    radius, wobble, bouton = base, 0.0, -10.0
    for index in range(steps):
        step = max(0.6 * radius, 30.0)
        wobble = 0.88 * wobble + 0.11 * _normal(state)
        if _uniform(state) < bouton_rate * step * 1e-3 and bouton < -4.0:
            bouton = 2.2
        bouton -= step / 170.0
        target = base * math.exp(wobble) * (1.0 + (1.3 if base < 160.0 else 0.5) * math.exp(-bouton * bouton))
        if spine:
            target = 48.0 if index < steps - 3 else base
        target = min(target, reach)
        bz, by, bx, room = _best_step(field, (z, y, x), (dz, dy, dx), step, target, thinnest, persistence, state)
        if room < thinnest or count >= len(balls):
            break
        radius = min(target, room, radius + 0.7 * step)
        z, y, x = z + step * bz, y + step * by, x + step * bx
        dz, dy, dx = _unit(0.6 * dz + 0.4 * bz, 0.6 * dy + 0.4 * by, 0.6 * dx + 0.4 * bx)
        balls[count, 0], balls[count, 1], balls[count, 2], balls[count, 3] = z, y, x, radius
        parents[count] = parent
        parent = count
        count += 1
        if spine:
            continue
        for rate, is_spine in ((branch_rate, False), (spine_rate, True)):
            if n_tips < len(tips) and _uniform(state) < rate * step * 1e-3:
                vz, vy, vx = _normal(state), _normal(state), _normal(state)
                along = vz * dz + vy * dy + vx * dx - 0.3
                vz, vy, vx = _unit(vz - along * dz, vy - along * dy, vx - along * dx)
                start = 0.8 * radius if is_spine else 0.0
                new = tips[n_tips]
                new[0], new[1], new[2] = z + start * vz, y + start * vy, x + start * vx
                new[3], new[4], new[5], new[7] = vz, vy, vx, parent
                new[6] = 110.0 + 90.0 * _uniform(state) if is_spine else base * (0.55 + 0.4 * _uniform(state))
                new[8] = 8 + 18 * _uniform(state) if is_spine else 400
                new[9] = 1.0 if is_spine else 0.0
                n_tips += 1
    return count, n_tips


@njit(cache=True)
def _grow_class(
    field: Any, seeds: Any, balls: Any, parents: Any, owner: Any, shape: Any, limits: Any, state: Any
) -> tuple[int, int, int]:
    """Grow one neurite from each seed (z, y, x, direction, radius) that is still free.

    Args:
        field: distances to what is placed, changed in place.
        seeds: (n, 7) in nm.
        balls: (capacity, 4) centres and radii, filled; nm.
        parents: (capacity,) the ball before each, filled.
        owner: (capacity,) the neurite of each, filled.
        shape: thinnest radius, branch, bouton and spine rates per um, persistence, reach.
        limits: balls so far, neurites so far, grid points still to cover, shortest neurite in balls, longest
            way of a tip in nm.
        state: of the random stream.

    Returns:
        Balls, neurites and covered grid points.
    """
    count, neurites, wanted, shortest, reach = int(limits[0]), int(limits[1]), limits[2], int(limits[3]), shape[5]
    longest, covered = limits[4], 0
    tips = np.zeros((96, 10))
    for row in range(len(seeds)):
        if covered >= wanted or count >= len(balls):
            break
        seed = seeds[row]
        room = _clearance(field, seed[0], seed[1], seed[2])
        if room < max(shape[0], 0.6 * seed[6]):
            continue
        first = count
        balls[count, 0], balls[count, 1], balls[count, 2] = seed[0], seed[1], seed[2]
        balls[count, 3] = min(room, seed[6])
        parents[count] = -1
        count += 1
        n_tips = 2
        for side in range(2):
            tips[side, :7] = seed
            if side == 1:
                tips[side, 3:6] = -seed[3:6]
            tips[side, 7], tips[side, 8], tips[side, 9] = first, longest / max(0.6 * seed[6], 30.0), 0
        done = 0
        budget = first + 3.0 * longest / max(0.6 * seed[6], 30.0)
        while done < n_tips and count < budget:
            count, n_tips = _grow_tip(field, balls, parents, count, tips[done].copy(), tips, n_tips, shape, state)
            done += 1
        if count - first < shortest:
            count = first
            continue
        for ball in range(first, count):
            owner[ball] = neurites
            covered += _stamp(field, balls[ball, 0], balls[ball, 1], balls[ball, 2], balls[ball, 3], reach + GRID_NM)
        neurites += 1
    return count, neurites, covered


def _seeds(
    field: NDArray[np.float32], least: float, radii: tuple[float, float], spread: float, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Seeds (z, y, x, direction, radius) at the free grid points, in random order; fascicles share a direction."""
    free = np.flatnonzero(field >= least)
    free = rng.choice(free, min(len(free), max(2000, field.size // 12)), replace=False)
    where = (np.stack(np.unravel_index(free, field.shape), axis=1) + rng.random((len(free), 3)) - 0.5) * GRID_NM
    sites = rng.random((9, 3)) * np.array(field.shape) * GRID_NM
    toward = rng.standard_normal((9, 3))
    toward /= np.linalg.norm(toward, axis=1, keepdims=True)
    bundle = toward[cKDTree(sites).query(where)[1]]
    direction = rng.standard_normal(where.shape) * spread + bundle
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    low, high = radii
    radius = low * (high / low) ** (rng.random(len(where)) ** 1.3)
    return np.concatenate([where, direction, radius[:, None]], axis=1)


def grow_neurites(size: tuple[float, float, float], seed: np.random.SeedSequence) -> Neurites:
    """Fill a box with neurites: dendrites with spines first, then axons with boutons, glia, and axons in what is left.

    Args:
        size: edge lengths (z, y, x) in nm.
        seed: of every random choice.
    """
    rng = np.random.default_rng(seed)
    state = rng.integers(0, 2**63, 1).astype(np.uint64)
    padded = [length + 2 * PAD_NM for length in size]
    field = np.full([math.ceil(length / GRID_NM) + 2 for length in padded], 1000.0, dtype=np.float32)
    capacity = int(2 * math.prod(padded) / 6e5) + 4096
    balls = np.zeros((capacity, 4))
    parents = np.full(capacity, -1, dtype=np.int64)
    owner = np.full(capacity, -1, dtype=np.int32)
    kinds: list[int] = []
    count = neurites = covered = 0
    longest = 0.7 * math.hypot(*padded)
    widest = 0.12 * sorted(padded)[1]
    for kind, limits_nm, thinnest, branches, boutons, spines, persistence, reach, share in _CLASSES:
        radii = (min(limits_nm[0], 0.6 * widest), min(limits_nm[1], widest))
        shape = np.array(
            [
                min(thinnest, 0.5 * radii[0]) if kind == DENDRITE else thinnest,
                branches,
                boutons,
                spines,
                persistence,
                reach,
            ]
        )
        wanted = share * field.size - covered if share else float(field.size)
        for least, shortest in ((radii[0], 8),) if share else ((90.0, 6), (60.0, 4), (48.0, 2)):
            seeds = _seeds(field, least, radii, 0.5 if kind == AXON else 2.0, rng)
            limits = np.array([count, neurites, wanted, shortest, longest], dtype=np.float64)
            count, neurites, more = _grow_class(field, seeds, balls, parents, owner, shape, limits, state)
            covered += more
            wanted -= more
            kinds += [kind] * (neurites - len(kinds))
    balls, parents, owner = balls[:count], parents[:count], owner[:count]
    balls[:, :3] -= PAD_NM
    ends = np.where(parents < 0, np.arange(count), parents)
    segments = np.concatenate([balls[ends, :3], balls[:, :3], balls[ends, 3:], balls[:, 3:]], axis=1).astype(np.float32)
    kind_of = np.array(kinds, dtype=np.uint8)
    mitochondria, around = place_mitochondria(balls, parents, owner, rng)
    flatness = rng.standard_normal((neurites, 3))
    flatness *= rng.uniform(0.0, 1.0, (neurites, 1)) / np.linalg.norm(flatness, axis=1, keepdims=True)
    flatness[kind_of == GLIA] *= 1.2
    return Neurites(segments, owner, kind_of, flatness.astype(np.float32), mitochondria, around)
