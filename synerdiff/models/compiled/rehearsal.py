"""Calls made ahead of time: the first call of every batch size takes longer, since it prepares its kernels.

On a CPU that costs tens of ms a size. So the worker calls each size while it computes nothing else, at the lowest
priority.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import inf

from synerdiff.models.threads import limit_torch_threads
from synerdiff.telemetry import get_logger

log = get_logger("rehearsal")

# A longer call ends the rehearsal: the first call of such a model is hardly longer than the others.
_LONGEST_CALL_S = 0.5
_IDLE_AFTER_S = 0.3
_LOOK_EVERY_S = 0.05
_LOWEST_PRIORITY = 19


def likely_first(most: int) -> tuple[int, ...]:
    """Rows of a UNet call up to `most`: tasks with guidance take two each."""
    return (*range(2, most + 1, 2), *range(1, most + 1, 2))


class Rehearsal:
    """Calls each of `sizes`, in this order, while the device is idle. `close` ends it after the call under way."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self._sizes = sizes
        self._computed_at_s = -inf
        self._closing = threading.Event()

    @contextmanager
    def computing(self) -> Iterator[None]:
        """The body computes: nothing is rehearsed beside it."""
        self._computed_at_s = inf
        try:
            yield
        finally:
            self._computed_at_s = time.monotonic()

    def run(self, call: Callable[[int], object], limit_s: float, done: int = 0) -> int:
        """Call every size but the first `done`, within `limit_s`; returns how many are done. Raises calls' errors."""
        give_up_at = time.monotonic() + limit_s
        for made, size in enumerate(self._sizes[done:], start=done):
            while self._somebody_computes() and time.monotonic() < give_up_at and not self._closing.is_set():
                self._closing.wait(_LOOK_EVERY_S)
            began = time.monotonic()
            if self._closing.is_set() or began >= give_up_at:
                return made
            call(size)
            if time.monotonic() - began > _LONGEST_CALL_S:
                return made + 1
        return len(self._sizes)

    def close(self) -> None:
        """Rehearse nothing more."""
        self._closing.set()

    def _somebody_computes(self) -> bool:
        return time.monotonic() - self._computed_at_s < _IDLE_AFTER_S


def start_at_lowest_priority(name: str, work: Callable[[], object], threads: int) -> threading.Thread:
    """Run `work` beside the process, on `threads` CPU threads (0: torch's number). Its errors are only logged."""

    def run() -> None:
        compute_at_lowest_priority(threads)
        try:
            work()
        except Exception as error:
            log.warning("given up", what=name, reason=str(error))

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    return thread


def compute_at_lowest_priority(threads: int) -> None:
    """Let this thread, and those it starts, run on idle cores, with so many CPU threads (0: torch's own)."""
    if hasattr(os, "setpriority"):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWEST_PRIORITY)
    if threads:
        limit_torch_threads(threads)
