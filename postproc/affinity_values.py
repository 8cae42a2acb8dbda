"""Are these affinities that a decoder can read?"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fgnet.volumes.errors import DecodingError

# Blended averages and half-precision sigmoids may overshoot by rounding.
_ROUNDING = 1e-3


def require_affinities(affinities: npt.NDArray[Any]) -> None:
    """Check shape, dtype and values before a decoder starts.

    Args:
        affinities: (3, z, y, x), uint8 (255 is 1.0) or a float type with values in [0, 1].

    Raises:
        DecodingError: if the channels, the dtype or the values are not those of affinities.
    """
    if affinities.ndim != 4 or affinities.shape[0] != 3 or affinities.size == 0:
        raise DecodingError(
            f"affinities have shape {affinities.shape}",
            remedy="give three channels (z, y, x) over a volume that is not empty; of long-range sets, the first three",
        )
    if affinities.dtype == np.uint8:
        return
    if affinities.dtype.kind != "f":
        raise DecodingError(f"affinities have dtype {affinities.dtype}", remedy="give uint8 or floats in [0, 1]")
    lowest, highest = float(affinities.min()), float(affinities.max())
    if np.isnan(lowest):
        raise DecodingError("affinities contain NaN", remedy="run the network at a higher precision")
    if lowest < -_ROUNDING or highest > 1 + _ROUNDING:
        raise DecodingError(
            f"affinities range from {lowest:g} to {highest:g}",
            remedy="give probabilities in [0, 1]: apply the sigmoid, or store 8-bit values as uint8",
        )
