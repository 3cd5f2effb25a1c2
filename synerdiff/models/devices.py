"""What device a worker runs on, and which domain that makes it part of."""

import platform
from pathlib import Path

import torch

from synerdiff.host import usable_cores
from synerdiff.registry import default_domain

_CPU_INFO = Path("/proc/cpuinfo")


def device_domain(device: torch.device) -> str:
    """The domain of the workers on this device: its GPU's UUID, or without a GPU this host's CPU."""
    if device.type == "cuda":
        return default_domain(str(torch.cuda.get_device_properties(device).uuid))
    return default_domain()


def device_name(device: torch.device) -> str:
    """The hardware, for people and for telling profiles apart: "cpu: AMD EPYC Processor, 2 cores"."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return f"cuda: {properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    cores = usable_cores()
    return f"cpu: {_cpu_model()}, {cores} core{'s' if cores > 1 else ''}"


def _cpu_model() -> str:
    """The name in /proc/cpuinfo; processors that give none there (many ARM ones) are known by their architecture."""
    lines = _CPU_INFO.read_text(encoding="utf-8").splitlines() if _CPU_INFO.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return " ".join(names[0].split()) if names and names[0] else platform.machine()
