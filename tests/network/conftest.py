"""For the tests of training: a small network, a small labelled volume, and runs of a few steps."""

from __future__ import annotations

import numpy as np
import pytest

from fgnet.network.data import LabelledVolume
from fgnet.volumes.space import Space


@pytest.fixture(scope="session")
def squares() -> LabelledVolume:
    """Bright square neurites with dark membranes, 6 x 48 x 48; not to be changed."""
    return square_neurites()


def square_neurites() -> LabelledVolume:
    """The same for a process of a test."""
    cells = np.arange(1, 37, dtype=np.uint32).reshape(6, 6).repeat(8, 0).repeat(8, 1)
    labels = np.repeat(cells[None], 6, axis=0)
    edge = (np.arange(48) % 8 == 0) | (np.arange(48) % 8 == 7)
    raw = np.where(edge[:, None] | edge[None, :], 60, 190).astype(np.uint8)
    return LabelledVolume("squares", np.repeat(raw[None], 6, axis=0), labels, Space((30.0, 6.0, 6.0)))
