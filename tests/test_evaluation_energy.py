from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from isogloss.core.errors import ConfigError
from isogloss.evaluation.energy import EnergyAssumptions, EnergyMeter, add_records


def rapl(root: Path, microjoules: dict[str, int], largest: int = 1_000_000) -> Path:
    for zone, value in microjoules.items():
        folder = root / zone
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "name").write_text("package-0\n" if zone.count(":") == 1 else "core\n")
        (folder / "energy_uj").write_text(f"{value}\n")
        (folder / "max_energy_range_uj").write_text(f"{largest}\n")
    return root


def burn(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)


@pytest.mark.usefixtures("no_gpu")
def test_without_counters_it_is_an_estimate_of_processor_time(tmp_path: Path) -> None:
    assumptions = EnergyAssumptions(
        watts_per_core=12,
        watts_per_core_source="data sheet",
        pue=1.5,
        carbon_kg_per_kwh=0.05,
        carbon_source="grid, 2025",
    )
    with EnergyMeter(assumptions, rapl_root=tmp_path) as meter:
        burn(0.05)
    record = meter.record()
    assert record["kind"] == "estimated"
    assert record["cpu_seconds"] >= 0.05
    assert meter.kwh == pytest.approx(meter.cpu_seconds * 12 * 1.5 / 3.6e6)
    assert record["kwh"] == pytest.approx(meter.kwh, rel=0.005)
    assert record["co2_kg"] == pytest.approx(meter.kwh * 0.05, rel=0.01)
    assert record["watts_per_core_source"] == "data sheet"
    assert record["carbon_source"] == "grid, 2025"
    assert record["parts"][0]["method"] == "processor time × 12 W per core"
    assert str(meter).startswith("about ")
    json.dumps(record, allow_nan=False)


@pytest.mark.usefixtures("no_gpu")
def test_package_counters_are_read_once_and_may_wrap_around(tmp_path: Path) -> None:
    rapl(tmp_path, {"intel-rapl:0": 900_000, "intel-rapl:1": 5_000, "intel-rapl:0:0": 1})
    with EnergyMeter(rapl_root=tmp_path) as meter:
        rapl(tmp_path, {"intel-rapl:0": 100_000, "intel-rapl:1": 15_000, "intel-rapl:0:0": 500_000})
    # 200,000 µJ past the end of the counter, 10,000 µJ, and nothing for a part of a package.
    assert meter.kwh == pytest.approx(0.21 / 3.6e6)
    assert meter.kind == meter.record()["kind"] == "measured"
    assert meter.record()["co2_kg"] is None
    assert not str(meter).startswith("about ")


@pytest.mark.usefixtures("no_gpu")
def test_an_unreadable_counter_is_no_counter(tmp_path: Path) -> None:
    rapl(tmp_path, {"intel-rapl:0": 900_000})
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("denied")
    with EnergyMeter(rapl_root=tmp_path) as meter:
        pass
    assert meter.kind == "estimated"


class FakeNvml(SimpleNamespace):
    class NVMLError(Exception):
        pass

    def __init__(self, broken: bool = False) -> None:
        super().__init__()
        self.millijoules = [1_000, 5_000]
        self.broken = broken

    def nvmlInit(self) -> None:
        if self.broken:
            raise self.NVMLError

    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetUUID(self, handle: int) -> str:
        return f"GPU-{handle}"

    def nvmlDeviceGetName(self, handle: int) -> str:
        return "card"

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:
        return self.millijoules[handle]


def test_visible_cards_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    rapl(tmp_path, {"intel-rapl:0": 0})
    with EnergyMeter(rapl_root=tmp_path) as meter:
        nvml.millijoules = [9_000, 7_000]
    assert [part.device for part in meter.parts] == ["cpu", "gpu 1: card"]
    assert meter.kwh == pytest.approx(2 / 3.6e6)
    assert meter.record()["num_gpus"] == 1
    assert meter.kind == "measured"
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(broken=True))
    with EnergyMeter(rapl_root=tmp_path) as meter:
        pass
    assert len(meter.parts) == 1


@pytest.mark.usefixtures("no_gpu")
def test_a_sum_with_an_estimate_is_an_estimate(tmp_path: Path) -> None:
    records = []
    for folder in (tmp_path / "none", rapl(tmp_path / "some", {"intel-rapl:0": 0})):
        with EnergyMeter(rapl_root=folder) as meter:
            burn(0.01)
        records.append(meter.record())
    total = add_records(records)
    assert total["kind"] == "estimated"
    assert add_records(records[1:])["kind"] == "measured"
    assert total["kwh"] == pytest.approx(sum(r["kwh"] for r in records), rel=0.005)
    assert total["co2_kg"] is None


def test_assumptions_need_sources() -> None:
    with pytest.raises(ConfigError, match="needs its `carbon_source`"):
        EnergyAssumptions(carbon_kg_per_kwh=0.05)
    with pytest.raises(ConfigError, match="`pue` must be positive"):
        EnergyAssumptions(pue=0)
