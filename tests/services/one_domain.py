"""The engine with a real UNet and a real VAE worker in one process: no scheduler process, no Redis, no Run streams."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

from services.scheduler.engine.effects import (
    Admit,
    CancelOnWorker,
    Effect,
    FailJob,
    FinishJob,
    ForgetImages,
    ReleaseSlots,
    SendUnetPlan,
    SendVaePlan,
    StoreImage,
)
from services.scheduler.engine.engine import Engine
from services.scheduler.engine.events import Event, ImageStored, Report, Reported, UnetAttached, VaeAttached
from services.scheduler.engine.tasks import UnetLaneState, VaeLaneState
from services.scheduler.engine.ticks import TickLog
from services.scheduler.leading.observer import Observer
from services.scheduler.telemetry.metrics import PoolMetrics
from services.unet_worker.stage import largest_slot_bytes
from services.unet_worker.worker import UnetWorker
from services.vae_worker.worker import VaeWorker
from synerdiff.latents.arena import Arena
from synerdiff.latents.memory import ProcessMemory
from synerdiff.models.family import UnetSide, VaeSide
from synerdiff.plans import TaskFailed, TaskReady, UnetTickDone, VaeTickDone
from synerdiff.stopping import cancel_and_wait
from synerdiff.worker.leader import Leader
from tests.services.worker_processes import served_arena
from tests.waiting import HANG_S

DOMAIN, TOKEN = "here", 1


@dataclass
class OneDomain:
    """`finished`, `failed_jobs`: jobs; `failed`: tasks; `reports`: of ticks. Tasks are ready once `slots` of them."""

    engine: Engine
    unet: UnetWorker
    vae: VaeWorker
    arena_address: str
    slots: int
    finished: set[str] = field(default_factory=set)
    failed_jobs: list[str] = field(default_factory=list)
    failed: list[TaskFailed] = field(default_factory=list)
    reports: list[UnetTickDone | VaeTickDone] = field(default_factory=list)
    ready: list[TaskReady] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.observer = Observer(self.engine.holdings, TickLog(), PoolMetrics.of_process())
        self._changed = asyncio.Event()

    async def attach(self, model: str) -> list[asyncio.Task[None]]:
        """Open both lanes; the tasks to cancel at the end."""
        leader = self.leader = await self.unet.attach(TOKEN)
        unet = UnetLaneState("unet", DOMAIN, model, slots=self.slots, arena_address=self.arena_address)
        self.on(UnetAttached(unet, leader.residents))
        self.on(VaeAttached(VaeLaneState("vae", DOMAIN, model)))
        return [asyncio.create_task(self._hear_unet(leader)), asyncio.create_task(self._hear_images())]

    async def until_ended(self, jobs: int) -> None:
        """Pump until so many jobs have ended."""
        async with asyncio.timeout(HANG_S):
            while len(self.finished) + len(self.failed_jobs) < jobs:
                self.pump()
                self._changed.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), 0.1)
                self.engine.check_deadlines(_now_ms())

    def on(self, event: Event) -> None:
        """Something has happened."""
        self.observer.on(event, self.engine.on(event, _now_ms()))

    def pump(self) -> None:
        """Carry out what the engine wishes."""
        self.engine.pump(_now_ms())
        while effects := self.engine.take_effects():
            for effect in effects:
                self._carry_out(effect)
            self.engine.pump(_now_ms())

    def _carry_out(self, effect: Effect) -> None:
        match effect:
            case Admit(task=spec):
                self.unet.admit(spec)
            case SendUnetPlan(plan=plan):
                self.unet.run_plan(plan, self.leader)
            case SendVaePlan(plan=plan):
                self.vae.loop.submit(plan, partial(self._heard, "vae"))
            case CancelOnWorker() | ReleaseSlots() | ForgetImages():
                self._let_go(effect)
            case StoreImage(image=image):
                self.on(ImageStored(image.task_id))
            case FinishJob(job_id=job_id):
                self.finished.add(job_id)
            case FailJob(message=message):
                self.failed_jobs.append(message)

    def _let_go(self, effect: CancelOnWorker | ReleaseSlots | ForgetImages) -> None:
        if effect.worker_id == "unet":
            self.unet.drop(effect.task_ids, "not wanted any more")
        elif isinstance(effect, CancelOnWorker):
            self.vae.loop.cancel(effect.task_ids)
        else:
            self.vae.outbox.forget(effect.task_ids)

    async def _hear_unet(self, leader: Leader) -> None:
        async for message in leader.messages():
            if isinstance(message, TaskReady):
                self._one_more_ready(message)
            else:
                self._heard("unet", message)

    def _one_more_ready(self, ready: TaskReady) -> None:
        self.ready.append(ready)
        if len(self.ready) == self.slots:
            for each in self.ready:
                self._heard("unet", each)
            self.ready.clear()

    async def _hear_images(self) -> None:
        async for image in self.vae.outbox.follow(TOKEN):
            self._heard("vae", image)

    def _heard(self, worker_id: str, report: Report) -> None:
        if isinstance(report, TaskFailed):
            self.failed.append(report)
        elif isinstance(report, UnetTickDone | VaeTickDone):
            self.reports.append(report)
        self.on(Reported(worker_id, report))
        self._changed.set()


@asynccontextmanager
async def one_domain(
    engine: Engine, unet_side: UnetSide, vae_side: VaeSide, model: str, slots: int = 8
) -> AsyncIterator[OneDomain]:
    """A domain that serves `model` with `slots` slots of pictures up to 64 x 64 pixels."""
    arena = Arena(slots, largest_slot_bytes(unet_side, 64), "float32", ProcessMemory())
    unet = UnetWorker("unet", unet_side, arena, threads=1)
    vae = VaeWorker("vae", vae_side, encode_threads=1, outbox_bytes=1 << 24, threads=1)
    unet.start()
    vae.start()
    async with served_arena(arena) as address:
        made = OneDomain(engine, unet, vae, address, slots)
        tasks = await made.attach(model)
        try:
            yield made
        finally:
            await cancel_and_wait(*tasks)
            await unet.close()
            await vae.close()


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
