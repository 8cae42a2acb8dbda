"""Which machine was measured? What decides speed, and nothing that tells whose machine it is."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import time
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from fgnet.benchmarks.nvidia_driver import Gpu, gpus

# What the kernels of inference libraries choose their code by.
_FLAGS = (
    *("sse4_2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16"),
    *("avx512_fp16", "avx_vnni", "amx_tile", "amx_bf16", "amx_int8"),
    *("asimd", "asimdhp", "asimddp", "bf16", "i8mm", "sve", "sve2"),
)
_PACKAGES = (
    *("fgnet", "numpy", "torch", "sam2", "onnx", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt"),
    *("tensorrt-rtx", "tensorrt_rtx_cu13_bindings", "tensorrt_rtx_cu12_bindings", "pycuda", "cuda-bindings"),
    *("waterz", "monai"),
)
_BUSY, _WATCHED_SECONDS = 0.25, 0.5
_PROC = Path("/proc")
_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Machine:
    """A machine as a benchmark sees it.

    Attributes:
        cpu: its model.
        cores: that this process may use.
        quota: cores' worth of time that its group may use, where that is limited.
        simd: instruction sets of the CPU that inference libraries use.
        memory_bytes: of the machine, or of the group where that is limited.
        gpus: what the NVIDIA driver finds.
        system: the operating system and its kernel.
        python: its version.
        packages: versions of those that are installed.
        commit: of fgnet, where it runs from a git checkout; "+" after it where files differ from the commit.
        load: cores that others kept busy at the start, for half a second in which this process slept: they make timings
            noisy. The average over a minute would count the benchmark before. Without Linux it is that average.
    """

    cpu: str
    cores: int
    quota: float | None
    simd: tuple[str, ...]
    memory_bytes: int
    gpus: tuple[Gpu, ...]
    system: str
    python: str
    packages: dict[str, str]
    commit: str | None
    load: float | None

    @property
    def busy(self) -> bool:
        """Whether others used more than a quarter of the cores at the start."""
        return self.load is not None and self.load > _BUSY * self.cores

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a report; of the GPUs' memory only how much there is."""
        data = asdict(self)
        for gpu in data["gpus"]:
            del gpu["used_bytes"]
        return data


def describe_machine() -> Machine:
    """This machine."""
    told = _read(_PROC / "cpuinfo")
    names = re.findall(r"^(?:model name|Model|cpu model)\s*:\s*(.+)$", told, re.MULTILINE)
    flags = set(" ".join(re.findall(r"^(?:flags|Features)\s*:\s*(.+)$", told, re.MULTILINE)).split())
    return Machine(
        cpu=(names[0] if names else platform.processor() or platform.machine()).strip(),
        cores=usable_cores(),
        quota=_quota(),
        simd=tuple(flag for flag in _FLAGS if flag in flags),
        memory_bytes=_memory()[0],
        gpus=gpus(),
        system=_system(),
        python=f"{platform.python_implementation()} {platform.python_version()}",
        packages=_packages(),
        commit=_commit(Path(__file__).resolve()),
        load=_load(),
    )


def _load() -> float | None:
    before = _busy_and_all()
    if before is None:
        return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
    time.sleep(_WATCHED_SECONDS)
    after = _busy_and_all() or before
    busy, ticks = (b - a for a, b in zip(before, after, strict=True))
    return round(busy / max(ticks, 1) * (os.cpu_count() or 1), 2)


def _busy_and_all() -> tuple[int, int] | None:
    """Ticks of all cores since the machine was started: those with work to do, and all."""
    match = re.match(r"cpu +([\d ]+)", _read(_PROC / "stat"))
    if match is None:
        return None
    # Guests' time, behind the first eight, is part of users' already.
    user, nice, system, idle, waiting, *rest = map(int, match[1].split()[:8])
    busy = user + nice + system + sum(rest)
    return busy, busy + idle + waiting


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_memory() -> int | None:
    """Bytes that can be taken before the machine, or the group of this process, runs out; None where nothing says."""
    return _memory()[1]


def _memory() -> tuple[int, int | None]:
    """Bytes in all, and those available."""
    kilobytes = dict(re.findall(r"^(\w+):\s+(\d+) kB$", _read(_PROC / "meminfo"), re.MULTILINE))
    total = int(kilobytes.get("MemTotal", 0)) << 10
    available = int(kilobytes["MemAvailable"]) << 10 if "MemAvailable" in kilobytes else None
    if (limit := _read(_CGROUP / "memory.max").strip()).isdecimal() and int(limit) < (total or int(limit) + 1):
        total = int(limit)
        # Files that were read lie in memory as long as nobody wants it.
        cached = re.search(r"^inactive_file (\d+)$", _read(_CGROUP / "memory.stat"), re.MULTILINE)
        used = int(_read(_CGROUP / "memory.current") or 0) - (int(cached[1]) if cached else 0)
        available = total - used if available is None else min(available, total - used)
    return total, available


def _quota() -> float | None:
    match = re.match(r"(\d+) (\d+)", _read(_CGROUP / "cpu.max"))
    return None if match is None else round(int(match[1]) / int(match[2]), 2)


def _system() -> str:
    """The distribution and the kernel's version, without what its builder called it."""
    try:
        name = platform.freedesktop_os_release().get("PRETTY_NAME", platform.system())
    except OSError:
        name = platform.system()
    kernel = re.match(r"[\d.]*\d", platform.release())
    return f"{name}, {platform.system()} {kernel[0] if kernel else platform.release()}"


def _packages() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _commit(file: Path) -> str | None:
    """The commit that a file is part of, if it is; an environment inside somebody's repository is not."""
    try:
        if _git(file.parent, "ls-files", file.name) != file.name:
            return None
        return _git(file.parent, "rev-parse", "HEAD") + ("+" if _git(file.parent, "status", "--porcelain") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
