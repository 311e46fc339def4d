"""Energy of a run: measured where a counter can be read, estimated and called so where none can.

E = device energy × PUE; CO₂ = E × carbon intensity (the two-step form of Parcollet & Ravanelli 2021). PUE and intensity are
parameters with their sources, written down beside the figure, so that a reader can put in others.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from isogloss.core.errors import ConfigError

Kind = Literal["measured", "estimated"]
_RAPL = Path("/sys/class/powercap")
_JOULES_PER_KWH = 3.6e6


@dataclass(frozen=True)
class EnergyAssumptions:
    """What cannot be measured here, each with where it comes from.

    `watts_per_core` is used where no processor counter is readable: a busy core's share of a server's power.
    """

    watts_per_core: float = 10.0
    watts_per_core_source: str = "assumed: about 200 W over 20 cores for a busy server processor"
    pue: float = 1.0
    pue_source: str = "assumed: no cooling or other overhead counted"
    carbon_kg_per_kwh: float | None = None
    carbon_source: str = ""

    def __post_init__(self) -> None:
        if self.watts_per_core <= 0:
            raise ConfigError(f"`watts_per_core` must be positive, but is {self.watts_per_core}")
        if self.pue <= 0:
            raise ConfigError(f"`pue` must be positive, but is {self.pue}")
        if self.carbon_kg_per_kwh is not None and (self.carbon_kg_per_kwh < 0 or not self.carbon_source):
            raise ConfigError(
                f"`carbon_kg_per_kwh` must not be negative and needs its `carbon_source`, but they are "
                f"{self.carbon_kg_per_kwh} and `{self.carbon_source}`"
            )


@dataclass(frozen=True)
class EnergyPart:
    """The energy of one kind of device: how it was found, in kWh, and whether that was a measurement."""

    device: str
    method: str
    kind: Kind
    kwh: float


class EnergyMeter:
    """A context manager: energy, wall time and processor time of what runs inside, in this process and its children.

    Graphics cards are read from NVML's energy counter where `nvidia-ml-py` is installed and a card has one, the processor
    from RAPL where the kernel lets us read it (the whole machine's, not this process's). Else processor time × watts per
    core, which is an estimate and labelled so. A figure with any estimated part is an estimate.
    """

    def __init__(self, assumptions: EnergyAssumptions | None = None, *, rapl_root: Path = _RAPL) -> None:
        self.assumptions = assumptions or EnergyAssumptions()
        self.wall_seconds = 0.0
        self.cpu_seconds = 0.0
        self.parts: list[EnergyPart] = []
        self._rapl_root = rapl_root
        self._gpus: list[tuple[str, Callable[[], float]]] = []

    def __enter__(self) -> Self:
        self._gpus = _nvml_counters()
        self._gpu_before = [read() for _, read in self._gpus]
        self._rapl_before = _read_rapl(self._rapl_root)
        self._cpu_before = _cpu_seconds()
        self._wall_before = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.wall_seconds = time.monotonic() - self._wall_before
        self.cpu_seconds = _cpu_seconds() - self._cpu_before
        self.parts = [self._cpu_part()]
        for (name, read), before in zip(self._gpus, self._gpu_before, strict=True):
            joules = read() - before
            self.parts.append(EnergyPart(name, "NVML total energy counter", "measured", joules / _JOULES_PER_KWH))
        if not self._gpus and _uses_cuda():
            self.parts.append(EnergyPart("gpu", "not counted: no NVML energy counter", "estimated", 0.0))

    def _cpu_part(self) -> EnergyPart:
        after = _read_rapl(self._rapl_root)
        if self._rapl_before and after.keys() == self._rapl_before.keys():
            joules = 0.0
            for name, (value, largest) in after.items():
                spent = value - self._rapl_before[name][0]
                joules += (spent + largest if spent < 0 else spent) / 1e6
            return EnergyPart("cpu", "RAPL package counters (whole machine)", "measured", joules / _JOULES_PER_KWH)
        watts = self.assumptions.watts_per_core
        method = f"processor time × {watts:g} W per core"
        return EnergyPart("cpu", method, "estimated", self.cpu_seconds * watts / _JOULES_PER_KWH)

    @property
    def kind(self) -> Kind:
        """Measured only if every part is."""
        return "estimated" if any(part.kind == "estimated" for part in self.parts) else "measured"

    @property
    def kwh(self) -> float:
        """Energy of all devices × PUE, in kWh."""
        return sum(part.kwh for part in self.parts) * self.assumptions.pue

    def record(self) -> dict[str, Any]:
        """Return everything needed to compute the figure again, for JSON; energies to three significant digits."""
        intensity = self.assumptions.carbon_kg_per_kwh
        return {
            "kind": self.kind,
            "kwh": _round(self.kwh),
            "co2_kg": None if intensity is None else _round(self.kwh * intensity),
            "wall_seconds": round(self.wall_seconds, 2),
            "cpu_seconds": round(self.cpu_seconds, 2),
            "num_gpus": len(self._gpus),
            "parts": [{**asdict(part), "kwh": _round(part.kwh)} for part in self.parts],
            **asdict(self.assumptions),
        }

    def __str__(self) -> str:
        about = "about " if self.kind == "estimated" else ""
        methods = ", ".join(dict.fromkeys(part.method for part in self.parts))
        return f"{about}{_round(self.kwh, 2):g} kWh ({self.kind}: {methods})"


def add_records(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Add the records of several runs; the sum is measured only if all of them were."""
    kinds = {record["kind"] for record in records}
    co2 = [record["co2_kg"] for record in records]
    return {
        "kind": "measured" if kinds == {"measured"} else "estimated",
        "kwh": _round(sum(record["kwh"] for record in records)),
        "co2_kg": None if None in co2 or not co2 else _round(sum(co2)),
        "wall_seconds": round(sum(record["wall_seconds"] for record in records), 2),
        "cpu_seconds": round(sum(record["cpu_seconds"] for record in records), 2),
        "runs": len(records),
    }


def _round(value: float, digits: int = 3) -> float:
    return float(f"{value:.{digits}g}")


def _cpu_seconds() -> float:
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _read_rapl(root: Path) -> dict[str, tuple[int, int]]:
    """Return microjoules and the counter's range of each package; nothing where any of them cannot be read."""
    found = {}
    try:
        for zone in sorted(root.glob("intel-rapl:*")):
            # Packages are intel-rapl:N; their parts, intel-rapl:N:M, are already in them.
            if zone.name.count(":") == 1 and (zone / "name").read_text().startswith("package"):
                energy = int((zone / "energy_uj").read_text())
                found[zone.name] = (energy, int((zone / "max_energy_range_uj").read_text()))
    except (OSError, ValueError):
        return {}
    return found


def _uses_cuda() -> bool:
    """True if this process has work on a graphics card (without importing torch for it)."""
    torch = sys.modules.get("torch")
    return torch is not None and bool(torch.cuda.is_initialized())


def _nvml_counters() -> list[tuple[str, Callable[[], float]]]:
    """Return the name and a reader (joules) of each visible graphics card that has an energy counter."""
    try:
        import pynvml
    except ImportError:
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    counters: list[tuple[str, Callable[[], float]]] = []
    try:
        pynvml.nvmlInit()
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            uuid = str(pynvml.nvmlDeviceGetUUID(handle))
            if visible is not None and not {str(index), uuid} & {part.strip() for part in visible.split(",")}:
                continue
            pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)

            def read(handle: Any = handle) -> float:
                return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1e3

            counters.append((f"gpu {index}: {pynvml.nvmlDeviceGetName(handle)}", read))
    except pynvml.NVMLError:
        return []
    return counters
