"""The CPU: nothing is queued, nothing is copied, so most of a device's duties are none."""

import contextlib
import platform
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from synerdiff.host import usable_cores
from synerdiff.models.device.contract import Capture, Device, Lend, Mark, Timeline
from synerdiff.registry import default_domain

_CPU_INFO = Path("/proc/cpuinfo")


class _WallClock:
    """Marks are ns since 1970, and over as soon as they are made."""

    def mark(self) -> Mark:
        return time.time_ns()

    def wait(self, mark: Mark) -> None:
        pass

    def unix_ns(self, mark: Mark) -> int:
        return int(mark)


class CpuDevice(Device):
    """This host's CPU."""

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

    def memory_limit_bytes(self) -> int:
        """Not known: it is the process's memory, which its container bounds."""
        return 0

    def restart_peak(self) -> None:
        """Nothing: see `peak_bytes`."""

    def peak_bytes(self) -> int:
        """Not counted here: measurements look at the process from outside."""
        return 0

    def free_caches(self) -> None:
        """Nothing is held."""

    def upload(self, host: Tensor) -> Tensor:
        """The tensor itself."""
        return host

    def download(self, tensor: Tensor) -> Tensor:
        """The tensor itself."""
        return tensor

    def begin_download(self, tensor: Tensor) -> Tensor:
        """The tensor itself."""
        return tensor

    def timeline(self) -> Timeline:
        """The wall clock: work is done when its call returns."""
        return _WallClock()

    @contextlib.contextmanager
    def beside(self) -> Iterator[Lend]:
        """Nothing to do: another thread's work is beside the steps."""
        yield _lent

    def capture(self, call: Callable[[], Tensor]) -> Capture:
        """Impossible, as `captures` says: raises RuntimeError."""
        raise RuntimeError("nothing is captured on CPUs")

    def captured_bytes(self) -> int:
        """None."""
        return 0


def _lent(tensors: Iterable[Tensor]) -> None:
    """Memory of the CPU has no owner among streams."""


def _cpu_model() -> str:
    """The name in /proc/cpuinfo; processors that give none there (many ARM ones) are known by their architecture."""
    lines = _CPU_INFO.read_text(encoding="utf-8").splitlines() if _CPU_INFO.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return " ".join(names[0].split()) if names and names[0] else platform.machine()
