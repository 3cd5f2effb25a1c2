"""Waiting for what must come to pass: as long as it takes, whatever else the machine does.

A bound is there only so that a hang ends as a failure of its test, before pytest's own limit ends it without a word.
Where a time itself is what a test is about, it goes by `VirtualTime`.
"""

import asyncio
import threading
import time
from collections.abc import Callable

HANG_S = 240.0
_LOOK_EVERY_S = 0.01


async def until(condition: Callable[[], object], what: str = "what was waited for") -> None:
    """Return once the condition holds, and let the event loop run meanwhile."""
    give_up_at = time.monotonic() + HANG_S
    while not condition():
        assert time.monotonic() < give_up_at, f"{what} did not come to pass"
        await asyncio.sleep(_LOOK_EVERY_S)


def wait_until(condition: Callable[[], object], what: str = "what was waited for") -> None:
    """The same where there is no event loop."""
    give_up_at = time.monotonic() + HANG_S
    while not condition():
        assert time.monotonic() < give_up_at, f"{what} did not come to pass"
        time.sleep(_LOOK_EVERY_S)


class WatchedTime:
    """Stands for the module `time` with one's ear to the door: `sleeping` is set whenever somebody goes to sleep."""

    def __init__(self) -> None:
        self.sleeping = threading.Event()

    def perf_counter(self) -> float:
        return time.perf_counter()

    def sleep(self, seconds: float) -> None:
        self.sleeping.set()
        time.sleep(seconds)

    def until_somebody_sleeps(self) -> None:
        """Return once somebody sleeps that did not when this was called."""
        self.sleeping.clear()
        assert self.sleeping.wait(HANG_S)


class VirtualTime:
    """Stands for the module `time` where nothing but sleeping takes time. `now_s` may be set."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def perf_counter(self) -> float:
        return self.now_s

    def monotonic(self) -> float:
        return self.now_s

    def process_time(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds
