"""Does what lies where a run writes, and where it deletes what it has written, belong to somebody else?"""

from __future__ import annotations

from pathlib import Path

from fgnet.engine.run_journal import journal_path
from fgnet.engine.run_outputs import network_store, refuse_other_pieces
from fgnet.engine.run_record import record_path
from fgnet.volumes.errors import OutputError
from fgnet.volumes.output_store import explained
from fgnet.volumes.zarr_source import is_image, is_unfinished


def refuse_foreign(output: Path, *, overwrite: bool, rescales: bool = False) -> None:
    """Refuse to replace an image that no run has made, and what else lies where a run puts its things for a while.

    Args:
        output: the Zarr store or group to create, to replace or to go on with.
        overwrite: whether an output that is complete would be replaced.
        rescales: whether affinities at the network's voxel size are to lie beside it.

    Raises:
        OutputError: something is there that no run has left.
    """
    # Whatever a run declares complete has a record, which goes once another output has taken its place. A link is
    # refused where room is made.
    complete = is_image(output) and not is_unfinished(output) and not output.is_symlink()
    if overwrite and complete and not record_path(output).is_file():
        raise OutputError(
            f"this is an image without the record of a run beside it, {record_path(output).name}, so that no run has"
            " made it, and it is not overwritten",
            where=output,
            remedy="choose another output, or remove it yourself",
        )
    refuse_other_pieces(output)
    if rescales:
        _refuse_other_network(output)


def _refuse_other_network(output: Path) -> None:
    store = network_store(output)
    with explained(store):
        if not store.is_symlink() and (not store.exists() or journal_path(store).is_file() or is_unfinished(store)):
            return
        if store.is_dir() and not store.is_symlink() and not any(store.iterdir()):
            return
    raise OutputError(
        "this is where affinities at the network's voxel size are to lie for a while, and no run has left it there",
        where=store,
        remedy="choose another output, or move it away",
    )
