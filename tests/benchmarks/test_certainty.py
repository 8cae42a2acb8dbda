"""How far results can be relied on: what a re-run may move, and which rows are told apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fgnet.benchmarks.certainty import (
    RATIO_FLOOR,
    noise_of,
    rank_notes,
    rank_text,
    ranks,
    ratio_noise,
    ratio_notes,
    turned_round,
)
from fgnet.benchmarks.report_tables import table_of
from fgnet.benchmarks.result_file import Result, Samples, as_result, read_result

RECORDED = Path(__file__).parents[2] / "benchmarks" / "results"


def engines(**windows: tuple[float, ...]) -> Result:
    """An engine benchmark of rows by name; the first one is the reference."""
    first = next(iter(windows.values()))
    rows = [
        {
            "name": name,
            "all_voxels_per_second": rates,
            "voxels_per_second": Samples(rates).middle,
            "ratio": Samples(rates).middle / Samples(first).middle,
        }
        for name, rates in windows.items()
    ]
    data: dict[str, Any] = {"benchmark": "engine", "machine": {}, "results": rows}
    return as_result(data, "test")


def test_noise_is_both_spreads_and_a_floor() -> None:
    steady, wide, once = Samples((99.0, 100.0, 101.0)), Samples((70.0, 100.0, 130.0)), Samples((100.0,))
    assert noise_of(steady, steady) == 0.1
    assert noise_of(steady, wide) == pytest.approx((0.01**2 + 0.3**2) ** 0.5)
    assert noise_of(steady, once) == 0.25


def test_rows_within_noise_may_have_each_others_place() -> None:
    result = engines(eager=(9, 10, 11), fast=(99, 100, 101), near=(93, 94, 95), middle=(50, 51, 52))
    assert ranks(result) == [(4, 4), (1, 2), (1, 2), (3, 3)]
    assert [rank_text(rank) for rank in ranks(result)] == ["4", "1-2", "1-2", "3"]
    assert rank_notes(result)[-1] == "Too close to say which is faster: fast and near."


def test_a_ranking_is_turned_round_where_both_results_tell_the_rows_apart() -> None:
    before = engines(eager=(9, 10, 11), fast=(99, 100, 101), near=(93, 94, 95), gone=(1, 2, 3))
    after = engines(eager=(9, 10, 11), fast=(93, 94, 95), near=(99, 100, 101), new=(1, 2, 3))
    assert turned_round(before, after) == []
    slower = engines(eager=(9, 10, 11), fast=(49, 50, 51), near=(94, 95, 96))
    assert turned_round(before, slower) == []
    assert turned_round(slower, engines(eager=(9, 10, 11), fast=(99, 100, 101), near=(49, 50, 51))) == [
        ("near", "fast")
    ]


def test_a_ratio_moves_by_what_both_rows_spread_and_a_floor() -> None:
    result = engines(eager=(9, 10, 11), steady=(99, 100, 101), wide=(60, 100, 140))
    assert [ratio_noise(result, row) for row in result.rows] == [
        None,
        RATIO_FLOOR,
        pytest.approx((0.1**2 + 0.4**2) ** 0.5),
    ]
    assert ratio_notes(result)[0].startswith("Another run may move the ratios by 30% to 41%")


def test_volumes_of_other_sizes_do_not_compete() -> None:
    result = read_result(RECORDED / "decode-fib25-best-ways-epyc-2cores.json")
    by_volume: dict[tuple[int, ...], list[tuple[int, int] | None]] = {}
    for row, rank in zip(result.rows, ranks(result), strict=True):
        by_volume.setdefault(tuple(row["shape"]), []).append(rank)
    for places in by_volume.values():
        known = [place for place in places if place is not None]
        assert min(best for best, _ in known) == 1
        assert max(worst for _, worst in known) == len(places)
    grown = read_result(RECORDED / "scale-nano-onnxruntime-epyc-2cores.json")
    assert ranks(grown) == [None] * len(grown.rows)
    assert ratio_notes(grown) == rank_notes(grown) == []


def test_tables_show_ranks_and_how_far_ratios_may_move() -> None:
    result = read_result(RECORDED / "engine-nano-all-ways-epyc-2cores.json")
    table = table_of(result)
    rank, ratio, moves = (table.headings.index(heading) for heading in ("rank", "x eager", "±"))
    assert (rank, moves) == (1, ratio + 1)
    assert [row[rank] for row in table.rows] == [rank_text(rank) for rank in ranks(result)]
    assert [bool(row[moves]) for row in table.rows] == [row[ratio] != "1.00" for row in table.rows]
