"""What is asked of the driver, by a library with its functions, as there is a GPU on few machines."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fgnet.engine import gpu_driver
from fgnet.engine.gpu_driver import gpu_architecture, gpu_count, gpu_present

_DRIVER = r"""
int cuInit(unsigned flags) { return flags; }
int cuDeviceGetCount(int *count) { *count = 2; return 0; }
int cuDeviceGet(int *device, int number) { *device = 5 + number; return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    if (device != 5) return 101;
    *value = attribute == 75 ? 9 : attribute == 76 ? 0 : -1;
    return 0;
}
"""


@pytest.fixture(autouse=True)
def _forgets() -> Iterator[None]:
    """Answers are kept for good, but not those of these drivers."""

    def forget() -> None:
        gpu_count.cache_clear()
        gpu_architecture.cache_clear()

    forget()
    yield
    forget()


def test_gpus_are_counted_and_the_first_ones_architecture_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if (compiler := shutil.which("cc")) is None:
        pytest.skip("no C compiler here")
    (tmp_path / "driver.c").write_text(_DRIVER)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", tmp_path / "driver.so", tmp_path / "driver.c"], check=True)
    monkeypatch.setattr(gpu_driver, "_LIBRARY", str(tmp_path / "driver.so"))
    assert (gpu_count(), gpu_present(), gpu_architecture()) == (2, True, "sm90")


def test_without_a_driver_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_driver, "_LIBRARY", str(tmp_path / "none.so"))
    assert (gpu_count(), gpu_present(), gpu_architecture()) == (0, False, None)
