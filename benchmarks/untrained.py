"""A network that learned nothing, to measure the speed of: `python -m fgnet.benchmarks.untrained tiny tiny.bundle`."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from fgnet.engine.bundle import PRECISIONS
from fgnet.volumes.errors import FGNetError

_VOXEL_NM = (10.0, 10.0, 10.0)
# Patches that int8 is calibrated on, each beside the other; an export asks for four.
_CALIBRATED = (1, 2, 2)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write a bundle of seeded random weights.

    It is compared with eager PyTorch on one patch only, and written whatever comes out: segmentations of noise say
    nothing of a backend.
    """
    import torch

    from fgnet.engine.gray_reader import ArraySource
    from fgnet.export.bundle_writer import ExportOptions, export_bundle
    from fgnet.network.checkpoint import Checkpoint, save_checkpoint
    from fgnet.network.config import EncoderName, preset
    from fgnet.network.model import FGNet
    from fgnet.volumes.neuropil import NeuropilOptions, make_neuropil

    parser = argparse.ArgumentParser(prog="untrained", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("encoder", choices=get_args(EncoderName))
    parser.add_argument("bundle", type=Path, help="folder to write; one of an earlier call is replaced")
    parser.add_argument("--input-scale", type=int, default=1, help="enlargement of sections (%(default)s)")
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=["fp32"], help="of the graphs")
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    try:
        network = FGNet(preset(options.encoder, input_scale=options.input_scale))
        z, y, x = (side * count for side, count in zip(network.config.patch, _CALIBRATED, strict=True))
        gray = make_neuropil(NeuropilOptions((z, y, x), _VOXEL_NM)).raw
        tissue = ArraySource(gray)
        export = ExportOptions(precisions=tuple(options.precision), calibration=tissue, force=True, overwrite=True)
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = Path(folder) / f"{options.bundle.stem}.pt"
            provenance = {"data": "none; random weights, for measuring speed only"}
            save_checkpoint(checkpoint, Checkpoint(network.config, network.state_dict(), provenance))
            depth, height, width = network.config.patch
            patch = gray[:depth, :height, :width]
            export_bundle(checkpoint, options.bundle, export, patch, say=_say)
    except FGNetError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


if __name__ == "__main__":
    sys.exit(main())
