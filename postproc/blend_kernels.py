"""The inner loops of blending: serial, compiled, without the interpreter's lock.

`region` stands for nine integers: begin and end of the part of the patch along z, y and x, then the shift from the
patch to the sums along z, y and x. Rows are sliced before the innermost loops, so that these vectorise.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@numba.njit(cache=True, nogil=True)
def accumulate(
    sums: Array,
    patch: Array,
    scale: np.float32,
    floor: np.float32,
    wz: Array,
    wy: Array,
    wx: Array,
    z0: int,
    z1: int,
    y0: int,
    y1: int,
    x0: int,
    x1: int,
    dz: int,
    dy: int,
    dx: int,
) -> None:
    """Add weight * scale * patch: sums (channel, z, y, x) float32; patch uint8 or float32."""
    factors = wx[x0:x1]
    weights = np.empty(x1 - x0, np.float32)
    for z in range(z0, z1):
        for y in range(y0, y1):
            factor = wz[z] * wy[y]
            for x in range(weights.size):
                weights[x] = (floor + factor * factors[x]) * scale
            for channel in range(sums.shape[0]):
                row = sums[channel, z + dz, y + dy, x0 + dx : x1 + dx]
                values = patch[channel, z, y, x0:x1]
                for x in range(weights.size):
                    row[x] += weights[x] * np.float32(values[x])


@numba.njit(cache=True, nogil=True)
def accumulate_half(
    sums: Array,
    patch: Array,
    scale: np.float32,
    floor: np.float32,
    wz: Array,
    wy: Array,
    wx: Array,
    z0: int,
    z1: int,
    y0: int,
    y1: int,
    x0: int,
    x1: int,
    dz: int,
    dy: int,
    dx: int,
) -> None:
    """Add weight * scale * patch: sums (channel, z, y, x) float32; patch float16 as its bits in uint16.

    The exponent and mantissa of a float16, moved up by 13 bits, are those of a float32 that is 2^112 times smaller.
    Infinity and NaN become values of 65536 and more, which `normalise` reports.
    """
    factors = wx[x0:x1]
    weights = np.empty(x1 - x0, np.float32)
    bits = np.empty(x1 - x0, np.uint32)
    values = bits.view(np.float32)
    for z in range(z0, z1):
        for y in range(y0, y1):
            factor = wz[z] * wy[y]
            for x in range(weights.size):
                weights[x] = (floor + factor * factors[x]) * scale
            for channel in range(sums.shape[0]):
                row = sums[channel, z + dz, y + dy, x0 + dx : x1 + dx]
                halves = patch[channel, z, y, x0:x1]
                for x in range(weights.size):
                    half = np.uint32(halves[x])
                    bits[x] = ((half & np.uint32(0x8000)) << np.uint32(16)) | (
                        (half & np.uint32(0x7FFF)) << np.uint32(13)
                    )
                for x in range(weights.size):
                    row[x] += weights[x] * (values[x] * np.float32(2.0**112))


@numba.njit(cache=True, nogil=True)
def normalise(
    sums: Array,
    affinities: Array,
    floor: np.float32,
    nz: Array,
    ny: Array,
    nx: Array,
    wz: Array,
    wy: Array,
    wx: Array,
) -> int:
    """Write round(sums / weights) as uint8, halves up, and set the sums to 0 for the next use of their memory.

    Weights are floor * nz * ny * nx + wz * wy * wx, each factor as long as its axis of the sums, and above 0.

    Returns how many values were NaN or further than 2.55 (one hundredth of the range) outside of 0 .. 255.
    """
    strange = 0
    width = sums.shape[3]
    divisors = np.empty(width, np.float32)
    values = np.empty(width, np.float32)
    for z in range(sums.shape[1]):
        for y in range(sums.shape[2]):
            count = floor * nz[z] * ny[y]
            factor = wz[z] * wy[y]
            for x in range(width):
                divisors[x] = count * nx[x] + factor * wx[x]
            for channel in range(sums.shape[0]):
                row = sums[channel, z, y]
                for x in range(width):
                    values[x] = row[x] / divisors[x]
                    row[x] = 0
                out = affinities[channel, z, y]
                for x in range(width):
                    # Comparisons in this direction turn NaN into 0.
                    value = values[x] if values[x] > 0 else np.float32(0)
                    value = value if value < 255 else np.float32(255)
                    out[x] = np.uint8(np.int32(value + np.float32(0.5)))
                usual = np.int32(0)
                for x in range(width):
                    usual += np.int32((values[x] > np.float32(-2.55)) & (values[x] < np.float32(257.55)))
                strange += width - usual
    return strange
