"""This host's CPU as a device."""

import platform
from pathlib import Path

import torch

from synerdiff.host import usable_cores
from synerdiff.models.device.contract import Device
from synerdiff.registry import default_domain

_CPU_INFO = Path("/proc/cpuinfo")


class CpuDevice(Device):
    """A call returns when its work is done. Memory is the process's, which its container bounds."""

    torch_device = torch.device("cpu")
    compiles = True

    @property
    def domain(self) -> str:
        """This host's CPU."""
        return default_domain()

    @property
    def name(self) -> str:
        """As "cpu: AMD EPYC Processor, 2 cores"."""
        cores = usable_cores()
        return f"cpu: {_cpu_model()}, {cores} core{'s' if cores > 1 else ''}"

    @property
    def fastest_dtype(self) -> torch.dtype:
        """bfloat16 only with AMX tiles and AVX-512: otherwise its convolutions are slow, or its attention fails."""
        has_amx = getattr(torch.cpu, "_is_amx_tile_supported", None)
        kernels = torch.backends.cpu.get_cpu_capability()
        return torch.bfloat16 if has_amx is not None and has_amx() and "AVX512" in kernels else torch.float32

    def cpu_threads(self, own: int) -> int:
        """`own`, or torch's choice."""
        return own or torch.get_num_threads()


def _cpu_model() -> str:
    """The name in /proc/cpuinfo; processors that give none there (many ARM ones) are known by their architecture."""
    lines = _CPU_INFO.read_text(encoding="utf-8").splitlines() if _CPU_INFO.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return " ".join(names[0].split()) if names and names[0] else platform.machine()
