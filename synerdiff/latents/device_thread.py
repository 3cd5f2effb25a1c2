"""A thread for calls that may hang: its callers give up in time, and the process can still end."""

import asyncio
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


class DeviceThread:
    """Does one thing after another. Not a ThreadPoolExecutor: the interpreter joins the threads of those at its end."""

    def __init__(self, name: str) -> None:
        self._work: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        threading.Thread(target=self._run, name=name, daemon=True).start()

    async def run(self, work: Callable[[], T], timeout_s: float) -> T:
        """The result of `work`, or its error. Raises TimeoutError after `timeout_s`; later calls wait for its end."""
        return await asyncio.wait_for(asyncio.wrap_future(self._submit(work)), timeout_s)

    def end(self, last: Callable[[], object]) -> None:
        """End after the earlier calls and `last`. Does not wait; later calls never run."""
        self._submit(last)
        self._work.put(None)

    def _submit(self, work: Callable[[], T]) -> "Future[T]":
        future: Future[T] = Future()
        self._work.put((future, work))
        return future

    def _run(self) -> None:
        while (asked := self._work.get()) is not None:
            _do(*asked)
            del asked  # or this thread would hold on to the result while it waits


def _do(future: "Future[T]", work: Callable[[], T]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(work())
    except BaseException as error:
        future.set_exception(error)
