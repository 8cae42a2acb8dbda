from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import pytest

from fgnet.engine import nvtx_ranges
from fgnet.engine.nvtx_ranges import named_range


@pytest.fixture(autouse=True)
def _asked_anew() -> Iterator[None]:
    nvtx_ranges._annotate.cache_clear()
    yield
    nvtx_ranges._annotate.cache_clear()


def test_a_range_is_one_of_nvtx_where_that_is_installed() -> None:
    nvtx = pytest.importorskip("nvtx")
    with named_range("decode") as entered:
        assert isinstance(entered, nvtx.annotate)


def test_a_range_is_nothing_where_it_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvtx_ranges, "find_spec", lambda _: None)
    assert isinstance(named_range("decode"), nullcontext)
