"""Making room for an output in a Zarr store: what may be created, what may be replaced, and what is never deleted."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Literal

import zarr

from fgnet.volumes.address import is_zarr
from fgnet.volumes.errors import FGNetError, OutputError
from fgnet.volumes.ngff import multiscale_of
from fgnet.volumes.removal import is_leftover, remove_folder, remove_leftovers
from fgnet.volumes.zarr_source import UNFINISHED

ZarrFormat = Literal[2, 3]

_LISTED = 5  # names in an error message
_METADATA = ("zarr.json", ".zgroup", ".zarray", ".zattrs", ".zmetadata")
_CUT_SHORT = re.compile(r"(zarr|\.z\w+)\.[0-9a-f]{32}\.partial")  # of Zarr's, before it gets its name
_CHUNK = re.compile(r"c|(c\.)?\d+(\.\d+)*")  # names in an array's folder, by either separator and version of Zarr
_NUMBER = re.compile(r"\d+(\.\d+)?(e-?\d+)?")

_REMEDIES = {
    errno.ENOSPC: "no space is left on the device: free some, or write elsewhere",
    errno.EDQUOT: "the disk quota is used up: free some space, or write elsewhere",
    errno.EFBIG: "the file size limit is reached: raise it, or choose smaller chunks",
    errno.EACCES: "no permission: choose a folder that you may write to",
    errno.EPERM: "no permission: choose a folder that you may write to",
    errno.EROFS: "the file system is read-only: write elsewhere",
    errno.ENOTDIR: "a part of the path is a file, not a folder: choose another path",
    errno.EEXIST: "a part of the path is a file, not a folder: choose another path",
    errno.ENAMETOOLONG: "choose a shorter name",
}


@contextlib.contextmanager
def explained(where: object) -> Iterator[None]:
    """Turns whatever fails inside into an OutputError that says what to do, an OSError found by its number.

    Raises:
        OutputError: something failed; the original error is its cause.
    """
    try:
        yield
    except (FGNetError, MemoryError):
        raise
    except Exception as error:
        raise OutputError(f"cannot be written: {error}", where=where, remedy=_remedy(error)) from error


def _remedy(error: BaseException) -> str | None:
    """Remedy of the first known OSError among an error and those it was raised from."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in _REMEDIES:
            return _REMEDIES[seen.errno]
        seen = seen.__cause__ or seen.__context__
    return None


def prepare_group(
    path: Path,
    group: str | None,
    *,
    zarr_format: ZarrFormat,
    overwrite: bool,
    replaces: Sequence[str] = (),
    first: Callable[[], None] = lambda: None,
) -> zarr.Group:
    """Creates the empty group of an output, marked as unfinished; parent folders and groups are created as needed.

    Args:
        path: the Zarr store.
        group: path of the output inside the store, None for the store itself.
        zarr_format: version of the store and of everything in it.
        overwrite: whether an output that is there already is deleted. Only a multiscale group is; never an array or a
            folder of anything else, and never one that holds more, be it a file or a folder, than the levels of one
            image and `replaces`.
        replaces: groups inside the output, each of one image, that an earlier run of the same kind wrote beside the
            levels; "*" as the name of one stands for any number, as in "thresholds/*".
        first: called once nothing is in the way, before anything is deleted or created.

    Raises:
        OutputError: something is there already, or the group cannot be created.
    """
    inner = _inner(group, path)
    target = path / inner
    with explained(target):
        _make_way(target, overwrite=overwrite, replaces=[PurePosixPath(name) for name in replaces], first=first)
        path.parent.mkdir(parents=True, exist_ok=True)
        for ancestor in (path / parent for parent in reversed(inner.parents)) if inner.parts else ():
            _ensure_group(ancestor, zarr_format)
        return zarr.create_group(str(target), zarr_format=zarr_format, attributes={UNFINISHED: True})


def _inner(group: str | None, path: Path) -> PurePosixPath:
    inner = PurePosixPath((group or "").strip("/"))
    if ".." in inner.parts:
        raise OutputError(f"the group {group!r} leaves the store", where=path, remedy="leave out '..'")
    return inner


def require_room(path: Path, group: str | None = None, *, overwrite: bool, replaces: Sequence[str] = ()) -> None:
    """Refuses what `prepare_group` refuses because of what is there already, and changes nothing.

    Args:
        path: the Zarr store.
        group: path of the output inside the store, None for the store itself.
        overwrite: as for `prepare_group`.
        replaces: as for `prepare_group`.

    Raises:
        OutputError: something is in the way.
    """
    target = path / _inner(group, path)
    with explained(target):
        _is_replaced(target, overwrite=overwrite, replaces=[PurePosixPath(name) for name in replaces])


def _make_way(target: Path, *, overwrite: bool, replaces: Sequence[PurePosixPath], first: Callable[[], None]) -> None:
    remove_leftovers(target)
    taken = _is_replaced(target, overwrite=overwrite, replaces=replaces)
    first()
    if taken:
        remove_folder(target)


def _is_replaced(target: Path, *, overwrite: bool, replaces: Sequence[PurePosixPath]) -> bool:
    """As `_is_taken`, but for a link, which cannot be deleted so that its place holds all of the store or nothing."""
    taken = _is_taken(target, overwrite=overwrite, replaces=replaces)
    if taken and target.is_symlink():
        raise OutputError(
            "this is a link to the store, and only the store itself can be overwritten",
            where=target,
            remedy=f"give the store's own path, {target.resolve()}",
        )
    return taken


def _is_taken(target: Path, *, overwrite: bool, replaces: Sequence[PurePosixPath]) -> bool:
    """Whether something lies in an output's place; raises OutputError if it is not to be deleted."""
    try:
        target.lstat()
    except FileNotFoundError:
        return False
    if target.is_dir() and not any(target.iterdir()):
        return False
    if target.is_dir() and all(_CUT_SHORT.fullmatch(node.name) for node in target.iterdir()):
        # Of a group that a kill came upon while it was created.
        return True
    if not is_zarr(target):
        raise OutputError(
            "this exists already and is no Zarr store, so it is never overwritten",
            where=target,
            remedy="choose another output, or remove it yourself",
        )
    if not overwrite:
        raise OutputError(
            "the output exists already",
            where=target,
            remedy="choose another output, or allow overwriting (--overwrite)",
        )
    if _holds_plain_arrays(target):
        raise OutputError(
            "this is an array, or holds arrays of no image, as no output does, so it is never overwritten",
            where=target,
            remedy="choose another output, or remove it yourself",
        )
    others = list(itertools.islice(_others(target, replaces), _LISTED + 1))
    if others:
        listed = ", ".join(others[:_LISTED]) + (", ..." if len(others) > _LISTED else "")
        raise OutputError(
            f"overwriting would delete what else it holds: {listed}",
            where=target,
            remedy="write into a group of its own, or remove the store yourself",
        )
    return True


def _holds_plain_arrays(target: Path) -> bool:
    """Whether a Zarr node is an array, be it the level of an image, or a group that declares none but holds arrays."""
    if _node_type(target) == "array":
        return True
    try:
        attributes = zarr.open_group(str(target), mode="r").attrs.asdict()
    except Exception:  # damaged in any way, as a run may have been that is to be replaced
        return False
    if attributes.get(UNFINISHED) or multiscale_of(attributes) is not None:
        return False
    return any(_node_type(node) == "array" for node in target.iterdir() if node.is_dir())


def _others(folder: Path, replaces: Sequence[PurePosixPath]) -> Iterator[str]:
    """Paths inside an output of all that no image of ours has: neither metadata nor levels, also of `replaces`."""
    for node in sorted(folder.iterdir()):
        inner = [PurePosixPath(*path.parts[1:]) for path in replaces if path.parts and _is_meant(node, path.parts[0])]
        if _is_metadata(node) or is_leftover(node):
            continue
        # A level has lost its metadata where an earlier removal was killed.
        if node.is_dir() and node.name.isdecimal() and _node_type(node) != "group":
            found = _beside_chunks(node)
        elif node.is_dir() and inner and _node_type(node) != "array":
            found = _others(node, inner)
        else:
            yield node.name
            continue
        yield from (f"{node.name}/{name}" for name in found)


def _is_meant(node: Path, name: str) -> bool:
    """Whether a name in `replaces` is that of a folder."""
    return node.name == name or (name == "*" and _NUMBER.fullmatch(node.name) is not None)


def _beside_chunks(array: Path) -> Iterator[str]:
    """Names in the folder of an array that are neither chunks nor metadata."""
    for node in sorted(array.iterdir()):
        if not _is_metadata(node) and not _CHUNK.fullmatch(node.name):
            yield node.name


def _is_metadata(node: Path) -> bool:
    """Whether a file is Zarr's own, or what a process that was killed left of one."""
    return node.is_file() and (node.name in _METADATA or node.suffix == ".partial")


def _node_type(folder: Path) -> Literal["array", "group"] | None:
    """What the metadata in a folder declare; None where there are none."""
    metadata = folder / "zarr.json"
    if metadata.is_file():
        return "group" if json.loads(metadata.read_text()).get("node_type") == "group" else "array"
    if (folder / ".zgroup").is_file():
        return "group"
    return "array" if (folder / ".zarray").is_file() else None


def _ensure_group(folder: Path, zarr_format: ZarrFormat) -> None:
    if not is_zarr(folder):
        if folder.exists() and any(folder.iterdir()):
            raise OutputError(
                "this folder holds files but is no Zarr store", where=folder, remedy="choose another output"
            )
        zarr.create_group(str(folder), zarr_format=zarr_format)
        return
    node = zarr.open(str(folder), mode="r")
    if not isinstance(node, zarr.Group):
        raise OutputError("an array cannot hold a group", where=folder, remedy="choose another output")
    if node.metadata.zarr_format != zarr_format:
        raise OutputError(
            f"the store is Zarr v{node.metadata.zarr_format}, the output v{zarr_format}",
            where=folder,
            remedy="write the same version, or into a store of its own",
        )
