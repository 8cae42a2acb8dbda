"""The pipeline in any order, cut and interrupted in any way, against one array computed in one go."""

from __future__ import annotations

import itertools
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from fgnet.engine.inference import ArraySource, predict_affinities
from fgnet.engine.run_mask import RunMask, _factor
from fgnet.engine.run_plan import RunPlan, make_plan
from fgnet.engine.run_record import bottleneck, streaming_figures, utilisation
from fgnet.engine.streaming import RunStoppedError, StreamOptions, StreamState, stream
from fgnet.volumes.errors import BackendError, FGNetError, OutputError, VolumeError
from fgnet.volumes.geometry import Box, Triple
from fgnet.volumes.reading import open_volume


class Chunks:
    """A sink that keeps chunks, and refuses to be given one twice."""

    def __init__(self, plan: RunPlan) -> None:
        self.plan = plan
        self.array = np.full((3, *plan.region.shape), 7, np.uint8)
        self.written: set[Triple] = set()

    def write(self, index: Triple, box: Box, affinities: npt.NDArray[np.uint8] | None) -> None:
        assert index not in self.written
        assert box == self.plan.chunk_box(index)
        self.written.add(index)
        place = box.shift([-first for first in self.plan.region.start])
        self.array[(slice(None), *place.slices)] = 0 if affinities is None else affinities


def noise(shape: Triple, seed: int = 0) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def all_chunks(plan: RunPlan) -> set[Triple]:
    z, y, x = plan.chunk_counts
    return set(itertools.product(range(z), range(y), range(x)))


@st.composite
def plans(draw: st.DrawFn) -> dict[str, Any]:
    patch = draw(st.tuples(st.integers(1, 4), st.integers(2, 6), st.integers(2, 6)))
    stride = tuple(draw(st.integers((side + 1) // 2, side)) for side in patch)
    shape = draw(st.tuples(st.integers(1, 12), st.integers(1, 20), st.integers(1, 20)))
    first = tuple(draw(st.integers(0, extent - 1)) for extent in shape)
    stop = tuple(draw(st.integers(low + 1, extent)) for low, extent in zip(first, shape, strict=True))
    chunk = draw(st.tuples(st.integers(2, 6), st.integers(4, 9), st.integers(4, 9)))
    plan = make_plan(shape, patch, stride=stride, region=Box(first, stop), chunk=chunk, memory=1 << 40)
    tile = tuple(chunk * draw(st.integers(1, 3)) for chunk in plan.chunk)
    return {
        "plan": replace(plan, tile=tile),
        "gray": noise(shape, draw(st.integers(0, 5))),
        "sections": draw(st.integers(0, patch[0])),
    }


@settings(deadline=None, max_examples=60)
@given(case=plans(), data=st.data())
def test_tiles_order_shares_and_what_is_done_already_change_no_byte(
    slot_runner: Any, case: dict[str, Any], data: st.DataObject
) -> None:
    plan: RunPlan = case["plan"]
    source = ArraySource(case["gray"])
    runner = slot_runner(plan.grid.patch, case["sections"])
    whole = predict_affinities(source, runner, box=plan.region, stride=plan.grid.stride)
    done = data.draw(st.sets(st.sampled_from(sorted(all_chunks(plan)))))
    shares = data.draw(st.integers(1, 3))
    sink = Chunks(plan)
    for share in range(shares):
        tiles = range(share, len(plan.tiles), shares)
        stream(plan, source, runner, sink, StreamOptions(done=done, tiles=tiles))
    assert sink.written == all_chunks(plan) - done
    for index in sink.written:
        place = plan.chunk_box(index).shift([-first for first in plan.region.start]).slices
        np.testing.assert_array_equal(sink.array[(slice(None), *place)], whole[(slice(None), *place)])
    runner.close()


@settings(deadline=None, max_examples=40)
@given(case=plans(), data=st.data())
def test_affinities_of_tissue_do_not_depend_on_a_mask_and_are_0_outside(
    slot_runner: Any, tmp_path_factory: pytest.TempPathFactory, case: dict[str, Any], data: st.DataObject
) -> None:
    plan: RunPlan = case["plan"]
    source, shape = ArraySource(case["gray"]), case["gray"].shape
    factors = tuple(data.draw(st.integers(1, 3)) for _ in shape)
    coarse = tuple(-(-extent // factor) for extent, factor in zip(shape, factors, strict=True))
    # Several factors may lead to the same extent: the mask's own reading of it is what counts.
    factors = tuple(_factor(extent, size) for extent, size in zip(shape, coarse, strict=True))
    tissue = np.random.default_rng(data.draw(st.integers(0, 99))).random(coarse) < data.draw(st.floats(0, 0.5))
    fine = tissue.repeat(factors[0], 0).repeat(factors[1], 1).repeat(factors[2], 2)[tuple(map(slice, shape))]
    store = tmp_path_factory.mktemp("mask") / "m.zarr"
    zarr.create_array(str(store), shape=coarse, chunks=coarse, dtype="u1")[:] = tissue
    runner = slot_runner(plan.grid.patch, case["sections"])
    whole = predict_affinities(source, runner, box=plan.region, stride=plan.grid.stride)
    sink = Chunks(plan)
    with open_volume(store) as volume:
        mask = RunMask(volume, shape)
        state = stream(plan, source, runner, sink, StreamOptions(mask=mask))
        np.testing.assert_array_equal(mask.inside(Box.from_shape(shape)), fine)
    inside = fine[plan.region.slices]
    np.testing.assert_array_equal(sink.array[:, inside], whole[:, inside])
    assert sink.written == all_chunks(plan)
    assert state.done == state.blocks <= plan.blocks
    runner.close()


@pytest.mark.parametrize(
    ("extent", "size", "factor"), [(100, 7, 16), (1000, 16, 64), (100, 34, 3), (100, 10, 10), (64, 64, 1), (5, 2, 4)]
)
def test_of_factors_that_would_do_a_mask_takes_that_of_a_pyramid(extent: int, size: int, factor: int) -> None:
    assert _factor(extent, size) == factor


def test_a_mask_of_another_extent_is_refused(tmp_path: Path) -> None:
    zarr.create_array(str(tmp_path / "m.zarr"), shape=(4, 7, 8), chunks=(4, 7, 8), dtype="u1")
    with open_volume(tmp_path / "m.zarr") as volume, pytest.raises(VolumeError, match="the mask has shape"):
        RunMask(volume, (8, 16, 16))


def test_blocks_of_one_gray_value_are_not_run_and_count_as_0(slot_runner: Any) -> None:
    gray = noise((8, 16, 64))
    gray[:, :, 16:48] = 255
    plan = make_plan(gray.shape, (4, 8, 8), chunk=(8, 8, 8))
    runner, sink = slot_runner((4, 8, 8), 2), Chunks(plan)
    state = stream(plan, ArraySource(gray), runner, sink)
    # Along x blocks begin at 0, 4, ...: those from 16 to 40 lie in the gap.
    assert state.skipped == 3 * 3 * 7
    assert runner.decoded == plan.blocks - state.skipped
    assert not sink.array[..., 20:44].any()
    whole = predict_affinities(ArraySource(gray), slot_runner((4, 8, 8), 2))
    np.testing.assert_array_equal(sink.array, whole)


def test_what_must_wait_waits_however_slow_any_stage_is(slot_runner: Any) -> None:
    class Slow(slot_runner):  # type: ignore[misc]
        random = np.random.default_rng(0)

        def nap(self) -> None:
            time.sleep(float(self.random.choice([0, 0, 0.004])))

        def load(self, gray: Any, slot: int) -> None:
            self.nap()
            super().load(gray, slot)

        def encode(self, slot: int) -> None:
            self.nap()
            super().encode(slot)

        def decode(self, slot: int, affinities: Any) -> None:
            affinities.host[...] = 99
            self.nap()
            super().decode(slot, affinities)

    class SlowSource(ArraySource):
        def gray(self, box: Box) -> npt.NDArray[np.uint8]:
            time.sleep(float(np.random.default_rng(box.start[2]).choice([0, 0.01])))
            return super().gray(box)

    class SlowChunks(Chunks):
        def write(self, index: Triple, box: Box, affinities: npt.NDArray[np.uint8] | None) -> None:
            time.sleep(0.002 * (sum(index) % 3))
            super().write(index, box, affinities)

    gray = noise((20, 24, 24))
    plan = make_plan(gray.shape, (4, 8, 8), chunk=(4, 8, 8))
    sink = SlowChunks(plan)
    state = stream(plan, SlowSource(gray), Slow((4, 8, 8), 2), sink)
    np.testing.assert_array_equal(sink.array, predict_affinities(ArraySource(gray), slot_runner((4, 8, 8), 2)))
    assert {stage for stage, seconds in state.busy.items() if seconds > 0} == set(state.busy)
    assert all(share <= 1 for share in utilisation(state).values())
    figures = streaming_figures(state)
    assert figures["resources"]["the network"]["busy_share"] > 0
    assert set(figures["queues"]) == {"read", "network", "write"}


def test_every_chunk_is_written_as_soon_as_its_last_block_is_in(slot_runner: Any) -> None:
    gray = noise((8, 16, 256))
    plan = make_plan(gray.shape, (4, 8, 8), chunk=(8, 16, 16))
    seen: list[tuple[int, int]] = []
    sink = Chunks(plan)
    told = StreamOptions(progress=lambda state: seen.append((state.done, len(sink.written))))
    stream(plan, ArraySource(gray), slot_runner((4, 8, 8), 2), sink, told)
    # Written beside the network: long before the end, most of what was passed is there.
    late = [written for done, written in seen if done > 0.9 * plan.blocks]
    assert max(late) >= 10


def test_a_stop_keeps_what_is_finished_and_says_how_to_go_on(slot_runner: Any) -> None:
    gray = noise((8, 16, 64))
    plan = make_plan(gray.shape, (4, 8, 8), chunk=(8, 16, 16))
    sink, runner = Chunks(plan), slot_runner((4, 8, 8), 2)
    blocks = itertools.count()
    with pytest.raises(RunStoppedError, match="--resume"):
        stream(plan, ArraySource(gray), runner, sink, StreamOptions(stop=lambda: next(blocks) > 0.8 * plan.blocks))
    assert 0 < len(sink.written) < len(all_chunks(plan))
    before = set(sink.written)
    stream(plan, ArraySource(gray), runner, sink, StreamOptions(done=before))
    np.testing.assert_array_equal(sink.array, predict_affinities(ArraySource(gray), runner))


@pytest.mark.parametrize("error", [FGNetError("the device went away"), RuntimeError("the device went away")], ids=repr)
def test_a_network_that_fails_ends_the_run_naming_the_block(slot_runner: Any, error: Exception) -> None:
    class Failing(slot_runner):  # type: ignore[misc]
        def decode(self, slot: int, affinities: Any) -> None:
            if self.decoded == 12:
                raise error
            super().decode(slot, affinities)

    gray = noise((8, 16, 64))
    plan = make_plan(gray.shape, (4, 8, 8), chunk=(8, 8, 8))
    sink = Chunks(plan)
    with pytest.raises(FGNetError, match="the device went away") as caught:
        stream(plan, ArraySource(gray), Failing((4, 8, 8), 2), sink)
    told = str(caught.value) + "".join(getattr(caught.value, "__notes__", []))
    assert "block 0:4,4:12," in told or "block 0:4,0:8," in told
    if isinstance(error, RuntimeError):
        assert isinstance(caught.value, BackendError)
    # Three blocks lie over each other, so four columns were done: what they finished is kept.
    whole = predict_affinities(ArraySource(gray), slot_runner((4, 8, 8), 2))
    for index in sink.written:
        place = (slice(None), *plan.chunk_box(index).slices)
        np.testing.assert_array_equal(sink.array[place], whole[place])


@pytest.mark.parametrize("failing", [1, 2, 3])
def test_the_block_is_named_whoever_meets_the_failure_first(slot_runner: Any, failing: int) -> None:
    class Failing(slot_runner):  # type: ignore[misc]
        def decode(self, slot: int, affinities: Any) -> None:
            if self.decoded == failing:
                raise RuntimeError("the device went away")
            super().decode(slot, affinities)

    # Each block finishes several chunks, more than can be on their way to the disk.
    plan = make_plan((16, 32, 32), (4, 32, 32), stride=(4, 32, 32), chunk=(2, 4, 4))
    with pytest.raises(BackendError, match=f"in the block {4 * failing}:{4 * failing + 4},"):
        stream(plan, ArraySource(noise((16, 32, 32))), Failing((4, 32, 32), 2), Chunks(plan))


def test_a_block_that_cannot_be_queued_is_named(slot_runner: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU a network's runtime fails in the call that queues its work."""
    runner = slot_runner((4, 32, 32), 2)
    call, decoded = runner.device.call, []

    def queue(stream: Any, work: Any, stage: str) -> None:
        decoded.extend([stage] if stage == "decode" else [])
        if len(decoded) == 3:
            raise RuntimeError("no memory of the device is left")
        call(stream, work, stage)

    monkeypatch.setattr(runner.device, "call", queue)
    plan = make_plan((16, 32, 32), (4, 32, 32), stride=(4, 32, 32), chunk=(4, 32, 32))
    sink = Chunks(plan)
    with pytest.raises(BackendError, match=r"in the block 8:12,.*no memory of the device is left"):
        stream(plan, ArraySource(noise((16, 32, 32))), runner, sink)
    # The first is finished once the second is there.
    assert (0, 0, 0) in sink.written


def test_a_disk_that_is_full_ends_the_run(slot_runner: Any) -> None:
    class Full(Chunks):
        def write(self, index: Triple, box: Box, affinities: npt.NDArray[np.uint8] | None) -> None:
            if len(self.written) == 2:
                raise OutputError("no space is left")
            super().write(index, box, affinities)

    gray = noise((8, 16, 256))
    plan = make_plan(gray.shape, (4, 8, 8), chunk=(8, 8, 8))
    sink = Full(plan)
    with pytest.raises(OutputError, match="no space is left"):
        stream(plan, ArraySource(gray), slot_runner((4, 8, 8), 2), sink)
    assert len(sink.written) == 2


def test_no_thread_outlives_a_run(slot_runner: Any) -> None:
    before = set(threading.enumerate())
    runner = slot_runner((4, 8, 8), 2)
    plan = make_plan((8, 16, 16), (4, 8, 8), chunk=(8, 8, 8))
    stream(plan, ArraySource(noise((8, 16, 16))), runner, Chunks(plan))
    runner.close()
    assert set(threading.enumerate()) <= before


def test_the_bottleneck_is_what_was_busy_or_nothing() -> None:
    state = StreamState(seconds=10.0, busy={"read": 1.0, "encode": 4.0, "decode": 5.5, "write": 0.5})
    assert bottleneck(state).startswith("the network was the bottleneck, busy 95% of the time")
    state.busy["decode"] = 1.0
    assert bottleneck(state).startswith("nothing was busy all the time: the network 50%")
