"""Running a coroutine so that Ctrl-C, SIGTERM and a closed terminal end it in good order."""

import asyncio
import signal
import sys
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` to its end. A signal cancels it, a second one its clean-up; exits with 128 + the signal's number."""
    received: list[int] = []

    async def interruptible() -> T:
        task = asyncio.ensure_future(work)
        loop = asyncio.get_running_loop()

        def interrupt(number: int) -> None:
            received.append(number)
            task.cancel()

        for number in _SIGNALS:
            loop.add_signal_handler(number, interrupt, number)
        return await task

    try:
        return asyncio.run(interruptible())
    except asyncio.CancelledError:
        if not received:
            raise
        sys.exit(128 + received[0])
