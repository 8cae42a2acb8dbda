from __future__ import annotations

import ctypes
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from fgnet.benchmarks import machine, nvidia_driver
from fgnet.benchmarks.energy import EnergyCounter, energy_counter
from fgnet.benchmarks.machine import available_memory, describe_machine, usable_cores
from fgnet.benchmarks.nvidia_driver import Gpu, gpus, used_joules

MEMINFO = "MemTotal:       8000000 kB\nMemFree:         100000 kB\nMemAvailable:    6000000 kB\n"


def test_it_names_what_decides_speed() -> None:
    here = describe_machine()
    assert here.cpu
    assert 1 <= here.cores == usable_cores() <= (os.cpu_count() or 1)
    assert here.memory_bytes > 1 << 28
    assert here.python.split()[1] == platform.python_version()
    assert here.packages["numpy"] == np.__version__
    assert here.load is None or here.load >= 0


def test_it_is_plain_data_that_names_neither_host_nor_folder() -> None:
    text = json.dumps(describe_machine().to_dict())
    private = [socket.gethostname(), str(Path.home()), str(Path(machine.__file__).resolve().parent)]
    assert not [name for name in private if len(name) > 3 and name in text]
    assert "used_bytes" not in text


def test_memory_and_time_are_those_of_the_group_where_it_has_less(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "_PROC", tmp_path)
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    (tmp_path / "meminfo").write_text(MEMINFO)
    assert describe_machine().memory_bytes == 8000000 << 10
    assert available_memory() == 6000000 << 10
    assert describe_machine().quota is None
    for name, text in {
        "memory.max": "2000000000\n",
        "memory.current": "1500000000\n",
        "memory.stat": "anon 1\ninactive_file 400000000\n",
        "cpu.max": "150000 100000\n",
    }.items():
        (tmp_path / name).write_text(text)
    assert describe_machine().memory_bytes == 2000000000
    assert available_memory() == 900000000
    assert describe_machine().quota == 1.5


def test_without_the_kernels_files_it_still_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_PROC", tmp_path / "none")
    monkeypatch.setattr(machine, "_CGROUP", tmp_path / "none")
    here = describe_machine()
    assert here.cpu
    assert here.simd == ()
    assert available_memory() is None


def test_instruction_sets_are_those_of_the_cpu_that_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_PROC", tmp_path)
    (tmp_path / "cpuinfo").write_text("model name\t: A CPU\nflags\t\t: fpu avx2 amx_tile avx512f\n" * 2)
    here = describe_machine()
    assert here.cpu == "A CPU"
    assert here.simd == ("avx2", "avx512f", "amx_tile")


def test_a_machine_is_busy_when_a_quarter_of_its_cores_is() -> None:
    here = replace(describe_machine(), cores=8)
    assert not replace(here, load=1.9).busy
    assert replace(here, load=2.1).busy
    assert not replace(here, load=None).busy


def test_load_is_the_cores_that_others_use_while_this_process_sleeps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "_PROC", tmp_path)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    stat = tmp_path / "stat"
    stat.write_text("cpu  1000 0 500 9000 100 0 0 10 700 0\ncpu0 1 2 3\n")
    # Of 200 ticks, 40 of users, 5 of the system, 5 stolen by another machine; 100 idle and 50 waiting for a disk.
    later = "cpu  1040 0 505 9100 150 0 0 15 740 0\ncpu0 1 2 3\n"
    # Not the module's own `sleep`, which other threads of this process may call.
    monkeypatch.setattr(machine, "time", SimpleNamespace(sleep=lambda _: stat.write_text(later)))
    assert describe_machine().load == 8 * 50 / 200


def test_the_commit_is_that_of_tracked_files_only(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        command = ["git", *identity, "-C", str(tmp_path), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    file = tmp_path / "code.py"
    file.write_text("one = 1\n")
    git("init")
    assert machine._commit(file) is None
    git("add", "code.py")
    git("commit", "-m", "one")
    assert machine._commit(file) == git("rev-parse", "HEAD")
    file.write_text("two = 2\n")
    assert machine._commit(file) == git("rev-parse", "HEAD") + "+"


def test_no_driver_means_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvidia_driver, "_LIBRARY", "libthere-is-no-such-library.so")
    assert gpus() == ()
    assert used_joules() is None
    assert energy_counter("cuda") == EnergyCounter(None, "the GPU's driver counts no energy")


@pytest.mark.gpu
def test_the_driver_names_its_gpus() -> None:
    found = gpus()
    if not found:
        pytest.skip("no NVIDIA GPU here")
    for gpu in found:
        assert gpu.name
        assert gpu.driver
        assert gpu.architecture.startswith("sm")
        assert 0 <= gpu.used_bytes <= gpu.memory_bytes


_DRIVER = r"""
#include <string.h>
typedef struct { unsigned long long total, free, used; } memory;
int nvmlInit_v2(void) { return 0; }
int nvmlShutdown(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) { *device = (void *)(0x100000000 + index); return 0; }
int nvmlDeviceGetHandleByUUID(const char *uuid, void **device) {
    *device = (void *)0x100000001;
    return strcmp(uuid, "GPU-00010203-0405-0607-0809-0a0b0c0d0e0f");
}
int nvmlDeviceGetName(void *device, char *name, unsigned size) {
    strncpy(name, device == (void *)0x100000001 ? "second" : "first", size);
    return 0;
}
int nvmlSystemGetDriverVersion(char *version, unsigned size) { strncpy(version, "1.2", size); return 0; }
int nvmlDeviceGetMemoryInfo(void *device, memory *info) { info->total = 7; info->free = 4; info->used = 3; return 0; }
int nvmlDeviceGetTotalEnergyConsumption(void *device, unsigned long long *mj) {
    *mj = device == (void *)0x100000000 ? 5000000002500ull : 1500;
    return 0;
}
int nvmlDeviceGetCudaComputeCapability(void *device, int *major, int *minor) { *major = 8; *minor = 9; return 0; }
int cuInit(unsigned flags) { return flags; }
int cuDeviceGet(int *device, int number) { *device = 5 + number; return 0; }
int cuDeviceGetUuid_v2(unsigned char *uuid, int device) {
    for (int i = 0; i < 16; i++) uuid[i] = i;
    return device != 5;
}
"""


def test_the_drivers_answers_are_read_as_its_header_lays_them_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A library with the driver's functions, as there is a GPU on few machines."""
    source, library = tmp_path / "driver.c", tmp_path / "driver.so"
    source.write_text(_DRIVER)
    if (compiler := shutil.which("cc")) is None:
        pytest.skip("no C compiler here")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True)
    monkeypatch.setattr(nvidia_driver, "_LIBRARY", str(library))
    monkeypatch.setattr(nvidia_driver, "_CUDA", str(tmp_path / "none.so"))
    assert gpus() == (Gpu("first", "sm89", 7, 3, "1.2"), Gpu("second", "sm89", 7, 3, "1.2"))
    assert used_joules() == 5000000002.5
    assert energy_counter("cuda").source == "NVML"
    # CUDA's first GPU is another than the management library's.
    monkeypatch.setattr(nvidia_driver, "_CUDA", str(library))
    assert [gpu.name for gpu in gpus()] == ["second", "first"]
    assert used_joules() == 1.5


def test_importing_the_driver_needs_no_package() -> None:
    code = (
        "import sys; from fgnet.benchmarks import nvidia_driver; sys.exit(bool({'torch', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert ctypes.sizeof(nvidia_driver._Memory) == 24
