"""How far can a result be relied on: how much may another run move a figure, and which rows does it tell apart?

What repeats spread is not all: runs at other times, with other processes, differ by more. Floors say by how much.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

from fgnet.benchmarks.result_file import Result, Samples, label_of, reference_of, speeds

FLOOR = 0.1
"""Changes of a speed up to this share are noise: runs an hour apart on an idle machine differ by it."""

RATIO_FLOOR = 0.3
"""The same of a ratio, in which two speeds move. Between six runs of `make bench` on a shared machine of two cores, one
process a row, half of the ratios moved by up to 7 %, one in ten by more than 18 %, and one in forty by more than this.
Between three pairs of runs with two processes a row one did, by 33 %: a row whose windows spread further than that."""

_NO_SPREAD = 0.25
"""The floor of a row that was measured once: nothing tells how far it moves."""


def noise_of(one: Samples, other: Samples, floor: float = FLOOR) -> float:
    """The share by which two medians may differ without telling anything: both spreads together, or the floor."""
    spreads = (one.spread, other.spread)
    if None in spreads:
        floor = max(floor, _NO_SPREAD)
    return max(floor, math.hypot(*(spread or 0.0 for spread in spreads)))


def ratio_noise(result: Result, row: dict[str, Any]) -> float | None:
    """The share by which another run may move the ratio of a row; None without a reference, and for that itself."""
    reference = reference_of(result, row)
    if reference is None or reference is row:
        return None
    return noise_of(speeds(result.kind, row), speeds(result.kind, reference), RATIO_FLOOR)


def ranks(result: Result) -> list[tuple[int, int] | None]:
    """The best and the worst place of each row among those it competes with, 1 for the fastest.

    Rows that noise does not tell apart may have each other's place. Where nothing competes, None: volumes of other
    sizes do not, nor do numbers of processes.
    """
    found: list[tuple[int, int] | None] = []
    for row in result.rows:
        others = [other for other in result.rows if other is not row and _compete(result, row, other)]
        if not others:
            found.append(None)
            continue
        faster = sum(_is_faster(result, other, row) for other in others)
        slower = sum(_is_faster(result, row, other) for other in others)
        found.append((1 + faster, 1 + len(others) - slower))
    return found


def rank_text(rank: tuple[int, int] | None) -> str:
    """A rank in words, such as "2" or "2-4"."""
    if rank is None:
        return ""
    return str(rank[0]) if rank[0] == rank[1] else f"{rank[0]}-{rank[1]}"


def ratio_notes(result: Result) -> list[str]:
    """What to say below the rows of a result about how far its ratios can be relied on."""
    moved = [noise for noise in (ratio_noise(result, row) for row in result.rows) if noise is not None]
    if not moved:
        return []
    least, most = (f"{share:.0%}" for share in (min(moved), max(moved)))
    shares = least if least == most else f"{least} to {most}"
    return [f"Another run may move the ratios by {shares}: what both rows spread, and {RATIO_FLOOR:.0%} at least."]


def rank_notes(result: Result) -> list[str]:
    """Which rows are not told apart, for a table that shows no ranks."""
    close = [
        f"{label_of(result.kind, one)} and {label_of(result.kind, other)}"
        for one, other in itertools.combinations(result.rows, 2)
        if _compete(result, one, other) and not (_is_faster(result, one, other) or _is_faster(result, other, one))
    ]
    return [f"Too close to say which is faster: {'; '.join(close)}."] if close else []


def turned_round(old: Result, new: Result) -> list[tuple[str, str]]:
    """Which pairs of rows the two results rank the other way round: the first one faster in `old`, slower in `new`.

    Both have to tell the pair apart: rows that share their places in one of them may stand either way.
    """
    before = {label_of(old.kind, row): row for row in old.rows}
    after = {label_of(new.kind, row): row for row in new.rows}
    shared = [label for label in before if label in after]
    return [
        (one, other)
        for one, other in itertools.permutations(shared, 2)
        if _compete(old, before[one], before[other])
        and _is_faster(old, before[one], before[other])
        and _is_faster(new, after[other], after[one])
    ]


def _compete(result: Result, one: dict[str, Any], other: dict[str, Any]) -> bool:
    return result.kind != "scale" and one.get("shape") == other.get("shape")


def _is_faster(result: Result, one: dict[str, Any], other: dict[str, Any]) -> bool:
    samples = speeds(result.kind, one), speeds(result.kind, other)
    return samples[0].middle > samples[1].middle * (1 + noise_of(*samples))
