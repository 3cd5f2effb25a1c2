"""Prepares admitted tasks beside the running steps, on a thread that keeps to one CPU core."""

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

from grpc import StatusCode

from services.unet_worker.preparation import TaskPreparer
from services.unet_worker.residents import Resident, Residents
from synerdiff.errors import SynerDiffError
from synerdiff.models.device import Fault, fault_of
from synerdiff.models.threads import limit_torch_threads
from synerdiff.plans import TaskFailed, TaskReady
from synerdiff.telemetry import get_logger
from synerdiff.worker.job_thread import JobThread

MAX_BATCH = 16

log = get_logger("preparation")


class PreparationThread:
    """Prepares all that wait at a time; TaskReady or TaskFailed go to `deliver`, a lost device to `failed`."""

    def __init__(
        self,
        preparer: TaskPreparer,
        residents: Residents,
        deliver: Callable[[TaskReady | TaskFailed], None],
        failed: Callable[[Exception], None],
    ) -> None:
        self._preparer = preparer
        self._residents = residents
        self._deliver = deliver
        self._waiting: deque[Resident] = deque()
        self._thread = JobThread("preparation", failed, partial(limit_torch_threads, 1))
        self.heartbeat = self._thread.heartbeat
        self.start = self._thread.start
        self.close = self._thread.close

    def submit(self, resident: Resident) -> None:
        """Prepare a resident soon."""
        self._waiting.append(resident)
        self._thread.submit(self._prepare_waiting)

    def _prepare_waiting(self) -> None:
        """Nothing is left for the submissions of those that an earlier one has taken along."""
        waiting = [self._waiting.popleft() for _ in range(min(len(self._waiting), MAX_BATCH))]
        wanted = [resident for resident in waiting if self._residents.holds(resident)]
        if wanted:
            self._prepare(wanted)

    def _prepare(self, residents: Sequence[Resident]) -> None:
        try:
            prepared = self._preparer.prepare([resident.spec for resident in residents])
        except Exception as error:
            if fault_of(error) is Fault.FATAL:
                raise
            if len(residents) > 1:
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
