"""Opening TIFF stacks and folders of section images, reading no more sections than a box needs."""

from __future__ import annotations

import contextlib
import logging
import re
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile
from PIL import JpegImagePlugin, PngImagePlugin

from fgnet.volumes.address import TIFF_SUFFIXES, Address, section_files
from fgnet.volumes.errors import AddressError, VolumeError
from fgnet.volumes.section_cache import SectionCache
from fgnet.volumes.source import Slices, Source
from fgnet.volumes.space import UNKNOWN, Space, nanometers
from fgnet.volumes.tiff_pages import section_pages

Array = npt.NDArray[Any]

_PIL_DTYPES = {"L": "uint8", "I;16": "uint16", "I;16B": "uint16", "I": "int32", "F": "float32"}
_NM_PER_RESOLUTION_UNIT = {2: 2.54e7, 3: 1e7}  # the TIFF tag ResolutionUnit: inch, centimetre


def open_tiff(address: Address) -> Source:
    """Opens a TIFF stack: uncompressed ones are mapped into memory, others decoded section by section.

    Raises:
        AddressError: no TIFF file.
        VolumeError: colour samples or channels, white stored as 0, pages that are no sections of one stack, or a file
            that was cut short.
    """
    try:
        file = tifffile.TiffFile(address.path)
    except (OSError, ValueError, tifffile.TiffFileError) as error:
        raise AddressError(f"the TIFF file cannot be opened: {error}", where=address.path) from error
    try:
        with _complete_pages():
            return _open_series(file, address)
    except BaseException as error:
        file.close()
        if isinstance(error, (OSError, ValueError, LookupError, tifffile.TiffFileError)):
            raise VolumeError(f"the TIFF file is damaged or was cut short: {error}", where=address) from error
        if isinstance(error, RuntimeError):
            raise VolumeError(
                f"the pages of the TIFF file do not fit together: {error}",
                where=address,
                remedy="all sections of a stack need one size and one dtype",
            ) from error
        raise


def _refuse_white_is_zero(page: Any, where: object) -> None:
    # Bilevel masks are written so by tifffile itself, with their values as they are.
    if page.keyframe.photometric == tifffile.PHOTOMETRIC.MINISWHITE and np.dtype(page.dtype).kind != "b":
        raise VolumeError(
            "the TIFF declares that 0 is white, so that its values are inverted (photometric MINISWHITE)",
            where=where,
            remedy="save gray values with 0 as black; labels and masks with the photometric MINISBLACK",
        )


@contextlib.contextmanager
def _complete_pages() -> Iterator[None]:
    """Raises where tifffile meets a page past the end of the file; it only logs that and stops there."""
    messages: list[str] = []
    thread = threading.get_ident()

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.thread == thread and "invalid page offset" in record.getMessage():
                messages.append(record.getMessage())

    collector, logger = Collector(logging.ERROR), tifffile.logger()
    logger.addHandler(collector)
    try:
        yield
    finally:
        logger.removeHandler(collector)
    if messages:
        raise ValueError(messages[0])


def _open_series(file: tifffile.TiffFile, address: Address) -> Source:
    series = file.series[0]
    if "S" in series.axes:
        raise VolumeError(
            f"the TIFF holds colour samples (axes {series.axes}, shape {series.shape})",
            where=address,
            remedy="convert it to gray scale",
        )
    if any(axis == "C" and extent > 1 for axis, extent in zip(series.axes[-3:], series.shape[-3:], strict=True)):
        raise VolumeError(
            f"the TIFF holds channels in place of sections (axes {series.axes}, shape {series.shape})",
            where=address,
            remedy="save one channel; where these are sections, declare them so (axes ZYX; in ImageJ as slices)",
        )
    found = section_pages(file, address)
    dtype = np.dtype(series.dtype)
    for page in (series.keyframe,) if found is None else found:
        _refuse_white_is_zero(page, address)
    shape = tuple(series.shape) if found is None else (len(found), *series.shape[-2:])
    space = _tiff_space(file)
    if found is None and series.dataoffset is not None:
        dtype = dtype.newbyteorder(file.byteorder)
        mapped = np.memmap(address.path, dtype=dtype, mode="r", offset=series.dataoffset, shape=shape)
        file.close()
        return Source(shape, dtype, lambda slices: np.asarray(mapped[slices]), None, space)
    pages = list(series.pages) if found is None else found
    if len(shape) != 3 or len(pages) != shape[0]:
        whole = SectionCache(lambda _: series.asarray())
        return Source(shape, dtype, lambda slices: whole[0][slices], None, space, close=file.close)

    def load(index: int) -> Array:
        page = pages[index]
        if page is None:
            return np.zeros(shape[1:], dtype)
        return np.asarray(page.asarray()).reshape(shape[1:])

    return Source(shape, dtype, _stack_reader(SectionCache(load)), (1, *shape[1:]), space, close=file.close)


def open_sections(address: Address) -> Source:
    """Opens a folder of images, one per section, in natural order of their names.

    Only headers are read here, of every section, so that a section which does not fit is found before a run.

    Raises:
        AddressError: a file that is no image.
        VolumeError: a section in colour, with white stored as 0, or of another size or dtype than the first.
    """
    files = section_files(address.path)
    shape, dtype = _header(files[0])
    for file in files[1:]:
        found = _header(file)
        if found != (shape, dtype):
            raise VolumeError(
                f"the section is {found[1]} of shape {found[0]}, the first one is {dtype} of shape {shape}",
                where=file,
                remedy="all sections of a volume need one size and one dtype",
            )
    cache = SectionCache(lambda index: _decode(files[index], shape))
    return Source((len(files), *shape), dtype, _stack_reader(cache), (1, *shape))


def _stack_reader(sections: SectionCache) -> Any:
    def read(slices: Slices) -> Array:
        wanted = range(slices[0].start, slices[0].stop)
        return np.stack([sections[index][slices[1:]] for index in wanted])

    return read


def _header(file: Path) -> tuple[tuple[int, ...], np.dtype[Any]]:
    try:
        if file.suffix.lower() in TIFF_SUFFIXES:
            with tifffile.TiffFile(file) as tiff:
                page = tiff.pages.first
                _refuse_white_is_zero(page, file)
                shape, dtype = tuple(page.shape), page.dtype
                # Pages of another size are pictures of the first, as some microscopes add them.
                if len(tiff.pages) > 1 and tuple(tiff.pages[1].shape) == shape:
                    raise VolumeError(
                        f"the section is a stack of {len(tiff.pages)} pages",
                        where=file,
                        remedy=f"name the stack itself, {file}; a folder holds one section a file",
                    )
        else:
            with _picture(file) as image:
                mode = image.mode
                shape, dtype = (image.height, image.width), np.dtype(_PIL_DTYPES.get(mode, "void"))
    except (OSError, ValueError, SyntaxError, tifffile.TiffFileError) as error:
        raise AddressError(f"the section cannot be opened: {error}", where=file) from error
    if len(shape) != 2 or dtype is None or dtype.kind not in "uif":
        raise VolumeError("the section is not a gray image of one channel", where=file, remedy="convert it")
    return shape, dtype


def _picture(file: Path) -> PngImagePlugin.PngImageFile | JpegImagePlugin.JpegImageFile:
    """Opened without `Image.open`, which refuses sections of more than 179 million pixels."""
    if file.suffix.lower() == ".png":
        return PngImagePlugin.PngImageFile(file)
    return JpegImagePlugin.JpegImageFile(file)


def _decode(file: Path, shape: tuple[int, ...]) -> Array:
    try:
        if file.suffix.lower() in TIFF_SUFFIXES:
            section = np.asarray(tifffile.imread(file, key=0))
        else:
            with _picture(file) as image:
                section = np.asarray(image)
    except Exception as error:  # decoders raise whatever they like on damaged data
        raise VolumeError(f"the section cannot be decoded: {error}", where=file) from error
    if section.shape != shape:
        raise VolumeError(f"the section decodes to shape {section.shape}, its header said {shape}", where=file)
    return section


def _tiff_space(file: tifffile.TiffFile) -> Space:
    """Voxel size from OME or ImageJ metadata; unknown where either leaves an axis open."""
    size: Sequence[float | None] = [None, None, None]
    if file.is_ome and file.ome_metadata:
        size = [_ome_length(file.ome_metadata, axis) for axis in "ZYX"]
    elif file.is_imagej and file.imagej_metadata:
        size = _imagej_lengths(file, file.imagej_metadata)
    found = [value for value in size if value is not None and value > 0]
    return Space((found[0], found[1], found[2])) if len(found) == 3 else UNKNOWN


def _ome_length(xml: str, axis: str) -> float | None:
    size = re.search(rf'PhysicalSize{axis}="([^"]+)"', xml)
    unit = re.search(rf'PhysicalSize{axis}Unit="([^"]+)"', xml)
    in_nm = nanometers(unit[1] if unit else "um")
    return float(size[1]) * in_nm if size and in_nm is not None else None


def _imagej_lengths(file: tifffile.TiffFile, metadata: dict[str, Any]) -> list[float | None]:
    unit = str(metadata.get("unit", "")).encode().decode("unicode_escape", errors="ignore")
    in_nm = nanometers(unit)
    tags = file.pages.first.tags
    if in_nm is None and "ResolutionUnit" in tags and "spacing" not in metadata:
        in_nm = _NM_PER_RESOLUTION_UNIT.get(int(tags["ResolutionUnit"].value))
    if in_nm is None or "spacing" not in metadata:
        return [None, None, None]
    lengths: list[float | None] = [float(metadata["spacing"]) * in_nm]
    for name in ("YResolution", "XResolution"):
        length = None
        with contextlib.suppress(KeyError, ZeroDivisionError):
            pixels, units = tags[name].value
            length = in_nm * units / pixels
        lengths.append(length)
    return lengths
