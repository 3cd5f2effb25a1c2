"""A UNet worker without its network: residents, their preparation and their steps. Belongs to the event loop."""

import asyncio
from collections.abc import Iterable
from functools import partial

from grpc import StatusCode

from services.unet_worker import metrics
from services.unet_worker.denoiser import Denoiser
from services.unet_worker.preparation import TaskPreparer
from services.unet_worker.previews import PreviewEncoder
from services.unet_worker.residents import PreparationThread, Resident, Residents, ResidentState
from services.unet_worker.step_loop import StepLoop
from synerdiff.cards import ModelCard
from synerdiff.latents.arena import Arena, ArenaFull
from synerdiff.models.compiled.components import CompiledUnet
from synerdiff.models.family import UnetSide
from synerdiff.pace import PaceSide
from synerdiff.plans import Preview, TaskFailed, TaskReady, UnetPlan, UnetTickDone
from synerdiff.requests import TaskSpec
from synerdiff.telemetry import get_logger
from synerdiff.worker.leader import Leader, Report
from synerdiff.worker.stage_worker import StageWorker

log = get_logger("unet_worker")


class UnetWorker(StageWorker):
    """Its tasks stay when the leader goes.

    `threads`, `exact_threads`: see StageWorker. `unet`: how UNet calls are made. `card`: of the model, for
    warnings about its pictures. The arena is closed with the worker.
    """

    work, side, metrics = "tasks", PaceSide.UNET, metrics

    def __init__(
        self,
        worker_id: str,
        unet_side: UnetSide,
        arena: Arena,
        *,
        threads: int = 0,
        exact_threads: int = 1,
        embedding_cache_bytes: int = 64 * 2**20,
        unet: CompiledUnet | None = None,
        card: ModelCard | None = None,
    ) -> None:
        super().__init__(worker_id, unet_side.compute, threads, exact_threads)
        self.arena = arena
        self.residents = Residents(arena, unet_side.dtype)
        self._fewer_residents = asyncio.Event()
        self._unet_side = unet_side
        hear = partial(self.failure.on_loop, self._hear, None)
        preparer = TaskPreparer(unet_side, embedding_cache_bytes, card)
        failed = self.failure.of("the preparation thread")
        self._preparation = PreparationThread(preparer, self.residents, hear, failed)
        self.heartbeats.append(self._preparation.heartbeat)  # prompts are encoded on the device too
        self._previews = PreviewEncoder(unet_side, hear)
        self._steps = StepLoop(Denoiser(unet_side, unet), self.residents, self._previews, self.device)

    @property
    def slots(self) -> int:
        """Tasks that can be held at once."""
        return self.arena.slots

    @property
    def held(self) -> int:
        """Tasks."""
        return len(self.residents)

    def start(self) -> None:
        """Start the threads and tie the gauges to this worker."""
        metrics.SLOTS_TOTAL.set(self.arena.slots)
        metrics.SLOTS_USED.set_function(lambda: self.arena.slots - self.arena.free_slots)
        for state in ResidentState:
            metrics.RESIDENT_TASKS.labels(state.value).set_function(partial(self.residents.count, state))
        self._preparation.start()
        super().start()

    async def close(self) -> None:
        """End the threads, the running UNet call waited for, then the arena."""
        await super().close()
        for part in (self._preparation, self._previews, self.arena):
            await asyncio.to_thread(part.close)

    async def take_over(self, leader: Leader) -> None:
        """Return at an item boundary, with everything resident then."""
        boundary = asyncio.Event()
        self.device.abandon_plans(partial(self.failure.on_loop, boundary.set))
        await boundary.wait()
        leader.residents = self.residents.describe()

    def left(self) -> None:
        """Its plans run on: the next leader finds each task at its call."""

    def admit(self, spec: TaskSpec) -> None:
        """Hold a task and prepare it from the start; answered by TaskReady or TaskFailed."""
        refusal = self._refusal(spec)
        if refusal is not None:
            self._refuse(spec, *refusal)
            return
        known = self.residents.get(spec.task_id)
        if known is not None and known.spec == spec and _at_its_start(known):
            if known.state is ResidentState.READY:
                self.tell(self.leader, TaskReady(spec.task_id, known.num_calls, 0.0))
            return
        self.residents.drop([spec.task_id])
        try:
            resident = self.residents.admit(spec)
        except ArenaFull as error:
            self._refuse(spec, StatusCode.RESOURCE_EXHAUSTED, str(error))
            return
        log.info("task admitted", task_id=spec.task_id, sampler=spec.sampler.name, width=spec.width, height=spec.height)
        self._preparation.submit(resident)

    def run_plan(self, plan: UnetPlan, leader: Leader) -> None:
        """Queue a plan of the leader; a repeated or older one is ignored."""
        if self.accepts(plan.leader_token, plan.tick):
            self._steps.submit(plan, partial(self.failure.on_loop, self._hear, leader))

    def drop(self, task_ids: Iterable[str], why: str) -> None:
        """Forget tasks and free their slots at once."""
        for task_id in self.residents.drop(task_ids):
            log.info("task dropped", task_id=task_id, why=why)
        self._fewer_residents.set()

    async def until_done(self) -> None:
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
        if channels * rows * columns * self._unet_side.dtype.itemsize > self.arena.slot_bytes:
            return StatusCode.INVALID_ARGUMENT, f"{spec.width}x{spec.height}: too large for this worker's slots"
        return None

    def _refuse(self, spec: TaskSpec, code: StatusCode, message: str) -> None:
        self.tell(self.leader, TaskFailed(spec.task_id, code.value[0], message))

    def _hear(self, leader: Leader | None, message: Report | Preview) -> None:
        """Pass a thread's message to the plan's leader, or to the present one."""
        if isinstance(message, TaskFailed):
            self._fewer_residents.set()
        elif isinstance(message, UnetTickDone):
            _note_steps(message)
        self.tell(leader or self.leader, message)


def _note_steps(done: UnetTickDone) -> None:
    for timing in done.items:
        if timing.rows:
            metrics.UNET_CALLS.inc()
            metrics.BATCH_ROWS.observe(timing.rows)
            metrics.STEP_SECONDS.observe(timing.ms / 1000)
        metrics.HALVED_ITEMS.inc(timing.halved > 0)
    for task_id, slot in done.finished:
        log.info("task finished", task_id=task_id, slot=slot.index)


def _at_its_start(resident: Resident) -> bool:
    return resident.state is not ResidentState.FINISHED and (resident.task is None or resident.task.next_call == 0)
