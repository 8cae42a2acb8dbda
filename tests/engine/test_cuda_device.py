"""The GPU as a device of the pipeline; on host memory that stands for a GPU's, and on a GPU where there is one."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from fgnet.engine.cuda_clock import StageClock
from fgnet.engine.cuda_device import CudaDevice
from fgnet.engine.cuda_memory import DeviceMemoryError, open_cuda
from fgnet.engine.device import STAGES, Buffer, Device, Stream
from fgnet.engine.host_device import HostDevice
from fgnet.volumes.errors import BackendError

SIZE = 1 << 24


@pytest.fixture(params=["host", pytest.param("gpu", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest, host_memory: Any) -> Iterator[CudaDevice]:
    if request.param == "host":
        opened = CudaDevice(host_memory(SIZE))
    else:
        try:
            opened = CudaDevice(open_cuda())
        except BackendError as error:
            pytest.skip(f"needs an NVIDIA GPU: {error.what}")
    yield opened
    opened.close()


@pytest.fixture
def memory(host_memory: Any) -> Any:
    """Host memory that stands for a GPU's."""
    return host_memory(SIZE)


def finish(device: CudaDevice, stream: Stream) -> None:
    event = device.event()
    device.record(event, stream)
    device.synchronise(event)


def fetched(device: CudaDevice, buffer: Buffer) -> Any:
    stream, staging = device.stream("fetch"), device.staging((buffer.nbytes,))
    device.download(staging, buffer, stream)
    finish(device, stream)
    return staging.view(buffer.dtype).reshape(buffer.shape)


def test_it_is_a_device(device: CudaDevice) -> None:
    contract: Device = device
    assert contract.kind == "cuda"
    assert contract.name == device.cuda.device


def test_memory_is_zero_also_where_it_was_used_before(device: CudaDevice) -> None:
    for shape, dtype in (((3, 5, 7), np.float32), ((1000,), np.uint8), ((2, 0, 3), np.uint8)):
        buffer = device.empty(shape, dtype)
        assert (buffer.shape, buffer.dtype, buffer.array) == (shape, np.dtype(dtype), None)
        assert not fetched(device, buffer).any() if buffer.nbytes else True
    stream, staging = device.stream("dirt"), device.staging((4096,))
    first = device.empty((4096,))
    staging[:] = 255
    device.upload(first, staging, stream)
    address = first.address
    del first
    gc.collect()
    again = device.empty((64, 64))
    assert again.address == address
    assert not fetched(device, again).any()


def test_memory_in_use_is_never_given_twice(device: CudaDevice) -> None:
    held = [device.empty((512,)) for _ in range(4)]
    del held[1]
    gc.collect()
    held += [device.empty((512,)) for _ in range(2)]
    assert len({buffer.address for buffer in held}) == 5


def test_staging_lives_as_long_as_any_view_of_it(device: CudaDevice) -> None:
    view = device.staging((4, 1024))[1:3]
    view[:] = 7
    gc.collect()
    others = [device.staging((4, 1024)) for _ in range(3)]
    for other in others:
        other[:] = 9
    assert (view == 7).all()
    places = {other.ctypes.data for other in others}
    del others, other
    gc.collect()
    assert device.staging((4, 1024)).ctypes.data in places


def test_what_is_uploaded_comes_back(device: CudaDevice) -> None:
    stream, other = device.stream("there"), device.stream("back")
    source, back, buffer = device.staging((4, 1024)), device.staging((4, 1024)), device.empty((5, 1024))
    source[:] = np.random.default_rng(0).integers(0, 256, source.shape, dtype=np.uint8)
    uploaded = device.event()
    device.upload(buffer, source, stream)
    device.record(uploaded, stream)
    device.wait(other, uploaded)
    device.download(back, buffer, other)
    finish(device, other)
    np.testing.assert_array_equal(back, source)


def test_arrays_that_do_not_fit_or_lie_in_pieces_are_refused(device: CudaDevice) -> None:
    stream, buffer = device.stream("copies"), device.empty((64,))
    for array in (device.staging((65,)), device.staging((8, 16))[:, :4]):
        with pytest.raises(ValueError, match="for a buffer of 64 bytes"):
            device.upload(buffer, array, stream)
        with pytest.raises(ValueError, match="for a buffer of 64 bytes"):
            device.download(array, buffer, stream)


def test_an_event_that_was_never_recorded_has_happened(device: CudaDevice) -> None:
    event, stream = device.event(), device.stream("waits")
    device.wait(stream, event)
    device.synchronise(event)
    finish(device, stream)


def test_an_event_can_be_waited_for_in_another_thread(device: CudaDevice) -> None:
    stream, event, buffer = device.stream("work"), device.event(), device.empty((1 << 16,))
    staging = device.staging((1 << 16,))
    staging[:] = 3
    back = device.staging((1 << 16,))
    seen: list[bool] = []
    device.upload(buffer, staging, stream)
    device.download(back, buffer, stream)
    device.record(event, stream)

    def wait() -> None:
        device.synchronise(event)
        seen.append(bool((back == 3).all()))

    thread = threading.Thread(target=wait)
    thread.start()
    thread.join()
    assert seen == [True]


def test_too_little_memory_is_an_error_with_figures(device: CudaDevice) -> None:
    free = device.free_bytes()
    assert free is not None
    with pytest.raises(DeviceMemoryError, match=r"MiB free, .* MiB more are needed"):
        device.empty((2 * free,))
    device.empty((256,))


def test_memory_that_is_not_in_use_counts_as_free_and_makes_room(memory: Any) -> None:
    device = CudaDevice(memory)
    buffers = [device.empty((SIZE // 4,)) for _ in range(3)]
    assert device.free_bytes() == SIZE // 4
    del buffers
    gc.collect()
    assert device.free_bytes() == SIZE
    assert memory.free_bytes() == SIZE // 4
    large = device.empty((SIZE,))
    assert large.nbytes == SIZE


def test_what_a_stage_queues_is_timed_on_the_device(memory: Any) -> None:
    device = CudaDevice(memory)
    stream, buffer = device.stream("work"), device.empty((256,))
    assert device.busy() == dict.fromkeys(STAGES, 0.0)
    ran: list[str] = []

    def work() -> None:
        memory.copy(buffer.address + 128, buffer.address, 128, 0)
        memory.copy(buffer.address, buffer.address + 128, 128, 0)
        ran.append("at once")

    device.call(stream, work, "encode")
    assert ran == ["at once"]
    device.upload(buffer, device.staging((256,)), stream)
    for _ in range(3):
        device.download(device.staging((256,)), buffer, stream)
    expected = dict.fromkeys(STAGES, 0.0) | {"encode": 0.002, "upload": 0.001, "download": 0.003}
    assert device.busy() == pytest.approx(expected)


def test_a_stage_that_works_on_a_gpu_takes_time(device: CudaDevice) -> None:
    stream, buffer, staging = device.stream("work"), device.empty((1 << 20,)), device.staging((1 << 20,))
    device.upload(buffer, staging, stream)
    finish(device, stream)
    first = device.busy()["upload"]
    assert 0 < first < 1
    device.upload(buffer, staging, stream)
    finish(device, stream)
    assert device.busy()["upload"] > first


def test_work_that_still_runs_is_not_counted_nor_waited_for(memory: Any) -> None:
    device = CudaDevice(memory)
    stream, other = device.stream("slow"), device.stream("quick")
    buffer, staging = device.empty((256,)), device.staging((256,))
    memory.late = True
    device.upload(buffer, staging, stream)
    memory.late = False
    device.download(staging, buffer, other)
    before = memory.synchronised
    assert device.busy()["upload"] == 0
    assert device.busy()["download"] == pytest.approx(0.001)
    assert memory.synchronised == before
    memory.catch_up()
    assert device.busy()["upload"] == pytest.approx(0.001)


def test_timing_takes_few_events_and_no_more_than_it_may(memory: Any) -> None:
    clock = StageClock(memory, pending=3)

    def work(count: int) -> None:
        for _ in range(count):
            with clock.timed("decode", 1):
                memory.clear(0, 0, 1)

    work(100)
    assert len(memory.events) == 2
    memory.late = True
    work(100)
    assert len(memory.events) == 6
    memory.catch_up()
    assert clock.read()["decode"] == pytest.approx(0.103)


def test_an_error_in_what_is_called_is_raised_and_leaves_the_clock_in_order(memory: Any) -> None:
    device = CudaDevice(memory)
    stream = device.stream("work")

    def fail() -> None:
        raise BackendError("it failed")

    for _ in range(3):
        with pytest.raises(BackendError, match="it failed"):
            device.call(stream, fail, "decode")
    assert len(memory.events) == 2
    assert device.busy()["decode"] == 0


def test_threads_may_call_it_at_the_same_time(device: CudaDevice) -> None:
    failures: list[BaseException] = []

    def work(value: int) -> None:
        try:
            stream, buffer, event = device.stream(str(value)), device.empty((512,)), device.event()
            staging, back = device.staging((512,)), device.staging((512,))
            for _ in range(50):
                staging[:] = value
                device.upload(buffer, staging, stream)
                device.download(back, buffer, stream)
                device.record(event, stream)
                device.synchronise(event)
                assert (back == value).all()
                device.busy()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(value,)) for value in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert device.busy()["download"] > 0


def test_events_and_streams_that_nobody_holds_are_used_again(memory: Any) -> None:
    device = CudaDevice(memory)
    handles = set()
    for _ in range(10):
        stream = device.stream("work")
        handles.add(stream.handle)
        finish(device, stream)
        del stream
        gc.collect()
    assert len(memory.events) == len(handles) == 1
    first, second = device.stream("first"), device.stream("second")
    assert first.handle != second.handle


def test_streams_of_another_device_are_refused(device: CudaDevice) -> None:
    host = HostDevice()
    try:
        with pytest.raises(TypeError, match="HostStream belongs to another device"):
            device.record(device.event(), host.stream("theirs"))
    finally:
        host.close()


def test_closing_twice_does_no_harm_and_the_times_stay(memory: Any) -> None:
    device = CudaDevice(memory)
    stream, buffer = device.stream("work"), device.empty((256,))
    device.upload(buffer, device.staging((256,)), stream)
    busy = device.busy()
    device.close()
    device.close()
    assert memory.closed == 1
    assert device.busy() == busy
    assert busy["upload"] > 0
    del buffer


def test_a_gpu_that_failed_is_closed_without_another_error(memory: Any) -> None:
    device = CudaDevice(memory)
    memory.broken = True
    assert not device.settle()
    device.close()
    assert memory.closed == 1


def test_closing_waits_for_what_is_queued(memory: Any) -> None:
    device = CudaDevice(memory)
    device.stream("work")
    before = memory.synchronised
    device.close()
    assert memory.synchronised == before + 2  # that stream, and the device's own
