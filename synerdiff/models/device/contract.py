"""The device as workers use it. Kinds: `CpuDevice`, `CudaDevice`.

The work given to a device is done in order and possibly later: on CUDA a call returns once its kernels are queued.
A thread must not wait in the midst of a plan, so a method waits only if its docstring states it.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

Mark = Any
"""A moment in the order of a device's work, of a type that only its device knows."""

Lend = Callable[[Iterable[Tensor]], None]


class Capture(Protocol):
    """A computation that can be run again as it was captured: from the same inputs to the same output, in place."""

    @property
    def output(self) -> Tensor:
        """Where it leaves its answer."""
        ...

    def replay(self) -> None:
        """Queue it once more."""


class Timeline(Protocol):
    """Moments in the order of a device's work, whose times are read later. One thread marks, one waits and reads."""

    def mark(self) -> Mark:
        """The moment when all work that this thread has given so far will be done."""

    def wait(self, mark: Mark) -> None:
        """Wait for a moment. Raises the error of the work before it."""

    def unix_ns(self, mark: Mark) -> int:
        """The wall clock at a moment, in ns. Waits for it, and raises as `wait` does."""


class _WallClock:
    """Marks are ns since 1970, and over as soon as they are made."""

    def mark(self) -> Mark:
        return time.time_ns()

    def wait(self, mark: Mark) -> None:
        pass

    def unix_ns(self, mark: Mark) -> int:
        return int(mark)


@dataclass(frozen=True)
class DeviceOptions:
    """Options for GPUs alone.

    `cuda_graphs`: replay them. `memory_limit_bytes`: most device memory to take; 0: the part `memory_share` (0 to 1) of
    all there is. `cudnn_benchmark`: let cuDNN time its kernels at the first call of each shape.
    """

    cuda_graphs: bool = True
    memory_limit_bytes: int = 0
    memory_share: float = 1.0
    cudnn_benchmark: bool = False


DEFAULTS = DeviceOptions()


class Device(ABC):
    """One device in one process. Methods may be called from any thread, each for the work of its own thread.

    `torch_device`: as torch names it. `captures`: whether `capture` works and is wanted. `compiles`: whether compiled
    packages are of use here, where a call returns when its work is done. `queues`: whether calls return before that.
    Methods that are not abstract are those of CPUs: they queue, copy, capture and count nothing.
    """

    torch_device: torch.device
    captures: bool = False
    compiles: bool = False
    queues: bool = False

    # ---- identity

    @property
    @abstractmethod
    def domain(self) -> str:
        """The domain of the workers on this device: its GPU's UUID, or without a GPU this host's CPU."""

    @property
    @abstractmethod
    def name(self) -> str:
        """The hardware, for people and for telling profiles apart."""

    @property
    @abstractmethod
    def fastest_dtype(self) -> torch.dtype:
        """The fastest dtype that it computes natively."""

    @abstractmethod
    def cpu_threads(self, own: int) -> int:
        """CPU threads that a worker with the setting `own` computes with (0: torch's choice); 0 on other devices."""

    # ---- memory

    def memory_limit_bytes(self) -> int:
        """Most memory that this process may take of it; 0 where that is not known."""
        return 0

    def restart_peak(self) -> None:  # noqa: B027
        """Start `peak_bytes` anew."""

    def peak_bytes(self) -> int:
        """Most bytes held at once since `restart_peak`; 0 where the device does not count them."""
        return 0

    def free_caches(self) -> None:  # noqa: B027
        """Free cached memory. May wait for the device's work."""

    # ---- copies

    def upload(self, host: Tensor) -> Tensor:
        """A CPU tensor on the device, for later work; on the CPU itself. Does not wait; `host` may change after."""
        return host

    def download(self, tensor: Tensor) -> Tensor:
        """A tensor of the device on the CPU, complete. Waits only for the work given before."""
        return tensor

    def begin_download(self, tensor: Tensor) -> Tensor:
        """A tensor of the device on the CPU, complete once a mark made after this has been waited for."""
        return tensor

    # ---- work

    def timeline(self) -> Timeline:
        """A timeline of the work that one thread will give. Make it before that work begins."""
        return _WallClock()

    def beside(self) -> AbstractContextManager[Lend]:
        """Work outside the order of steps; waits at its end. Pass results that live on to the yielded function."""
        return nullcontext(lambda tensors: None)

    def capture(self, call: Callable[[], Tensor]) -> Capture:
        """Run a computation a few times and capture it. Waits. Raises the error that prevents it."""
        raise RuntimeError(f"nothing is captured on {self.name}")

    def captured_bytes(self) -> int:
        """Bytes of the live captures and of the memory kept for the next; their inputs aside."""
        return 0
