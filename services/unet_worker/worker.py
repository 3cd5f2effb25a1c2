"""A UNet worker without its network: residents, the threads that prepare and step them, and the leader they serve.

All methods belong to the event loop; only `_from_thread` is called by the worker's threads.
"""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial

import torch
from grpc import StatusCode

from services.unet_worker import metrics
from services.unet_worker.denoiser import Denoiser
from services.unet_worker.outbox import Outbox, Report
from services.unet_worker.preparation import TaskPreparer
from services.unet_worker.preparation_thread import PreparationThread
from services.unet_worker.previews import PreviewEncoder
from services.unet_worker.residents import Resident, Residents, ResidentState
from services.unet_worker.step_loop import StepLoop
from synerdiff.cards import ModelCard
from synerdiff.errors import StaleLeader
from synerdiff.latents.arena import Arena, ArenaFull
from synerdiff.leadership_guard import LeaderGuard
from synerdiff.models.compiled import CompiledUnet
from synerdiff.models.device import Fault, fault_of
from synerdiff.models.family import UnetSide
from synerdiff.pace import Pacer, PaceSide
from synerdiff.plans import Preview, ResidentTask, TaskFailed, TaskReady, UnetPlan, UnetTickDone
from synerdiff.requests import TaskSpec
from synerdiff.telemetry import get_logger

log = get_logger("unet_worker")


@dataclass(eq=False)
class Leader:
    """One leader's stream. `residents` is what it found; `superseded` says that a newer stream has taken its place."""

    token: int
    session: int
    residents: tuple[ResidentTask, ...] = ()
    superseded: bool = False
    outbox: Outbox = field(default_factory=Outbox)


class UnetWorker:
    """Serves one leader at a time; its tasks stay when the leader goes.

    `threads` CPU threads step, `exact_threads` where all that steps is exact; 0 takes as many as torch uses on the
    calling thread. `unet`: how UNet calls are made. `card`: of the model, for what its pictures have to be told with.
    """

    def __init__(
        self,
        unet_side: UnetSide,
        arena: Arena,
        *,
        threads: int = 0,
        exact_threads: int = 1,
        embedding_cache_bytes: int = 64 * 2**20,
        unet: CompiledUnet | None = None,
        card: ModelCard | None = None,
    ) -> None:
        self.draining = False
        self.crashed = asyncio.Event()
        self._fewer_residents = asyncio.Event()
        self._unet_side = unet_side
        self._arena = arena
        self._loop = asyncio.get_running_loop()
        self._guard = LeaderGuard()
        self._leader: Leader | None = None
        self.residents = Residents(arena, unet_side.dtype)
        preparer = TaskPreparer(unet_side, embedding_cache_bytes, card)
        self._preparation = PreparationThread(preparer, self.residents, self._tell_leader, self._crash)
        self._previews = PreviewEncoder(unet_side, self._tell_leader)
        self._steps = StepLoop(
            Denoiser(unet_side, unet),
            self.residents,
            self._previews,
            self._crash,
            threads or torch.get_num_threads(),
            Pacer(PaceSide.UNET),
            exact_threads,
        )

    @property
    def slots(self) -> int:
        """Tasks that can be held at once."""
        return self._arena.slots

    def start(self) -> None:
        """Start the threads and tie the gauges to this worker."""
        metrics.SLOTS_TOTAL.set(self._arena.slots)
        metrics.SLOTS_USED.set_function(lambda: self._arena.slots - self._arena.free_slots)
        for state in ResidentState:
            metrics.RESIDENT_TASKS.labels(state.value).set_function(partial(self.residents.count, state))
        self._preparation.start()
        self._steps.start()

    async def close(self) -> None:
        """End the threads; the running UNet call is waited for."""
        if self._leader is not None:
            self._leader.outbox.close()
        for part in (self._steps, self._preparation, self._previews):
            await asyncio.to_thread(part.close)

    async def attach(self, token: int, leader_id: str = "") -> Leader:
        """Serve the leader with `token` from now on; returns at an item boundary, with everything resident then.

        Raises:
            StaleLeader: a leader with a higher token, or another with this one, has attached, before or meanwhile.
        """
        leader = Leader(token, self._guard.attach(token, leader_id))
        if self._leader is not None:
            self._leader.superseded = True
            self._leader.outbox.close()
        self._leader = leader
        boundary: asyncio.Future[tuple[ResidentTask, ...]] = self._loop.create_future()

        def reached() -> None:
            self._from_thread(_resolve, boundary, self.residents.describe())

        self._steps.begin_reign(reached)
        leader.residents = await boundary
        if leader.superseded:
            raise superseded(leader)
        log.info("leader attached", leader_token=token, residents=len(leader.residents))
        return leader

    def detach(self, leader: Leader) -> None:
        """The leader's stream has ended; its tasks stay."""
        leader.outbox.close()
        log.info("leader left", leader_token=leader.token, residents=len(self.residents))

    def serves(self, leader: Leader) -> bool:
        """Whether the leader is still the one that is listened to."""
        return self._guard.is_current(leader.session)

    def admit(self, spec: TaskSpec) -> None:
        """Hold a task and prepare it from the start; answered by TaskReady or TaskFailed."""
        refusal = self._refusal(spec)
        if refusal is not None:
            self._send(TaskFailed(spec.task_id, refusal[0].value[0], refusal[1]))
            return
        known = self.residents.get(spec.task_id)
        if known is not None and known.spec == spec and _at_its_start(known):
            if known.state is ResidentState.READY:
                self._send(TaskReady(spec.task_id, known.num_calls, 0.0))
            return
        self.residents.drop([spec.task_id])
        try:
            resident = self.residents.admit(spec)
        except ArenaFull as error:
            self._send(TaskFailed(spec.task_id, StatusCode.RESOURCE_EXHAUSTED.value[0], str(error)))
            return
        log.info("task admitted", task_id=spec.task_id, sampler=spec.sampler.name, width=spec.width, height=spec.height)
        self._preparation.submit(resident)

    def run_plan(self, plan: UnetPlan) -> None:
        """Queue a plan of the leader; a repeated or older one is ignored."""
        if self._leader is not None and self._guard.accepts(plan.leader_token, plan.tick):
            leader = self._leader
            self._steps.submit(plan, lambda report: self._from_thread(self._record, leader, report))

    def drop(self, task_ids: Iterable[str], why: str) -> None:
        """Forget tasks and free their slots at once."""
        for task_id in self.residents.drop(task_ids):
            log.info("task dropped", task_id=task_id, why=why)
        self._fewer_residents.set()

    async def until_empty(self) -> None:
        """Wait until no task is held."""
        while len(self.residents):
            self._fewer_residents.clear()
            await self._fewer_residents.wait()

    def _refusal(self, spec: TaskSpec) -> tuple[StatusCode, str] | None:
        if self.draining:
            return StatusCode.RESOURCE_EXHAUSTED, "the worker is draining"
        multiple = self._unet_side.size_multiple
        if spec.width % multiple or spec.height % multiple or not (spec.width and spec.height):
            return StatusCode.INVALID_ARGUMENT, f"{spec.width}x{spec.height}: sides must be multiples of {multiple}"
        channels, rows, columns = self._unet_side.latent_shape(spec.width, spec.height)
        if channels * rows * columns * self._unet_side.dtype.itemsize > self._arena.slot_bytes:
            return StatusCode.INVALID_ARGUMENT, f"{spec.width}x{spec.height}: too large for this worker's slots"
        return None

    def _record(self, leader: Leader, report: UnetTickDone | TaskFailed) -> None:
        if isinstance(report, TaskFailed):
            self._note_failure(report)
        else:
            for timing in report.items:
                if timing.rows:
                    metrics.UNET_CALLS.inc()
                    metrics.BATCH_ROWS.observe(timing.rows)
                    metrics.STEP_SECONDS.observe(timing.ms / 1000)
                metrics.WAIT_SECONDS.observe(timing.waited_ms / 1000)
                metrics.HALVED_ITEMS.inc(timing.halved > 0)
            for skipped in report.skipped:
                metrics.SKIPPED_ENTRIES.labels(skipped.reason.name.lower()).inc()
            for task_id, slot in report.finished:
                log.info("task finished", task_id=task_id, slot=slot.index)
        leader.outbox.put(report)

    def _note_failure(self, failed: TaskFailed) -> None:
        self._fewer_residents.set()
        metrics.TASKS_FAILED.labels(str(failed.code)).inc()
        log.warning("task failed", task_id=failed.task_id, code=failed.code, message=failed.message)

    def _tell_leader(self, message: TaskReady | TaskFailed | Preview) -> None:
        self._from_thread(self._send, message)

    def _send(self, message: Report | Preview) -> None:
        if isinstance(message, TaskFailed):
            self._note_failure(message)
        if self._leader is not None:
            self._leader.outbox.put(message)

    def _from_thread(self, call: Callable[..., object], *arguments: object) -> None:
        """Have the event loop make a call, as soon as it can; the threads never wait for it."""
        self._loop.call_soon_threadsafe(call, *arguments)

    def _crash(self, error: Exception) -> None:
        self._from_thread(self._note_crash, error)

    def _note_crash(self, error: Exception) -> None:
        if self.crashed.is_set():
            return
        self.crashed.set()
        if fault_of(error) is Fault.FATAL:
            held = len(self.residents)
            log.critical("the device failed: this process ends, its tasks run again", reason=str(error), tasks=held)
        else:
            log.critical("the step loop died", exc_info=error)


def superseded(leader: Leader) -> StaleLeader:
    """What a leader is told when a newer stream has taken its place."""
    return StaleLeader(f"a newer leader, or a newer stream of the same one, has attached after token {leader.token}")


def _at_its_start(resident: Resident) -> bool:
    return resident.state is not ResidentState.FINISHED and (resident.task is None or resident.task.next_call == 0)


def _resolve(future: asyncio.Future[tuple[ResidentTask, ...]], residents: tuple[ResidentTask, ...]) -> None:
    if not future.done():
        future.set_result(residents)
