"""Would an output replace what it is made of?"""

from __future__ import annotations

from pathlib import Path

from fgnet.engine.run_outputs import decoding_folder, network_store
from fgnet.volumes.errors import OutputError
from fgnet.volumes.reading import Volume
from fgnet.volumes.zarr_source import image_arrays


def refuse_own_input(output: Path, *sources: Volume | None) -> None:
    """Refuse to write over what is read, or into its arrays.

    An image is all of its levels: one of them would be lost with another one in its place. Another group of the same
    store, such as `labels/seg`, is no harm.

    Args:
        output: the Zarr store or group to create.
        sources: volumes that are read; None is passed over.

    Raises:
        OutputError: the output is an input, holds one, or lies in its array or in another level of its image; so does
            what is kept beside it for a while; or it has no name.
    """
    if not output.name or output.name == "..":
        raise OutputError("this is no name for an output", where=output, remedy="give one such as out.zarr")
    # These are deleted at the end, and where an earlier one is of another run.
    written = [path.resolve() for path in (output, network_store(output), decoding_folder(output))]
    for source in sources:
        if source is None:
            continue
        store = source.address.path
        opened = store / (source.address.dataset or "") if source.address.kind == "zarr" else store
        arrays = image_arrays(opened) if source.address.kind == "zarr" else []
        # A group of several levels is not one of its arrays: other groups may lie in it.
        closed = arrays or [opened.resolve()]
        held = [store.resolve(), opened.resolve(), *arrays]
        for path in written:
            if any(path in (place, *place.parents) for place in held):
                raise OutputError("the output is the input, or holds it", where=output, remedy="choose another output")
            if source.address.kind == "zarr" and any(place in path.parents for place in closed):
                raise OutputError("the output lies in the input", where=output, remedy="choose another output")


def refuse_own_graph(output: Path, graph: Path) -> None:
    """Refuse to write labels over the merge tree that they are made of, or into it.

    Raises:
        OutputError: the output, or what is kept beside it for a while, is the tree, lies in it or holds it.
    """
    tree = graph.resolve()
    for path in (output.resolve(), decoding_folder(output).resolve()):
        if tree == path or tree in path.parents or path in tree.parents:
            raise OutputError(
                "the output cannot be the merge tree, lie in it or hold it",
                where=output,
                remedy="choose another output",
            )
