"""The stop signals of every process, at any moment of its life."""

import asyncio
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Coroutine
from types import FrameType
from typing import Any, NoReturn, TypeVar

ASK_AGAIN_S = 0.1

T = TypeVar("T")


class StoppedWhileLoading(Exception):
    """The process got a stop signal before it had finished loading."""


def exit_at_stop_signal() -> None:
    """Until `stop_signal` takes over, SIGTERM and SIGINT end the process at once, with status 0.

    Call it first of all. The first process of a container has no default for signals: it would go on importing, and
    be killed when its grace is over.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _exit)


def stop_signal() -> asyncio.Event:
    """An event that SIGTERM and SIGINT set from now on. Needs a running event loop in the main thread."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop


async def load_unless_stopped(load: Callable[[], T], stop: asyncio.Event) -> T:
    """The result of `load`, which runs in a thread of its own, so that this loop answers probes meanwhile.

    Raises the errors of `load`, and StoppedWhileLoading once `stop` is set. Nothing can interrupt `load`: the process
    should then end by `leave_now`.
    """
    loop = asyncio.get_running_loop()
    loaded: asyncio.Future[T] = loop.create_future()

    def run() -> None:
        try:
            result = load()
        except BaseException as error:
            _tell(loop, loaded.set_exception, error)
        else:
            _tell(loop, loaded.set_result, result)

    threading.Thread(target=run, name="loading", daemon=True).start()
    await first_of(asyncio.wait([loaded]), stop.wait())
    if not loaded.done():
        raise StoppedWhileLoading
    return loaded.result()


def leave_now(status: int = 0) -> NoReturn:
    """End the process without waiting for threads or freeing: quick with torch loaded, and no abort on a lost GPU."""
    sys.stderr.flush()
    os._exit(status)


def _tell(loop: asyncio.AbstractEventLoop, tell: Callable[[T], None], what: T) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed: no task waits any more
        loop.call_soon_threadsafe(tell, what)


def _exit(number: int, frame: FrameType | None) -> None:
    raise SystemExit(0)


async def cancel_and_wait(*tasks: asyncio.Future[Any]) -> None:
    """Cancel tasks until all have ended: wait_for (redis-py's) may lose a cancellation before Python 3.12."""
    left = {task for task in tasks if not task.done()}
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=ASK_AGAIN_S)


async def first_of(*waits: Coroutine[Any, Any, Any]) -> None:
    """Run coroutines until one has ended, and cancel the others."""
    tasks = [asyncio.create_task(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
