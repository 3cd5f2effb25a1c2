"""A fake of the device interface: what workers ask of a device, in order, on the CPU. No GPU is simulated."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from weakref import WeakSet

from torch import Tensor

from synerdiff.models.device.contract import Capture, Lend, Mark, Timeline
from synerdiff.models.device.cpu import CpuDevice
from tests.waiting import HANG_S


@dataclass(frozen=True, eq=False)
class FakeCapture:
    """Computes the call again where a graph would be replayed; writes into the same buffer."""

    call: Callable[[], Tensor]
    output: Tensor
    asked: list[str]

    def replay(self) -> None:
        self.asked.append("replay")
        self.output.copy_(self.call())


@dataclass(frozen=True)
class FakeTimeline:
    """Moments are numbers of ns from 1 on. The work before one is done once somebody waits and `idle` is set."""

    asked: list[str]
    idle: threading.Event

    def mark(self) -> Mark:
        self.asked.append("mark")
        return self.asked.count("mark")

    def wait(self, mark: Mark) -> None:
        self.asked.append(f"wait {mark}")
        assert self.idle.wait(HANG_S)
        self.asked.append(f"over {mark}")

    def unix_ns(self, mark: Mark) -> int:
        return int(mark)


class FakeGpu(CpuDevice):
    """`asked` is what was asked of it, in order. `refusals`: what the next captures fail with, one after another;
    `peak`: what it says was held; `capture_bytes`: what it says each capture alive holds. While `idle` is not set, what
    it was given goes on.
    """

    compiles = False
    queues = True

    def __init__(self, captures: bool = True, peak: int = 0) -> None:
        self.captures = captures
        self.asked: list[str] = []
        self.refusals: list[Exception] = []
        self.peak = peak
        self.capture_bytes = 0
        self.idle = threading.Event()
        self.idle.set()
        self._alive: WeakSet[FakeCapture] = WeakSet()

    def memory_limit_bytes(self) -> int:
        return 1 << 40

    def peak_bytes(self) -> int:
        return self.peak

    def free_caches(self) -> None:
        self.asked.append("free")

    def upload(self, host: Tensor) -> Tensor:
        self.asked.append("upload")
        return host.clone()

    def download(self, tensor: Tensor) -> Tensor:
        self.asked.append("download")
        return tensor.clone()

    def begin_download(self, tensor: Tensor) -> Tensor:
        self.asked.append("begin download")
        return tensor.clone()

    def timeline(self) -> Timeline:
        return FakeTimeline(self.asked, self.idle)

    @contextlib.contextmanager
    def beside(self) -> Iterator[Lend]:
        self.asked.append("beside")
        yield lambda tensors: self.asked.extend("lend" for _ in tensors)

    def capture(self, call: Callable[[], Tensor]) -> Capture:
        self.asked.append("capture")
        if self.refusals:
            raise self.refusals.pop(0)
        captured = FakeCapture(call, call(), self.asked)
        self._alive.add(captured)
        return captured

    def captured_bytes(self) -> int:
        return self.capture_bytes * len(self._alive)
