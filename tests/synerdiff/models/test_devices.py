"""Names of devices: those of the hardware, the same in every process of a machine."""

from pathlib import Path

import pytest
import torch

from synerdiff.host import usable_cores
from synerdiff.models import devices
from synerdiff.models.devices import device_name

CPU = torch.device("cpu")


def test_a_cpu_is_named_with_the_cores_that_this_process_may_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("processor\t: 0\nmodel name\t: AMD EPYC   Processor \n\nprocessor\t: 1\nmodel name\t: another\n")
    monkeypatch.setattr(devices, "_CPU_INFO", info)
    monkeypatch.setattr(devices, "usable_cores", lambda: 2)
    assert device_name(CPU) == "cpu: AMD EPYC Processor, 2 cores"
    monkeypatch.setattr(devices, "usable_cores", lambda: 1)
    assert device_name(CPU) == "cpu: AMD EPYC Processor, 1 core"


@pytest.mark.parametrize("text", ["", "processor\t: 0\nBogoMIPS\t: 50\n", "model name\t:\n"])
def test_a_cpu_without_a_name_goes_by_its_architecture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text(text)
    monkeypatch.setattr(devices, "_CPU_INFO", info)
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert device_name(CPU).startswith("cpu: aarch64, ")


def test_this_machine_has_a_name() -> None:
    assert device_name(CPU).endswith((f"{usable_cores()} cores", f"{usable_cores()} core"))
