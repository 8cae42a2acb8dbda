"""Making room for an output in a Zarr store: what may be created, what may be replaced, and what is never deleted."""

from __future__ import annotations

import contextlib
import errno
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Literal

import zarr

from fgnet.volumes.address import is_zarr
from fgnet.volumes.errors import FGNetError, OutputError
from fgnet.volumes.removal import remove_folder, remove_leftovers
from fgnet.volumes.zarr_source import UNFINISHED

ZarrFormat = Literal[2, 3]

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
        overwrite: whether an output that is there already is deleted. Only a Zarr array or multiscale group is; never
            a folder of anything else, and never a group that holds more than the levels of one image and `replaces`.
        replaces: groups inside the output that an earlier run of the same kind wrote beside the levels.
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


def _make_way(target: Path, *, overwrite: bool, replaces: Sequence[PurePosixPath], first: Callable[[], None]) -> None:
    remove_leftovers(target)
    if not target.exists() and not target.is_symlink():
        first()
        return
    if target.is_dir() and not any(target.iterdir()):
        first()
        return
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
    others = list(_others(target, replaces))
    if others:
        raise OutputError(
            f"overwriting would delete what else it holds: {', '.join(others)}",
            where=target,
            remedy="write into a group of its own, or remove the store yourself",
        )
    first()
    remove_folder(target)


def _others(folder: Path, replaces: Sequence[PurePosixPath]) -> Iterator[str]:
    """Paths inside a group of the Zarr nodes that are neither levels of its image nor in `replaces`."""
    for node in sorted(folder.iterdir()):
        if not is_zarr(node) or _is_level(node):
            continue
        inner = [PurePosixPath(*path.parts[1:]) for path in replaces if path.parts[0] == node.name]
        if not inner:
            yield node.name
        elif PurePosixPath() not in inner:
            yield from (f"{node.name}/{name}" for name in _others(node, inner))


def _is_level(folder: Path) -> bool:
    """Whether a Zarr node is an array named by a number, as the levels of a multiscale image are."""
    metadata = folder / "zarr.json"
    group = (folder / ".zgroup").is_file() or (
        metadata.is_file() and json.loads(metadata.read_text()).get("node_type") == "group"
    )
    return folder.name.isdecimal() and not group


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
