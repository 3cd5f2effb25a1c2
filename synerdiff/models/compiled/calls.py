"""Calls of a compiled component, and the choice between it and the eager one, by the times of both while they serve."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from synerdiff.models.device import Fault, fault_of
from synerdiff.telemetry import get_logger

log = get_logger("compiled")

Call = Callable[..., Tensor]

# diffusers' upsampling takes another way from 64 rows on, so a package that serves all batch sizes ends before.
MOST_ROWS = 63

# Calls of each kind, in turns, by which the faster one is chosen.
_TRIALS = 5


@dataclass(frozen=True)
class CompiledCall:
    """A loaded package. Inputs are tensors of the same count of rows, as exported; larger batches go in parts."""

    package: Call
    most_rows: int = MOST_ROWS

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The component's answer, [rows, ...]."""
        rows = len(inputs[0])
        if rows <= self.most_rows:
            return self.package(*(one.contiguous() for one in inputs))
        parts = -(-rows // self.most_rows)
        chunks = zip(*(one.tensor_split(parts) for one in inputs), strict=True)
        return torch.cat([self.package(*(one.contiguous() for one in part)) for part in chunks])


@dataclass
class _Trial:
    """Seconds that calls of some size took, either way. `compiled` is the verdict, None before there is one."""

    eager_s: list[float] = field(default_factory=list)
    compiled_s: list[float] = field(default_factory=list)
    compiled: bool | None = None
    _eager_next: bool = True

    def next_is_compiled(self) -> bool:
        """By turns, compiled first."""
        self._eager_next = not self._eager_next
        return not self._eager_next

    def took(self, compiled: bool, seconds: float) -> None:
        (self.compiled_s if compiled else self.eager_s).append(seconds)
        if min(len(self.eager_s), len(self.compiled_s)) >= _TRIALS:
            self.compiled = self.speedup() >= 1

    def speedup(self) -> float:
        """Eager over compiled time, the median over neighbouring calls, which other load of the machine meets alike."""
        pairs = zip(self.eager_s, self.compiled_s, strict=False)
        return statistics.median(eager / compiled for eager, compiled in pairs)


class FastestCall:
    """Computes with `eager` until a compiled call is offered, then with the faster one at a batch's size.

    One thread calls; any may offer. For each size class (1, 2-3, 4-7, 8-15, ... rows) the first calls take turns,
    which costs nothing: both answer the same within rounding. Only for devices on which a call returns when its work
    is done.
    """

    def __init__(self, eager: Call) -> None:
        self._eager = eager
        self._compiled: Call | None = None
        self._trials: dict[int, _Trial] = {}
        self._made: set[tuple[int, bool]] = set()

    @property
    def has_compiled(self) -> bool:
        """Whether there is a compiled call to choose."""
        return self._compiled is not None

    def offer(self, compiled: Call) -> None:
        """Take a compiled call into the choice, from the next call on."""
        self._compiled = compiled

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The component's answer."""
        if self._compiled is None:
            return self._eager(*inputs)
        size = len(inputs[0]).bit_length()
        trial = self._trials.setdefault(size, _Trial())
        if trial.compiled is not None:
            return self._call_compiled(*inputs) if trial.compiled else self._eager(*inputs)
        takes_compiled = trial.next_is_compiled()
        started = time.perf_counter()
        answer = self._call_compiled(*inputs) if takes_compiled else self._eager(*inputs)
        seconds = time.perf_counter() - started
        if self._is_first(len(inputs[0]), takes_compiled):
            return answer
        trial.took(takes_compiled, seconds)
        if trial.compiled is not None:
            log.info("chose", rows_below=1 << size, compiled=trial.compiled, speedup=round(trial.speedup(), 2))
        return answer

    def _is_first(self, rows: int, compiled: bool) -> bool:
        """Whether it is the first call of its kind with so many rows, which takes longer than any other."""
        first = (rows, compiled) not in self._made
        self._made.add((rows, compiled))
        return first

    def _call_compiled(self, *inputs: Tensor) -> Tensor:
        """The compiled answer; from the package's first failure on the eager one. Raises errors of memory or device."""
        compiled = self._compiled
        assert compiled is not None
        try:
            return compiled(*inputs)
        except Exception as error:
            if fault_of(error) is not Fault.OTHER:
                raise
            log.warning("a compiled call failed: computing without it", reason=str(error))
            self._compiled = None
            return self._eager(*inputs)
