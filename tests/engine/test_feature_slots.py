"""Slots of features, in host memory that stands for the device's: what is moved, and what fits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgnet.engine.cuda_memory import DeviceMemoryError
from fgnet.engine.device import Buffer
from fgnet.engine.feature_slots import FeatureSlots, fewer_slots


def _nothing(_: str) -> None:
    raise AssertionError("nothing was to be said")


@given(count=st.integers(1, 20), target=st.integers(0, 10), distance=st.integers(1, 25))
def test_sections_are_moved_as_a_plain_copy_moves_them(
    host_memory: Any, count: int, target: int, distance: int
) -> None:
    source = target + distance
    memory = host_memory(1 << 20)
    slots = FeatureSlots(memory, {"coarse": 256, "fine": 512}, slots=source + count, least=1, say=_nothing)
    random = np.random.default_rng(0)
    before = {
        name: random.integers(0, 256, (slots.slots, size), np.uint8) for name, size in (("coarse", 256), ("fine", 512))
    }
    for name, values in before.items():
        memory.upload(slots.at(0)[name], values, 0)
    slots.move(source, target, count, 0)
    for name, values in before.items():
        after = np.empty_like(values)
        memory.download(after, slots.at(0)[name], 0)
        np.testing.assert_array_equal(after[target : target + count], values[source:])
        np.testing.assert_array_equal(after[:target], values[:target])


def test_gray_is_copied_to_its_slots(host_memory: Any) -> None:
    memory = host_memory(1 << 20)
    slots = FeatureSlots(memory, {"gray": 256, "fine": 512}, slots=4, least=4, say=_nothing)
    gray = np.random.default_rng(0).integers(0, 256, (2, 16, 16), np.uint8)
    slots.load(Buffer(gray.ctypes.data, gray.shape, gray.dtype), 1, 0)
    after = np.empty((4, 16, 16), np.uint8)
    memory.download(after, slots.at(0)["gray"], 0)
    np.testing.assert_array_equal(after[1:3], gray)
    assert (after[[0, 3]] == 0xA5).all()


def test_each_slot_has_its_address(host_memory: Any) -> None:
    slots = FeatureSlots(host_memory(1 << 20), {"coarse": 256, "fine": 512}, slots=8, least=4, say=_nothing)
    first, third = slots.at(0), slots.at(2)
    assert {name: third[name] - first[name] for name in first} == {"coarse": 512, "fine": 1024}


def test_fewer_slots_are_held_where_memory_is_short_and_it_is_said(host_memory: Any) -> None:
    said: list[str] = []
    memory = host_memory(10 * 768)
    slots = FeatureSlots(memory, {"coarse": 256, "fine": 512}, slots=32, least=4, say=said.append)
    assert 4 <= slots.slots <= 10
    assert said == [f"the GPU's memory holds gray and features of {slots.slots} sections, not of 32"]
    assert memory.free_bytes() == (10 - slots.slots) * 768


def test_a_device_too_small_for_one_block_is_refused_with_figures(host_memory: Any) -> None:
    memory = host_memory(3 << 20)
    with pytest.raises(
        DeviceMemoryError, match=r"4 sections that a block needs take 4 MiB, and the GPU has 3 MiB free"
    ):
        FeatureSlots(memory, {"coarse": 1 << 20}, slots=8, least=4, say=_nothing)
    assert not memory.held


def test_a_network_without_features_has_slots_all_the_same(host_memory: Any) -> None:
    assert FeatureSlots(host_memory(0), {}, slots=8, least=4, say=_nothing).slots == 8


@given(st.integers(1, 500), st.integers(1, 100), st.integers(0, 10**6), st.integers(0, 10**9))
def test_the_search_for_slots_ends(slots: int, least: int, section: int, free: int) -> None:
    fewer = fewer_slots(slots, least, section, free)
    assert fewer == 0 or least <= fewer < slots
