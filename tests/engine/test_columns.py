"""A column of blocks through a runner's slots against each block on its own."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fgnet.engine.bundle import load_bundle
from fgnet.engine.columns import Column
from fgnet.engine.onnxruntime_runner import OnnxRuntimeRunner
from fgnet.engine.openvino_runner import OpenVINORunner
from fgnet.engine.runner import Runner, encoder_calls, run_block, warm_up
from fgnet.volumes.errors import GeometryError


def noise(depth: int, rows: int = 5, columns: int = 6) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(depth).integers(0, 256, (depth, rows, columns), dtype=np.uint8)


@st.composite
def columns(draw: st.DrawFn) -> dict[str, Any]:
    """Blocks of one column as a grid has them: a stride, and a last block wherever the volume ends."""
    depth = draw(st.integers(1, 8))
    stride = draw(st.integers(1, depth))
    last = draw(st.integers(0, 5 * depth))
    return {
        "depth": depth,
        "starts": [*range(0, last, stride), last],
        "sections": draw(st.integers(0, depth)),
        "slots": draw(st.integers(depth, 3 * depth)),
    }


@st.composite
def journeys(draw: st.DrawFn) -> dict[str, Any]:
    """Blocks in any order."""
    made = draw(columns())
    return made | {"starts": draw(st.lists(st.integers(0, 4 * made["depth"]), min_size=1, max_size=12))}


@settings(deadline=None, max_examples=200)
@given(case=columns(), offset=st.integers(0, 3))
def test_a_column_gives_what_each_block_gives_on_its_own(slot_runner: Any, case: dict[str, Any], offset: int) -> None:
    depth, starts = case["depth"], [start + offset for start in case["starts"]]
    gray = noise(starts[-1] + depth)
    runner = slot_runner((depth, 5, 6), case["sections"], case["slots"])
    column = Column(runner)
    for start in starts:
        block = gray[start : start + depth]
        np.testing.assert_array_equal(column.affinities(start, block), runner.alone(block))


@settings(deadline=None, max_examples=200)
@given(case=journeys())
def test_blocks_in_any_order_are_right_or_refused(slot_runner: Any, case: dict[str, Any]) -> None:
    depth = case["depth"]
    gray = noise(5 * depth)
    runner = slot_runner((depth, 5, 6), case["sections"], case["slots"])
    column, highest = Column(runner), 0
    for start in case["starts"]:
        block = gray[start : start + depth]
        try:
            found = column.affinities(start, block)
        except GeometryError:
            assert start < highest
            continue
        highest = max(highest, start)
        np.testing.assert_array_equal(found, runner.alone(block))


@settings(deadline=None, max_examples=200)
@given(case=columns())
def test_a_section_is_encoded_once_but_where_the_last_call_of_a_block_reaches_back(
    slot_runner: Any, case: dict[str, Any]
) -> None:
    depth, starts, sections = case["depth"], case["starts"], case["sections"]
    gray = noise(starts[-1] + depth)
    runner = slot_runner((depth, 5, 6), sections, case["slots"])
    column, before = Column(runner), -depth
    for start in starts:
        runner.encoded.clear()
        column.affinities(start, gray[start : start + depth])
        missing = min(start - before, depth)
        assert len(runner.encoded) == (math.ceil(missing / sections) if sections else 0)
        before = start


def test_a_stride_of_the_encoders_sections_encodes_each_section_exactly_once(slot_runner: Any) -> None:
    gray, runner = noise(40), slot_runner((8, 5, 6), 4)
    column = Column(runner)
    for start in range(0, 33, 4):
        column.affinities(start, gray[start : start + 8])
    assert len(runner.encoded) * 4 == 40


def test_more_slots_than_a_block_has_spare_moves(slot_runner: Any) -> None:
    class Moving(slot_runner):  # type: ignore[misc]
        moved = 0

        def move(self, source: int, target: int, count: int) -> None:
            super().move(source, target, count)
            self.moved += count

    gray, moved = noise(64), []
    for slots in (8, 16, 24, 64):
        runner = Moving((8, 5, 6), 4, slots)
        column = Column(runner)
        for start in range(0, 57, 4):
            column.affinities(start, gray[start : start + 8])
        moved.append(runner.moved)
    assert moved == [56, 16, 8, 0]


def test_the_same_block_again_is_not_encoded_again(slot_runner: Any) -> None:
    gray, runner = noise(8), slot_runner((8, 5, 6), 4)
    column = Column(runner)
    first = column.affinities(3, gray)
    np.testing.assert_array_equal(column.affinities(3, gray), first)
    assert len(runner.encoded) == 2


@pytest.mark.parametrize("starts", [(5, 4), (5, 0), (0, 4, 8, 3), (0, 20, 19)], ids=str)
def test_a_block_below_the_sections_that_are_held_is_refused(slot_runner: Any, starts: tuple[int, ...]) -> None:
    gray, column = noise(40), Column(slot_runner((8, 5, 6), 4, 8))
    *before, last = starts
    for start in before:
        column.affinities(start, gray[start : start + 8])
    with pytest.raises(GeometryError, match=f"block at section {last}"):
        column.affinities(last, gray[last : last + 8])


def test_the_next_column_starts_wherever_it_likes(slot_runner: Any) -> None:
    gray, runner = noise(40), slot_runner((8, 5, 6), 3)
    for start in (30, 0):
        block = gray[start : start + 8]
        np.testing.assert_array_equal(Column(runner).affinities(start, block), runner.alone(block))


@given(st.integers(0, 60), st.integers(0, 60), st.integers(1, 20), st.integers(0, 60))
def test_the_encoder_is_called_for_what_is_missing_and_no_more(
    done: int, extent: int, sections: int, above: int
) -> None:
    lowest = max(0, done - above)
    stop = max(done + extent - 30, lowest + sections)
    calls = encoder_calls(done, stop, sections, lowest)
    covered = set(itertools.chain.from_iterable(range(first, first + sections) for first in calls))
    assert covered >= set(range(done, stop))
    assert all(lowest <= first <= stop - sections for first in calls)
    assert len(calls) == max(0, math.ceil((stop - done) / sections))
    assert calls == sorted(set(calls))


@given(st.integers(0, 20), st.integers(0, 60), st.integers(0, 20))
def test_a_network_without_encoder_is_never_asked_to_encode(done: int, stop: int, lowest: int) -> None:
    assert encoder_calls(done, stop, 0, lowest) == []


@given(depth=st.integers(1, 9), data=st.data())
def test_a_block_on_its_own_needs_no_more_slots_than_its_sections(
    slot_runner: Any, depth: int, data: st.DataObject
) -> None:
    runner = slot_runner((depth, 5, 6), data.draw(st.integers(0, depth)), depth)
    block = noise(depth)
    warm_up(runner)
    np.testing.assert_array_equal(run_block(runner, block), runner.alone(block))


REAL: dict[str, Any] = {
    "onnxruntime fp32": (OnnxRuntimeRunner, "fp32"),
    "onnxruntime int8": (OnnxRuntimeRunner, "int8"),
    "openvino fp32": (OpenVINORunner, "fp32"),
    "openvino fp16": (OpenVINORunner, "fp16"),
}


@pytest.fixture(scope="module", params=REAL)
def opened(request: pytest.FixtureRequest, precise_bundle: Path) -> dict[int, Runner]:
    """Runners of one kind by the number of their slots."""
    kind, precision = REAL[request.param]
    bundle = load_bundle(precise_bundle)
    return {slots: kind(bundle, precision=precision, threads=1, slots=slots) for slots in (4, 7, 12)}


@settings(deadline=None, max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(slots=st.sampled_from([4, 7, 12]), steps=st.lists(st.integers(1, 5), min_size=2, max_size=4))
def test_real_networks_give_the_same_bits_in_a_column_and_on_their_own(
    opened: dict[int, Runner], slots: int, steps: list[int]
) -> None:
    gray = noise(25, 64, 64)
    column = Column(opened[slots])
    for start in itertools.accumulate(steps, initial=0):
        block = gray[start : start + 4]
        found = column.affinities(start, block).copy()
        np.testing.assert_array_equal(found, run_block(opened[12 if slots == 4 else 4], block))
