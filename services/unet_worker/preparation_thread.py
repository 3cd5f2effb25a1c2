"""Prepares admitted tasks beside the running steps, on a thread that keeps to one CPU core."""

import queue
import threading
from collections.abc import Callable, Sequence

from grpc import StatusCode

from services.unet_worker.preparation import TaskPreparer
from services.unet_worker.residents import Resident, Residents
from synerdiff.errors import SynerDiffError
from synerdiff.models.device import Fault, fault_of
from synerdiff.models.threads import limit_torch_threads
from synerdiff.plans import TaskFailed, TaskReady
from synerdiff.telemetry import get_logger

MAX_BATCH = 16

log = get_logger("preparation")


class PreparationThread:
    """Takes all residents that wait at a time, so that their prompts are encoded together.

    `deliver` is called on this thread with TaskReady or TaskFailed; residents dropped meanwhile get neither. `crashed`
    is told there of a device that is lost to this process: no task is to blame for that.
    """

    def __init__(
        self,
        preparer: TaskPreparer,
        residents: Residents,
        deliver: Callable[[TaskReady | TaskFailed], None],
        crashed: Callable[[Exception], None],
    ) -> None:
        self._preparer = preparer
        self._residents = residents
        self._deliver = deliver
        self._crashed = crashed
        self._inbox: queue.SimpleQueue[Resident | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="preparation", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def submit(self, resident: Resident) -> None:
        """Prepare a resident soon."""
        self._inbox.put(resident)

    def close(self) -> None:
        """Prepare what was submitted before, then end the thread."""
        self._inbox.put(None)
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        limit_torch_threads(1)
        while (first := self._inbox.get()) is not None:
            batch = [first, *self._waiting(MAX_BATCH - 1)]
            wanted = [resident for resident in batch if self._residents.holds(resident)]
            if wanted:
                self._prepare(wanted)

    def _waiting(self, most: int) -> list[Resident]:
        waiting: list[Resident] = []
        while len(waiting) < most:
            try:
                resident = self._inbox.get_nowait()
            except queue.Empty:
                break
            if resident is None:
                self._inbox.put(None)
                break
            waiting.append(resident)
        return waiting

    def _prepare(self, residents: Sequence[Resident]) -> None:
        try:
            prepared = self._preparer.prepare([resident.spec for resident in residents])
        except Exception as error:
            if fault_of(error) is Fault.FATAL:
                self._crashed(error)
            elif len(residents) > 1:
                for resident in residents:
                    self._prepare([resident])
            else:
                self._fail(residents[0], error)
            return
        for resident, ready in zip(residents, prepared, strict=True):
            if self._residents.make_ready(resident, ready.task):
                self._deliver(TaskReady(resident.spec.task_id, ready.task.num_calls, ready.encode_ms, ready.warnings))

    def _fail(self, resident: Resident, error: Exception) -> None:
        if isinstance(error, SynerDiffError):
            code, message = error.code, error.message
        elif fault_of(error) is Fault.OUT_OF_MEMORY:
            code, message = StatusCode.RESOURCE_EXHAUSTED, f"no memory to prepare it just now: {error}"
        else:
            code, message = StatusCode.INTERNAL, f"preparing failed: {type(error).__name__}: {error}"
            log.error("preparing failed", task_id=resident.spec.task_id, exc_info=error)
        if self._residents.give_up(resident):
            self._deliver(TaskFailed(resident.spec.task_id, code.value[0], message))
