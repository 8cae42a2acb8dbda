"""Which pages of a TIFF file are the sections of its stack, where tifffile finds several series in it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import tifffile

from fgnet.volumes.errors import VolumeError

_PLAIN = ("generic", "shaped", "uniform")  # series that only group pages; those of other kinds are images of their own
_REMEDY = "write all sections with one size and one dtype, or the sections alone into a file of their own"


def section_pages(file: tifffile.TiffFile, where: object) -> list[Any] | None:
    """Finds the pages, one per section, where the first series of a file does not say it.

    A stack falls into several series where it was written in several calls, or where its compression changes.

    Args:
        file: an opened TIFF file.
        where: the address, for messages.

    Returns:
        The pages in their order in the file; None where the stack is the first series as it stands.

    Raises:
        VolumeError: pages beside the first series that are neither sections like its own nor reduced pictures.
    """
    first, *others = file.series
    others = [series for series in others if not _is_reduced(series)]
    if others and all(_is_thumbnail(series, first) for series in others):
        others = []
    if not others:
        varied = first.kind == "uniform" and first.dataoffset is None
        return _looked_at(first, where) if varied and _is_sections(first) else None
    wanted = _plane(first)
    if not all(_is_sections(series) and _plane(series) == wanted for series in (first, *others)):
        raise VolumeError(
            f"the file holds {sum(len(series.pages) for series in (first, *others))} pages, only {len(first.pages)}"
            f" of them form the first series, {_text(first)}; the others are {_listed(others)}",
            where=where,
            remedy=_REMEDY,
        )
    return sorted((page for series in (first, *others) for page in _present(series)), key=lambda page: page.index)


def _looked_at(series: tifffile.TiffPageSeries, where: object) -> list[Any]:
    """Reads the header of every page: tifffile compares a few of them, and decodes the others as the first one is."""
    pages = [page.aspage() for page in _present(series)]
    for index, page in enumerate(pages):
        found = tuple(page.shape), page.dtype
        if found != _plane(series):
            raise VolumeError(
                f"page {index} is {found[1]} of shape {found[0]}, the first one is {series.dtype} of shape"
                f" {tuple(series.shape[-2:])}",
                where=where,
                remedy=_REMEDY,
            )
    return pages


def _present(series: tifffile.TiffPageSeries) -> list[Any]:
    """The pages that there are; a described series may lack some in its file."""
    return [page for page in series.pages if page is not None]


def _is_reduced(series: tifffile.TiffPageSeries) -> bool:
    """Whether the file itself says that all pages are smaller pictures of others."""
    pages: list[Any] = _present(series)
    whole = len(pages) == len(series.pages)
    return whole and all(page.keyframe.is_reduced or len(page.treeindex) > 1 for page in pages)


def _is_thumbnail(series: tifffile.TiffPageSeries, first: tifffile.TiffPageSeries) -> bool:
    """Whether pages that nothing is said of can be no sections: smaller, behind the stack, one in all or of each."""
    if not _is_sections(series) or not _is_sections(first):
        return False
    smaller = all(extent < whole for extent, whole in zip(series.shape[-2:], first.shape[-2:], strict=True))
    behind = min(page.index for page in _present(series)) > max(page.index for page in _present(first))
    return smaller and behind and len(series.pages) in (1, len(first.pages))


def _is_sections(series: tifffile.TiffPageSeries) -> bool:
    """Whether every page is there and is one plane of gray values or labels."""
    pages = list(series.pages)
    return (
        series.kind in _PLAIN
        and len(series.shape) in (2, 3)
        and len(pages) == math.prod(series.shape[:-2])
        and all(page is not None and tuple(page.shape) == tuple(series.shape[-2:]) for page in pages)
    )


def _plane(series: tifffile.TiffPageSeries) -> tuple[tuple[int, ...], Any]:
    return tuple(series.shape[-2:]), series.dtype


def _text(series: tifffile.TiffPageSeries) -> str:
    return f"{series.dtype} of shape {tuple(series.shape)}"


def _listed(series: Sequence[tifffile.TiffPageSeries]) -> str:
    texts = list(dict.fromkeys(_text(one) for one in series))
    return ", ".join(texts[:4]) + (", ..." if len(texts) > 4 else "")
