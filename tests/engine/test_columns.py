"""A column of blocks through a runner's slots against each block on its own."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fgnet.engine.bundle import Bundle
from fgnet.engine.columns import Column, calls_of, run_block, warm_up
from fgnet.engine.onnxruntime_runner import OnnxRuntimeRunner
from fgnet.engine.openvino_runner import OpenVINORunner
from fgnet.engine.runner import Runner, call_length, least_slots
from fgnet.volumes.errors import GeometryError


def noise(depth: int, rows: int = 5, columns: int = 6) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(depth).integers(0, 256, (depth, rows, columns), dtype=np.uint8)


@st.composite
def columns(draw: st.DrawFn) -> dict[str, Any]:
    """Blocks of one column as a grid has them: a stride, and a last block wherever the volume ends."""
    depth = draw(st.integers(1, 8))
    stride = draw(st.integers(1, depth))
    last = draw(st.integers(0, 5 * depth))
    sections = draw(st.integers(0, depth))
    starts = [*range(0, last, stride), last]
    return {
        "depth": depth,
        "starts": sorted(draw(st.sets(st.sampled_from(starts), min_size=1))),
        "extent": last + depth,
        "sections": sections,
        "slots": least_slots(depth, sections) + draw(st.integers(0, 2 * depth)),
    }


def reader(gray: npt.NDArray[np.uint8]) -> Any:
    def read(first: int, count: int) -> npt.NDArray[np.uint8]:
        assert 0 <= first <= first + count <= len(gray)
        return gray[first : first + count]

    return read


@settings(deadline=None, max_examples=200)
@given(case=columns())
def test_a_column_gives_what_each_block_gives_on_its_own(slot_runner: Any, case: dict[str, Any]) -> None:
    depth, gray = case["depth"], noise(case["extent"])
    runner = slot_runner((depth, 5, 6), case["sections"], case["slots"])
    column = Column(runner, len(gray), reader(gray))
    for start in case["starts"]:
        np.testing.assert_array_equal(column.affinities(start), runner.alone(gray[start : start + depth]))
    runner.close()


@settings(deadline=None, max_examples=200)
@given(case=columns())
def test_the_call_that_encodes_a_section_is_the_same_whatever_blocks_are_run(
    slot_runner: Any, case: dict[str, Any]
) -> None:
    depth, extent = case["depth"], case["extent"]
    length = call_length(depth, case["sections"])
    calls = calls_of(case["starts"], depth, length, extent)
    assert set(calls) <= {*range(0, extent - length + 1, length), extent - length}
    assert calls == sorted(set(calls))
    covered = set(itertools.chain.from_iterable(range(first, first + length) for first in calls))
    assert covered >= {section for start in case["starts"] for section in range(start, start + depth)}
    for start in case["starts"]:
        alone = calls_of([start], depth, length, extent)
        assert set(alone) <= set(calls)
        assert max(alone) - min(alone) + length <= least_slots(depth, case["sections"])


@settings(deadline=None, max_examples=100)
@given(case=columns())
def test_each_section_is_loaded_and_encoded_once_but_where_the_last_call_reaches_back(
    slot_runner: Any, case: dict[str, Any]
) -> None:
    depth, gray = case["depth"], noise(case["extent"])
    runner = slot_runner((depth, 5, 6), case["sections"], case["slots"])
    column = Column(runner, len(gray), reader(gray))
    for start in case["starts"]:
        column.affinities(start)
    calls = calls_of(case["starts"], depth, call_length(depth, case["sections"]), case["extent"])
    assert len(runner.loaded) == len(calls)
    assert len(runner.encoded) == (len(calls) if case["sections"] else 0)
    runner.close()


def test_a_stride_of_the_encoders_sections_encodes_each_section_exactly_once(slot_runner: Any) -> None:
    gray, runner = noise(40), slot_runner((8, 5, 6), 4)
    column = Column(runner, 40, reader(gray))
    for start in range(0, 33, 4):
        column.affinities(start)
    assert len(runner.encoded) * 4 == 40


def test_more_slots_than_a_block_has_spare_moves(slot_runner: Any) -> None:
    class Moving(slot_runner):  # type: ignore[misc]
        moved = 0

        def move(self, source: int, target: int, count: int) -> None:
            super().move(source, target, count)
            self.moved += count

    gray, moved = noise(64), []
    for slots in (14, 24, 64):
        runner = Moving((8, 5, 6), 4, slots)
        column = Column(runner, 64, reader(gray))
        for start in range(0, 57, 4):
            column.affinities(start)
        moved.append(runner.moved)
    assert moved == [28, 8, 0]


def test_the_same_block_again_is_not_encoded_again(slot_runner: Any) -> None:
    gray, runner = noise(12), slot_runner((8, 5, 6), 4)
    column = Column(runner, 12, reader(gray))
    first = column.affinities(3).copy()
    np.testing.assert_array_equal(column.affinities(3), first)
    assert len(runner.encoded) == 3


@pytest.mark.parametrize("starts", [(8, 7), (5, 3), (0, 4, 8, 12, 3), (0, 20, 19)], ids=str)
def test_a_block_below_the_sections_that_are_held_is_refused(slot_runner: Any, starts: tuple[int, ...]) -> None:
    gray = noise(40)
    column = Column(slot_runner((8, 5, 6), 4), 40, reader(gray))
    *before, last = starts
    for start in before:
        column.affinities(start)
    with pytest.raises(GeometryError, match=f"block at section {last}"):
        column.affinities(last)


def test_the_next_column_starts_wherever_it_likes(slot_runner: Any) -> None:
    gray, runner = noise(40), slot_runner((8, 5, 6), 3)
    for start in (30, 0):
        found = Column(runner, 40, reader(gray)).affinities(start)
        np.testing.assert_array_equal(found, runner.alone(gray[start : start + 8]))


@given(depth=st.integers(1, 9), data=st.data())
def test_a_block_on_its_own_is_that_of_the_definition(slot_runner: Any, depth: int, data: st.DataObject) -> None:
    runner = slot_runner((depth, 5, 6), data.draw(st.integers(0, depth)))
    block = noise(depth)
    warm_up(runner)
    np.testing.assert_array_equal(run_block(runner, block), runner.alone(block))
    runner.close()


REAL: dict[str, Any] = {
    "onnxruntime fp32": (OnnxRuntimeRunner, "fp32"),
    "onnxruntime int8": (OnnxRuntimeRunner, "int8"),
    "openvino fp32": (OpenVINORunner, "fp32"),
    "openvino fp16": (OpenVINORunner, "fp16"),
}


@pytest.fixture(scope="module", params=REAL)
def opened(request: pytest.FixtureRequest, precise: Bundle) -> dict[int, Runner]:
    """Runners of one kind by the number of their slots."""
    kind, precision = REAL[request.param]
    return {slots: kind(precise, precision=precision, threads=1, slots=slots) for slots in (6, 7, 12)}


@settings(deadline=None, max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(slots=st.sampled_from([6, 7, 12]), steps=st.lists(st.integers(1, 5), min_size=2, max_size=4))
def test_real_networks_give_the_same_bits_in_a_column_and_on_their_own(
    opened: dict[int, Runner], slots: int, steps: list[int]
) -> None:
    gray = noise(25, 64, 64)
    column = Column(opened[slots], len(gray), reader(gray))
    for start in itertools.accumulate(steps, initial=0):
        found = column.affinities(start).copy()
        np.testing.assert_array_equal(found, run_block(opened[12 if slots == 6 else 6], gray[start : start + 4]))
