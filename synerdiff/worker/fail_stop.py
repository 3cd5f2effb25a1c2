"""The end of a worker at its first unexpected error: one log line, then the process ends and others take over."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import grpc

from synerdiff.errors import SynerDiffError
from synerdiff.models.device import Fault, fault_of
from synerdiff.telemetry import get_logger

log = get_logger("worker")


class FailStop:
    """Belongs to the event loop, but any thread may call `on_loop` and the functions of `of`. `work`: in the plural."""

    def __init__(self, work: str) -> None:
        self.error: BaseException | None = None
        self._work = work
        self._loop = asyncio.get_running_loop()
        self._failed = asyncio.Event()

    async def wait(self) -> None:
        """Return once something has failed."""
        await self._failed.wait()

    def of(self, part: str) -> Callable[[BaseException], None]:
        """A function that takes the error of a part of the worker, from any thread."""
        return partial(self.on_loop, self._note, part)

    def watch(self, task: asyncio.Task[Any], part: str) -> None:
        """Fail with a task that ends with an error. `part`: its name in the log."""

        def ended(task: asyncio.Task[Any]) -> None:
            error = None if task.cancelled() else task.exception()
            if error is not None:
                self._note(part, error)

        task.add_done_callback(ended)

    @contextlib.contextmanager
    def guarding(self, part: str) -> Iterator[None]:
        """Fail with an error of the body. Refusals of a caller and the end of a call are no such errors."""
        try:
            yield
        except (SynerDiffError, grpc.aio.BaseError):
            raise
        except Exception as error:
            self._note(part, error)
            raise

    def on_loop(self, call: Callable[..., object], *arguments: object) -> None:
        """Have the event loop make a call soon, and fail with its error. Does not wait."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: the process is at its end
            self._loop.call_soon_threadsafe(self._make, call, arguments)

    def _make(self, call: Callable[..., object], arguments: tuple[object, ...]) -> None:
        try:
            call(*arguments)
        except Exception as error:
            self._note(getattr(call, "__qualname__", str(call)), error)

    def _note(self, part: str, error: BaseException) -> None:
        if self.error is not None:
            return
        self.error = error
        self._failed.set()
        if fault_of(error) is Fault.FATAL:
            log.critical(f"the device failed: this process ends, its {self._work} run again", reason=str(error))
        else:
            log.critical(f"{part} died: this process ends, its {self._work} run again", exc_info=error)
