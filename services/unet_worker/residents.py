"""The tasks a worker holds, each with its slot in the latents arena, from admission to release."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial

import torch
from grpc import StatusCode
from torch import Tensor

from services.unet_worker.preparation import TaskPreparer
from services.unet_worker.tasks import DenoisingTask
from synerdiff.errors import SynerDiffError
from synerdiff.latents.arena import Arena
from synerdiff.models.device import Device, Fault, fault_of
from synerdiff.models.threads import limit_torch_threads
from synerdiff.plans import ResidentTask, SkippedEntry, SkipReason, SlotRef, TaskFailed, TaskReady, UnetEntry
from synerdiff.requests import TaskSpec
from synerdiff.telemetry import get_logger
from synerdiff.worker.job_thread import JobThread

MAX_BATCH = 16

log = get_logger("preparation")


class ResidentState(Enum):
    """Where a resident stands: preparing -> ready -> finished."""

    PREPARING = "preparing"
    READY = "ready"
    FINISHED = "finished"


@dataclass(eq=False)
class Resident:
    """A task in its slot; `task` is None before it is ready and after it is done, with its `skipped_calls`."""

    spec: TaskSpec
    slot: SlotRef
    state: ResidentState = ResidentState.PREPARING
    task: DenoisingTask | None = None
    num_calls: int = 0
    skipped_calls: tuple[int, ...] = ()

    @property
    def next_call(self) -> int:
        """UNet calls made so far."""
        if self.state is ResidentState.FINISHED:
            return self.num_calls
        return self.task.next_call if self.task else 0

    def describe(self) -> ResidentTask:
        """The resident's description for a leader that attaches."""
        slot = self.slot if self.state is ResidentState.FINISHED else None
        skipped_calls = self.task.guidance.skipped if self.task else self.skipped_calls
        return ResidentTask(self.spec.task_id, self.next_call, self.num_calls, slot, skipped_calls)


@dataclass(frozen=True)
class HandedOver:
    """Latents of `residents`, one after another: uint8 [n] of the model's dtype, on the arena's GPU or in memory."""

    residents: tuple[Resident, ...]
    data: Tensor


class Residents:
    """All residents by task id. Thread-safe: a call's outcome leaves a slot alone whose resident was dropped."""

    def __init__(self, arena: Arena, model_dtype: torch.dtype) -> None:
        self._arena = arena
        self._model_dtype = model_dtype
        self._lock = threading.Lock()
        self._by_id: dict[str, Resident] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    def get(self, task_id: str) -> Resident | None:
        """The resident of that id, if there is one."""
        with self._lock:
            return self._by_id.get(task_id)

    def holds(self, resident: Resident) -> bool:
        """Whether the resident has not been dropped or given up."""
        with self._lock:
            return self._holds(resident)

    def admit(self, spec: TaskSpec) -> Resident:
        """Give a new task its slot. Raises ArenaFull where no slot is free."""
        with self._lock:
            resident = Resident(spec, self._arena.acquire())
            self._by_id[spec.task_id] = resident
            return resident

    def make_ready(self, resident: Resident, task: DenoisingTask) -> bool:
        """Let a prepared task be stepped; False when it has been dropped meanwhile."""
        with self._lock:
            if not self._holds(resident):
                return False
            resident.task = task
            resident.num_calls = task.num_calls
            resident.state = ResidentState.READY
            return True

    def drop(self, task_ids: Iterable[str]) -> list[str]:
        """Forget tasks and free their slots; unknown ones are passed over. Returns the ids that were held."""
        with self._lock:
            dropped = [self._by_id.pop(task_id) for task_id in task_ids if task_id in self._by_id]
            for resident in dropped:
                self._arena.release(resident.slot)
            return [resident.spec.task_id for resident in dropped]

    def give_up(self, resident: Resident) -> bool:
        """Forget one that failed and free its slot; False when it has been dropped before."""
        with self._lock:
            if not self._holds(resident):
                return False
            del self._by_id[resident.spec.task_id]
            self._arena.release(resident.slot)
            return True

    def select(self, entries: Sequence[UnetEntry]) -> tuple[list[Resident], list[SkippedEntry]]:
        """The residents at the call that their entry expects, in order, and why each other entry does not fit."""
        chosen: dict[str, Resident] = {}
        skipped: list[SkippedEntry] = []
        with self._lock:
            for entry in entries:
                resident = self._by_id.get(entry.task_id)
                misfit = _misfit(resident, entry, twice=entry.task_id in chosen)
                if misfit is not None:
                    skipped.append(misfit)
                elif resident is not None:
                    chosen[entry.task_id] = resident
        return list(chosen.values()), skipped

    def hand_over(self, stepped: Sequence[Resident], compute: Device) -> HandedOver:
        """Begin to hand over finished latents, all at once where the arena takes them. Waits for nothing."""
        done = [resident for resident in stepped if resident.task is not None and resident.task.done]
        samples = [resident.task.sample for resident in done if resident.task is not None]
        if not samples:
            return HandedOver((), torch.empty(0, dtype=torch.uint8))
        data = bytes_of(samples, self._model_dtype)
        on_device = self._arena.on_device and data.is_cuda
        return HandedOver(tuple(done), data if on_device else compute.begin_download(data))

    def settle(self, handed_over: HandedOver) -> list[tuple[str, SlotRef]]:
        """Put latents into their slots, once a mark made after `hand_over` has been waited for: ids and slots."""
        finished, place = [], 0
        for resident in handed_over.residents:
            task = resident.task
            assert task is not None
            size = task.sample.numel() * self._model_dtype.itemsize
            latents = handed_over.data[place : place + size]
            place += size
            with self._lock:
                if self._holds(resident):
                    self._arena.write(resident.slot, latents if latents.is_cuda else latents.numpy().data)
                    resident.skipped_calls = task.guidance.skipped
                    resident.state = ResidentState.FINISHED
                    resident.task = None
                    finished.append((resident.spec.task_id, resident.slot))
        return finished

    def describe(self) -> tuple[ResidentTask, ...]:
        """The descriptions of all residents, for a leader that attaches."""
        with self._lock:
            return tuple(resident.describe() for resident in self._by_id.values())

    def count(self, state: ResidentState) -> int:
        """How many residents are in a state."""
        with self._lock:
            return sum(resident.state is state for resident in self._by_id.values())

    def _holds(self, resident: Resident) -> bool:
        return self._by_id.get(resident.spec.task_id) is resident


def _misfit(resident: Resident | None, entry: UnetEntry, twice: bool) -> SkippedEntry | None:
    if resident is None:
        return SkippedEntry(entry.task_id, SkipReason.UNKNOWN_TASK)
    if resident.state is ResidentState.PREPARING:
        return SkippedEntry(entry.task_id, SkipReason.NOT_READY)
    next_call = resident.next_call + twice
    if next_call >= resident.num_calls or twice or next_call != entry.call:
        return SkippedEntry(entry.task_id, SkipReason.OTHER_CALL, next_call)
    return None


def bytes_of(samples: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Latents [C, h, w] of any sizes, in `dtype`, one after another: uint8 [n], where they are."""
    return torch.cat([sample.to(dtype).flatten() for sample in samples]).view(torch.uint8)


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
