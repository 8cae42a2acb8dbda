"""The ground truth of fgnet-eval, and where it is labelled."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fgnet.postproc.comparison import Known
    from fgnet.volumes.reading import Volume


def open_truth(closing: ExitStack, address: str, mask: str | None) -> tuple[Volume, Known | None]:
    """Opens true labels, and what says which of their voxels somebody labelled, if that is said.

    Args:
        closing: closes what is opened.
        address: of the labels.
        mask: of a volume of their extent, or a coarser one, 0 where nobody labelled.

    Raises:
        FGNetError: what the volumes are refused for.
    """
    from fgnet.engine.run_mask import RunMask
    from fgnet.volumes.reading import check_labels, open_volume

    truth = closing.enter_context(open_volume(address, holds="labels"))
    check_labels(truth)
    if mask is None:
        return truth, None
    return truth, RunMask(closing.enter_context(open_volume(mask)), truth.box.shape).inside
