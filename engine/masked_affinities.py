"""Affinities on the disk together with the mask of their run, as the blockwise decoder reads them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from fgnet.engine.run_mask import RunMask
from fgnet.postproc.blockwise_plan import AffinitySource
from fgnet.volumes.geometry import Box, Triple, as_triple
from fgnet.volumes.reading import Volume, open_volume


@dataclass(frozen=True)
class StoredMask:
    """A run's mask by its address, for any process that sees its files.

    Attributes:
        address: of the mask volume.
        shape: (z, y, x) of the gray volume.
        start: the first voxel of the run's region there.
    """

    address: str
    shape: Triple
    start: Triple

    @classmethod
    def of(cls, mask: Volume, shape: Triple, region: Box) -> Self:
        """That of a mask, for a region of a volume of this shape."""
        # Not what a link leads to: its name may not say what kind of file it is.
        address = replace(mask.address, path=mask.address.path.absolute())
        return cls(str(address), shape, region.start)

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Self:
        """The mask that `to_dict` gave."""
        shape, start = as_triple(content["shape"], "shape"), as_triple(content["start"], "start")
        return cls(content["address"], shape, start)

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)

    @cached_property
    def _mask(self) -> RunMask:
        return RunMask(open_volume(self.address), self.shape)

    def tissue(self, box: Box) -> npt.NDArray[np.bool_]:
        """(z, y, x), True in tissue, of a box of the region.

        Raises:
            VolumeError: the mask cannot be read, or is another one by now.
        """
        return self._mask.inside(box.shift(self.start))


@dataclass(frozen=True)
class MaskedAffinities:
    """A source of affinities that knows where tissue is.

    Attributes:
        source: of the affinities.
        mask: of their run.
    """

    source: AffinitySource
    mask: StoredMask

    @property
    def shape(self) -> Triple:
        """(z, y, x) of the region."""
        return self.source.shape

    def affinities(self, box: Box) -> npt.NDArray[np.uint8]:
        """(3, z, y, x) uint8 affinities of a box; errors as those of the source."""
        return self.source.affinities(box)

    def tissue(self, box: Box) -> npt.NDArray[np.bool_]:
        """(z, y, x), True in tissue, of a box; errors as for `StoredMask.tissue`."""
        return self.mask.tissue(box)
