"""Fixtures that several rooms share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

_SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """Path of a file of real data beside the repository; skips the test, naming the file, where it is absent."""

    def find(name: str) -> Path:
        path = _SHARED / name
        if not path.is_file():
            pytest.skip(f"real data file is missing: {path}")
        return path

    return find
