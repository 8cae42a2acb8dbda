"""The host as a device: what becomes of its threads when something fails, ends or is forgotten."""

from __future__ import annotations

import gc
import itertools
import threading
import time
from typing import Any

import pytest

from fgnet.engine.device import Event, Stream
from fgnet.engine.host_device import HostDevice

_SECONDS = 20.0
_names = (f"stream {number}" for number in itertools.count())


def recorded(device: HostDevice, stream: Stream) -> Event:
    event = device.event()
    device.record(event, stream)
    return event


def fail() -> None:
    raise ZeroDivisionError("it went wrong")


def test_what_fails_reaches_whoever_waits_and_drops_what_follows(device: HostDevice) -> None:
    done = list[str]()
    stream = device.stream("a")
    device.call(stream, lambda: done.append("before"), "encode")
    before = recorded(device, stream)
    device.call(stream, fail, "encode")
    device.call(stream, lambda: done.append("after"), "encode")
    after = recorded(device, stream)
    device.synchronise(before)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError, match="it went wrong"):
            device.synchronise(after)
    assert done == ["before"]


def test_what_fails_reaches_whoever_waits_through_other_streams_and_no_one_else(device: HostDevice) -> None:
    done = list[str]()
    broken, behind, far, beside = (device.stream(name) for name in "abcd")
    device.call(broken, fail, "upload")
    device.wait(behind, recorded(device, broken))
    device.call(behind, lambda: done.append("behind"), "encode")
    device.wait(far, recorded(device, behind))
    device.call(far, lambda: done.append("far"), "blend")
    device.call(beside, lambda: done.append("beside"), "blend")
    device.synchronise(recorded(device, beside))
    with pytest.raises(ZeroDivisionError, match="it went wrong"):
        device.synchronise(recorded(device, far))
    assert done == ["beside"]


def test_the_first_failure_is_the_one_that_is_told(device: HostDevice) -> None:
    def fail_otherwise() -> None:
        raise KeyError("another")

    first, second = device.stream("a"), device.stream("b")
    device.call(first, fail_otherwise, "encode")
    other = recorded(device, first)
    device.call(second, fail, "decode")
    device.wait(second, other)
    with pytest.raises(ZeroDivisionError):
        device.synchronise(recorded(device, second))


def test_errors_that_end_programs_are_no_different(device: HostDevice) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    stream = device.stream("a")
    device.call(stream, interrupt, "encode")
    with pytest.raises(KeyboardInterrupt):
        device.synchronise(recorded(device, stream))


def test_a_stream_of_a_name_is_the_same_one_until_it_failed(device: HostDevice) -> None:
    stream = device.stream("a")
    device.synchronise(recorded(device, stream))
    assert device.stream("a") is stream
    assert device.stream("b") is not stream
    device.call(stream, fail, "encode")
    with pytest.raises(ZeroDivisionError):
        device.synchronise(recorded(device, stream))
    again = device.stream("a")
    assert again is not stream
    assert device.stream("a") is again
    device.synchronise(recorded(device, again))


def test_streams_and_events_of_other_devices_are_refused(device: HostDevice) -> None:
    other: Any = object()
    with pytest.raises(TypeError, match="another device"):
        device.call(other, lambda: None, "read")
    with pytest.raises(TypeError, match="another device"):
        device.synchronise(other)


def assert_ended(names: set[str]) -> None:
    latest = time.monotonic() + _SECONDS
    while names & {thread.name for thread in threading.enumerate()}:
        assert time.monotonic() < latest, "threads are left"
        time.sleep(0.01)


def test_closing_does_what_is_queued_first_and_ends_the_threads() -> None:
    device, done, names = HostDevice(), list[int](), {next(_names), next(_names)}
    streams = [device.stream(name) for name in names]
    for stream in streams:
        device.call(stream, lambda: time.sleep(0.02), "encode")
        device.call(stream, lambda: done.append(1), "encode")
    for _ in range(2):
        device.close()
        assert done == [1, 1]
        assert not names & {thread.name for thread in threading.enumerate()}
    with pytest.raises(RuntimeError, match="is closed"):
        device.call(streams[0], lambda: None, "encode")
    with pytest.raises(RuntimeError, match="is closed"):
        recorded(device, streams[0])


@pytest.mark.parametrize("fate", ["idle", "worked", "failed", "failed and asked for again"])
def test_a_device_that_is_forgotten_ends_its_threads(fate: str) -> None:
    names = {next(_names), next(_names)}

    def use() -> None:
        device = HostDevice()
        for name in names:
            stream = device.stream(name)
            if fate == "idle":
                continue
            device.call(stream, fail if "failed" in fate else lambda: None, "encode")
            event = recorded(device, stream)
            if "failed" in fate:
                with pytest.raises(ZeroDivisionError):
                    device.synchronise(event)
            else:
                device.synchronise(event)
            if "again" in fate:
                assert device.stream(name) is not stream

    use()
    gc.collect()
    assert_ended(names)
