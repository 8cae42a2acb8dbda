"""The host as a device: streams, events, memory and seconds."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fgnet.engine.device import STAGES, Event, Stage, Stream
from fgnet.engine.host_device import HostDevice, host_buffer
from fgnet.postproc.blending import WeightTotals, add_patch, finish_chunk, make_weights
from fgnet.volumes.geometry import Box
from fgnet.volumes.grid import PatchGrid

_SECONDS = 20.0


class Gate:
    """Lets a stream's work go on once it is opened, and says whether something came this far."""

    def __init__(self) -> None:
        self._opened, self._reached = threading.Event(), threading.Event()

    def open(self) -> None:
        self._opened.set()

    def pass_(self) -> None:
        self._reached.set()
        assert self._opened.wait(_SECONDS)

    def assert_reached(self) -> None:
        assert self._reached.wait(_SECONDS)

    def assert_not_reached(self) -> None:
        assert not self._reached.wait(0.05)


def finish(device: HostDevice, *streams: Stream) -> None:
    """Wait for all that is queued."""
    for stream in streams:
        event = device.event()
        device.record(event, stream)
        device.synchronise(event)


def recorded(device: HostDevice, stream: Stream) -> Event:
    event = device.event()
    device.record(event, stream)
    return event


def test_a_stream_does_what_it_is_given_in_order(device: HostDevice) -> None:
    stream, done = device.stream("a"), list[int]()

    def work(number: int) -> Callable[[], None]:
        return lambda: done.append(number)

    for number in range(200):
        device.call(stream, work(number), "decode")
    finish(device, stream)
    assert done == list(range(200))


def test_streams_run_beside_each_other(device: HostDevice) -> None:
    together = threading.Barrier(3)

    def meet() -> None:
        together.wait(_SECONDS)

    streams = [device.stream(name) for name in "abc"]
    for stream in streams:
        device.call(stream, meet, "decode")
    finish(device, *streams)


def test_nothing_is_done_in_the_thread_that_queues_it(device: HostDevice) -> None:
    threads = list[str]()
    stream = device.stream("elsewhere")
    device.call(stream, lambda: threads.append(threading.current_thread().name), "read")
    finish(device, stream)
    assert threads == ["elsewhere"]


def test_a_new_event_has_happened(device: HostDevice) -> None:
    event, stream = device.event(), device.stream("a")
    device.synchronise(event)
    device.wait(stream, event)
    finish(device, stream)


def test_a_stream_waits_for_an_event_and_other_streams_do_not(device: HostDevice) -> None:
    before, after, beside = Gate(), Gate(), Gate()
    for gate in (after, beside):
        gate.open()
    first, second, third = (device.stream(name) for name in "abc")
    device.call(first, before.pass_, "encode")
    event = recorded(device, first)
    device.wait(second, event)
    device.call(second, after.pass_, "decode")
    device.call(third, beside.pass_, "blend")
    before.assert_reached()
    beside.assert_reached()
    after.assert_not_reached()
    before.open()
    after.assert_reached()
    finish(device, first, second, third)


def test_a_caller_waits_for_an_event(device: HostDevice) -> None:
    stream, done = device.stream("a"), list[str]()

    def work() -> None:
        time.sleep(0.05)
        done.append("work")

    device.call(stream, work, "encode")
    event = recorded(device, stream)
    device.call(stream, lambda: time.sleep(0.2), "encode")
    began = time.perf_counter()
    device.synchronise(event)
    assert time.perf_counter() - began < 0.2
    assert done == ["work"]


def test_an_event_that_is_recorded_again_is_the_later_one_for_those_who_wait_from_then_on(device: HostDevice) -> None:
    gates = [Gate(), Gate()]
    early, late = Gate(), Gate()
    for gate in (early, late):
        gate.open()
    stream, others = device.stream("a"), [device.stream("b"), device.stream("c")]
    event = device.event()
    for gate, other, reached in zip(gates, others, (early, late), strict=True):
        device.call(stream, gate.pass_, "encode")
        device.record(event, stream)
        device.wait(other, event)
        device.call(other, reached.pass_, "decode")
    early.assert_not_reached()
    gates[0].open()
    early.assert_reached()
    late.assert_not_reached()
    waiting = threading.Thread(target=device.synchronise, args=(event,))
    waiting.start()
    waiting.join(0.05)
    assert waiting.is_alive()
    gates[1].open()
    waiting.join(_SECONDS)
    assert not waiting.is_alive()
    late.assert_reached()


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("call"), st.integers(0, 2), st.integers(0, 2)),
            st.tuples(st.sampled_from(["record", "wait"]), st.integers(0, 2), st.integers(0, 3)),
        ),
        max_size=40,
    )
)
def test_whatever_is_queued_happens_after_what_it_waits_for(program: list[tuple[str, int, int]]) -> None:
    device, done = HostDevice(), list[int]()
    streams, events = [device.stream(name) for name in "abc"], [device.event() for _ in range(4)]
    # What has to be done before what is queued next on a stream, and before an event.
    behind: list[set[int]] = [set() for _ in streams]
    before: list[set[int]] = [set() for _ in events]
    needs: dict[int, set[int]] = {}

    def work(number: int, milliseconds: int) -> Callable[[], None]:
        def call() -> None:
            time.sleep(milliseconds / 1000)
            done.append(number)

        return call

    for number, (step, stream, other) in enumerate(program):
        if step == "call":
            device.call(streams[stream], work(number, other), "decode")
            needs[number] = set(behind[stream])
            behind[stream].add(number)
        elif step == "record":
            device.record(events[other], streams[stream])
            before[other] = set(behind[stream])
        else:
            device.wait(streams[stream], events[other])
            behind[stream] |= before[other]
    for event, needed in zip(events, before, strict=True):
        device.synchronise(event)
        assert needed <= set(done)
    device.close()
    assert sorted(done) == sorted(needs)
    for place, number in enumerate(done):
        assert needs[number] <= set(done[:place])


def test_the_seconds_of_each_stage_are_counted_once_its_work_is_done(device: HostDevice) -> None:
    assert device.busy() == dict.fromkeys(STAGES, 0.0)
    first, second, gate = device.stream("a"), device.stream("b"), Gate()
    for stream in (first, second):
        device.call(stream, lambda: time.sleep(0.05), "encode")
    finish(device, first, second)
    device.call(first, gate.pass_, "decode")
    gate.assert_reached()
    time.sleep(0.01)
    busy = device.busy()
    assert busy["encode"] >= 0.1
    assert busy["decode"] == 0
    gate.open()
    finish(device, first)
    assert device.busy()["decode"] >= 0.01
    stages: set[Stage] = {"encode", "decode"}
    assert {stage for stage, seconds in device.busy().items() if seconds} == stages


def test_waiting_for_events_is_no_work(device: HostDevice) -> None:
    first, second = device.stream("a"), device.stream("b")
    device.call(first, lambda: time.sleep(0.1), "upload")
    device.wait(second, recorded(device, first))
    device.call(second, lambda: None, "decode")
    finish(device, second)
    assert device.busy()["decode"] < 0.1


def test_memory_is_zeros_and_copies_come_in_the_order_of_their_stream(device: HostDevice) -> None:
    buffer, staging, stream = device.empty((2, 3)), device.staging((2, 3)), device.stream("a")
    assert (buffer.shape, buffer.dtype, buffer.nbytes) == ((2, 3), np.uint8, 6)
    assert not buffer.host.any()
    assert buffer.address == buffer.host.ctypes.data
    assert device.empty((4, 5), np.float32).nbytes == 80
    gate = Gate()
    device.call(stream, gate.pass_, "read")
    staging[:] = 7
    device.upload(buffer, staging, stream)
    back = device.staging((2, 3))
    device.download(back, buffer, stream)
    gate.assert_reached()
    # What is in the staging memory when the copy is made is what is copied.
    staging[:] = 9
    gate.open()
    finish(device, stream)
    assert (buffer.host == 9).all()
    assert (back == 9).all()
    busy = device.busy()
    assert busy["upload"] > 0
    assert busy["download"] > 0


def test_blending_is_that_of_postproc_in_memory_that_may_be_larger_than_a_chunk(device: HostDevice) -> None:
    grid, box, stream = PatchGrid((6, 9, 9), (4, 5, 6), (2, 3, 3)), Box((1, 2, 3), (6, 8, 7)), device.stream("a")
    weights = make_weights("gaussian", grid.patch)
    totals = WeightTotals.of(weights, grid)
    sums, target = device.empty((3, 6, 7, 8), np.float32), device.empty((3, 6, 7, 8))
    target.host[...] = 99
    expected = np.zeros((3, *box.shape), np.float32)
    blender, random = device.blender(weights, totals), np.random.default_rng(0)
    for block in grid:
        patch = random.integers(0, 256, (3, *grid.patch), dtype=np.uint8)
        blender.accumulate(sums, box, host_buffer(patch), block.start, stream)
        add_patch(expected, box, patch, block.start, weights)
    blender.normalise(sums, box, target, stream)
    finish(device, stream)
    found = target.host.reshape(-1)
    np.testing.assert_array_equal(found[: 3 * box.size].reshape(3, *box.shape), finish_chunk(expected, box, totals))
    assert (found[3 * box.size :] == 99).all()
    assert not sums.host.any()
    busy = device.busy()
    assert busy["blend"] > 0
    assert busy["normalise"] > 0
