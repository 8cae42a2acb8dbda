"""Are the sections of a folder numbered without a gap?"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Sequence

from fgnet.volumes.address import Address, section_files

_MOST_NAMED = 3


def section_gap_note(address: Address) -> str | None:
    """What is to be said of a folder whose section numbers have gaps, since its sections are read as adjacent.

    Numbers that grow by a step, such as 0, 5, 10, have none. Nothing is said where names differ in more than one
    number, or where most steps differ, as of times of the day.

    Args:
        address: of any kind; nothing is said but of a folder of section images.

    Returns:
        A sentence that names the first gaps; None where there are none.

    Raises:
        AddressError: as for `section_files`.
    """
    if address.kind != "sections":
        return None
    files = section_files(address.path)
    numbers = _numbers([file.stem for file in files])
    if len(numbers) < 3:
        return None
    steps = [after - before for before, after in itertools.pairwise(numbers)]
    step, times = Counter(steps).most_common(1)[0]
    gaps = [place for place, found in enumerate(steps) if found > step]
    if 2 * times < len(steps) or not gaps:
        return None
    named = [f"between {files[place].name} and {files[place + 1].name}" for place in gaps[:_MOST_NAMED]]
    more = f" and {len(gaps) - _MOST_NAMED} more" if len(gaps) > _MOST_NAMED else ""
    return f"section numbers have a gap {', '.join(named)}{more}: these are taken to be adjacent sections"


def _numbers(stems: Sequence[str]) -> list[int]:
    """The number in which names differ, of each; empty where they differ in anything else."""
    parts = [re.split(r"([0-9]+)", stem) for stem in stems]
    if len({tuple(part[::2]) for part in parts}) != 1:
        return []
    columns = [[int(part[place]) for part in parts] for place in range(1, len(parts[0]), 2)]
    varying = [column for column in columns if len(set(column)) > 1]
    return varying[0] if len(varying) == 1 else []
