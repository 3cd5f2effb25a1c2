"""Computes a batch that fails at once in halves, down to the failing element alone."""

from collections import deque
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from synerdiff.models.device import DeviceFailed, Fault, fault_of
from synerdiff.telemetry import get_logger

log = get_logger("halving")

B = TypeVar("B", bound=Any)


class Halves(Generic[B]):
    """The parts of a batch that are still to be computed, in its order: false once there is none.

    A batch has a length, and slices that are batches. `size`: its size in reports of too little memory. `free_memory`
    gives back all memory that only saves time.
    """

    def __init__(self, batch: B | None, free_memory: Callable[[], None], size: Callable[[B], int] = len) -> None:
        self.parts = deque([batch] if batch else [])
        self._free_memory = free_memory
        self._size = size
        self._halved = 0

    def __bool__(self) -> bool:
        return bool(self.parts)

    def done(self) -> None:
        """The first part is computed."""
        self.parts.popleft()

    def failed(self, failure: Exception) -> Fault | None:
        """Halve the first part that failed, or give up one that is alone for `failure`. Raises DeviceFailed."""
        fault = fault_of(failure)
        if fault is Fault.FATAL:
            raise DeviceFailed(str(failure)) from failure
        if fault is Fault.OUT_OF_MEMORY:
            self._free_memory()
        part = self.parts.popleft()
        if len(part) == 1:
            return fault
        log.warning("a batch failed, trying halves", batch=len(part), reason=str(failure))
        if fault is Fault.OUT_OF_MEMORY:
            self._halved = min(self._halved or self._size(part), self._size(part))
        middle = len(part) // 2
        self.parts.extendleft((part[middle:], part[:middle]))
        return None

    def take_halved(self) -> int:
        """The smallest size that memory did not suffice for since the last call; 0: it did."""
        halved, self._halved = self._halved, 0
        return halved
