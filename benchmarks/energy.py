"""How much energy was used? Asked of the counters of the CPU's packages (RAPL) or of the GPU's driver (NVML)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fgnet.benchmarks.nvidia_driver import used_joules
from fgnet.engine.torch_runner import Device

_POWERCAP = Path("/sys/class/powercap")


@dataclass(frozen=True)
class EnergyCounter:
    """Where energy can be read, if anywhere. It is that of the whole device, of whatever program.

    Attributes:
        source: "RAPL", "NVML", or None.
        reason: why there is none; None where there is one.
        packages: folders of the CPU's packages.
    """

    source: str | None
    reason: str | None
    packages: tuple[Path, ...] = ()

    def read(self) -> tuple[float, ...]:
        """Joules since some time, one number for each package or for the GPU; none without a source."""
        if self.source == "NVML":
            joules = used_joules()
            return () if joules is None else (joules,)
        return tuple(_microjoules(package / "energy_uj") / 1e6 for package in self.packages)

    def used(self, before: Sequence[float], after: Sequence[float]) -> float | None:
        """Joules between two readings; a package's counter begins anew when it is full."""
        if not before or len(before) != len(after):
            return None
        joules = 0.0
        for index, (first, last) in enumerate(zip(before, after, strict=True)):
            joules += last - first
            if last < first and self.packages:
                joules += _microjoules(self.packages[index] / "max_energy_range_uj") / 1e6
        return joules


def energy_counter(device: Device) -> EnergyCounter:
    """The counter of a device."""
    if device == "cuda":
        if used_joules() is None:
            return EnergyCounter(None, "the GPU's driver counts no energy")
        return EnergyCounter("NVML", None)
    # Beside packages there are their parts, and the whole platform, which would count them twice.
    packages = [
        folder
        for folder in sorted(_POWERCAP.glob("intel-rapl:*"))
        if (folder / "name").is_file() and (folder / "name").read_text(encoding="ascii").startswith("package")
    ]
    if not packages:
        return EnergyCounter(None, f"the system offers no counters of the CPU's energy ({_POWERCAP}/intel-rapl*)")
    try:
        for package in packages:
            _microjoules(package / "energy_uj")
    except OSError:
        return EnergyCounter(None, f"{packages[0]}/energy_uj can only be read by the system's administrator")
    return EnergyCounter("RAPL", None, tuple(packages))


def _microjoules(file: Path) -> int:
    return int(file.read_text(encoding="ascii"))
