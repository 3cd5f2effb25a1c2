"""A pool's leader at work: the engine, driven with real workers, Redis and the clock.

Leading begins by reading what the pool held, then attaches to its workers and what is resident there, then reads on.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

import grpc
from redis.exceptions import RedisError

from services.scheduler.engine.effects import (
    Admit,
    CancelOnWorker,
    FailJob,
    ForgetImages,
    ReleaseSlots,
    SendUnetPlan,
    SendVaePlan,
)
from services.scheduler.engine.engine import Engine
from services.scheduler.engine.tasks import PlannedPart, UnetLaneState, VaeLaneState
from services.scheduler.engine.ticks import TickLog
from services.scheduler.leading.observer import Observer
from services.scheduler.leading.options import LeaderOptions
from services.scheduler.leading.store_writer import StoreWriter
from services.scheduler.leading.worker_streams import WorkerStreams
from services.scheduler.planner.cold_plans import ColdPlans
from services.scheduler.profiles.keeper import ProfileKeeper
from services.scheduler.store.notifications import Subscription
from services.scheduler.store.queue import JobStore, Lease
from services.scheduler.telemetry.job_traces import JobTraces
from services.scheduler.telemetry.metrics import PoolMetrics
from synerdiff.cancellation import cancel_and_wait
from synerdiff.errors import StaleLeader, Unavailable
from synerdiff.jobs import JobRecord
from synerdiff.plans import DecodedImage, Preview, ResidentTask, TaskFailed, TaskReady, UnetTickDone, VaeTickDone
from synerdiff.profiles import Profile
from synerdiff.redis_client import trouble
from synerdiff.registry import WorkerRegistry
from synerdiff.telemetry import get_logger
from synerdiff.tracing import Tracer

log = get_logger("leader")

T = TypeVar("T")

WORKERS_EVERY_S = 0.5
BEAT_EVERY_S = 0.1
RECONCILE_EVERY_S = 1.0
CLAIM_EVERY_S = 5.0
CORRECT_EVERY_S = 1.0
PROFILES_EVERY_S = 0.5
CLAIM_ABSENCE_S = 60.0  # a pool without a leader for this long is not coming back soon: others take its jobs
WANT_IDLE_S = 0.02
_INTERNAL: int = grpc.StatusCode.INTERNAL.value[0]
READ_AGAIN_S = 0.5  # the safety net under pub/sub
_PLAN_AGAIN, _PLAN_AGAIN_S = 64, 2.0  # queries, and seconds that a corrected profile waits for their plans
_WORKER_EFFECTS = (Admit, SendUnetPlan, SendVaePlan, CancelOnWorker, ReleaseSlots, ForgetImages)


def now_ms() -> int:
    """Unix time in ms: deadlines and acceptance times are compared across processes."""
    return time.time_ns() // 1_000_000


class Leader:
    """One leadership: an engine with its streams and writes. Also what the streams report to."""

    def __init__(
        self,
        lease: Lease,
        options: LeaderOptions,
        store: JobStore,
        registry: WorkerRegistry,
        ticks: TickLog,
        tracer: Tracer | None = None,
    ) -> None:
        self.thresholds = options.thresholds()
        self.engine = Engine(options.policy, lease.token, options.bounds, self.thresholds)
        self.ended = asyncio.Event()
        self.newest_token = lease.token  # that this leader has met: the next leadership's must be above it
        self._lease = lease
        self._store = store
        self._registry = registry
        self._metrics = PoolMetrics.of_process()
        self.observer = Observer(self.engine.holdings, ticks, self._metrics)
        self._traces = JobTraces(tracer or Tracer(), self.engine.holdings, lease.token)
        self._leaving = False
        self.writer = StoreWriter(store, lease, self)
        self.streams = WorkerStreams(lease.token, self, options.worker_tls)
        self.keeper = ProfileKeeper(options.profiles, self.engine, self.streams.send, self._due)
        self._plans = options.plans
        self._cold_plans = ColdPlans(options.plans.add)
        self._pump_is_due = False

    async def lead(self) -> None:
        """Run until superseded or cancelled. Raises what ends one of its loops: half a leader is none."""
        for record in await self._store.read_pending(self._lease):
            self._job_arrived(record)
        loops = [
            asyncio.create_task(self._forever(loop, every_s))
            for loop, every_s in (
                (self._follow_workers, WORKERS_EVERY_S),
                (self._beat, BEAT_EVERY_S),
                (self._drop_ended, RECONCILE_EVERY_S),
                (self._claim_stale, CLAIM_EVERY_S),
                (self.correct_profiles, CORRECT_EVERY_S),
                (self.keeper.follow, PROFILES_EVERY_S),
            )
        ]
        endless = (self._follow_queue(), self._follow_controls(), self.writer.run(), self._cold_plans.run())
        loops += [asyncio.create_task(loop) for loop in endless]
        ended = asyncio.create_task(self.ended.wait())
        try:
            await asyncio.wait([ended, *loops], return_when=asyncio.FIRST_COMPLETED)
            for loop in loops:
                if loop.done():
                    loop.result()
        finally:
            self._leaving = True
            self._traces.left()
            await cancel_and_wait(ended, *loops)
            await self.keeper.close()
            await self.streams.close()
            await self.writer.stop()

    # ---- loops

    async def _forever(self, step: Callable[[], Awaitable[None]], every_s: float) -> None:
        """Repeat a step; a Redis that is away for a while is no reason to stop leading."""
        while True:
            try:
                await step()
            except StaleLeader:
                self.superseded()
            except (RedisError, Unavailable, OSError) as error:
                log.warning("redis cannot be used", error=trouble(error) or str(error))
                await asyncio.sleep(0.2)
            await asyncio.sleep(every_s)

    async def _follow_workers(self) -> None:
        records = await self._registry.workers(self._lease.pool)
        self.keeper.announced(record for record in records if not record.draining)
        self.streams.reconcile(records)

    async def _follow_queue(self) -> None:
        """Read what the engine wants, as it wants more and as jobs are accepted."""
        with self._store.listen_accepted() as accepted:
            await self._forever(partial(self._read_jobs, accepted), 0.0)

    async def _read_jobs(self, accepted: Subscription) -> None:
        """Read once, then wait for as long as reading again would find nothing."""
        more = False
        wanted = self.engine.wanted_jobs()
        for model, count in wanted.items():
            records = await self._store.read_new(self._lease, [model], count)
            more = more or len(records) == count
            for record in records:
                self._job_arrived(record)
        if not wanted:
            await asyncio.sleep(WANT_IDLE_S)
        elif not more:
            await accepted.wait(READ_AGAIN_S)

    def _job_arrived(self, record: JobRecord) -> None:
        """A job to be done: probes leave the workers before its first task comes there."""
        self.keeper.job_arrived()
        self.engine.job_arrived(record, now_ms())
        self._traces.job_arrived(record)
        self._due()

    async def _claim_stale(self) -> None:
        for model, count in self.engine.wanted_jobs().items():
            for record in await self._store.claim_stale(self._lease, [model], count, CLAIM_ABSENCE_S):
                self._job_arrived(record)

    async def _beat(self) -> None:
        self.engine.beat(now_ms())
        self._due()

    async def _drop_ended(self) -> None:
        held = list(self.engine.holdings.jobs)
        if not held:
            return
        gone = await self._store.gone(held, self._lease.pool)
        if gone.lost:
            log.error("redis has lost the records of accepted jobs", jobs=sorted(gone.lost))
        for job_id in gone.ended | gone.lost:
            self.job_ended_elsewhere(job_id)

    async def correct_profiles(self) -> None:
        """Let plans go by profiles as they turned out; made on another thread, since a table takes a while."""
        profiles = self.engine.holdings.profiles
        for domain, key, correction in self.observer.due(time.monotonic()):
            log_scales = correction.log_scales()
            corrected = await asyncio.to_thread(correction.corrected, log_scales)
            await self._plan_again(correction.current, corrected)
            if profiles.get((domain, key)) is correction.current:
                correction.adopt(corrected, log_scales, time.monotonic())
                self.engine.profile_known(domain, key, corrected)
                self._due()

    async def _plan_again(self, old: Profile, corrected: Profile) -> None:
        """Have for a corrected profile what was lately planned with the old one, so that no tick misses its plan."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PLAN_AGAIN_S):
                self._cold_plans.submit(corrected, self._plans.queries(old.digest)[-_PLAN_AGAIN:])
                await self._cold_plans.settled()

    async def _follow_controls(self) -> None:
        async for job_id in self._store.controls(self._lease.pool):
            self.job_ended_elsewhere(job_id)

    # ---- what streams and writes report

    def unet_attached(self, lane: UnetLaneState, resident: list[ResidentTask]) -> None:
        """A UNet worker is there."""
        self.engine.unet_attached(lane, resident)
        self._traces.all_moved()
        self._due()

    def vae_attached(self, lane: VaeLaneState) -> None:
        """A VAE worker is there."""
        self.engine.vae_attached(lane)
        self._due()

    def worker_lost(self, worker_id: str) -> None:
        """A worker's stream has ended."""
        holdings = self.engine.holdings
        lane = holdings.unet.get(worker_id) or holdings.vae.get(worker_id)
        if lane and not lane.draining and not self._leaving:
            self._metrics.worker_lost("unet" if worker_id in holdings.unet else "vae")
        self.keeper.worker_lost(worker_id)
        self.engine.unet_lost(worker_id)
        self.engine.vae_lost(worker_id)
        self._traces.all_moved()
        self._due()

    def worker_announced(self, worker_id: str, announced: bool) -> None:
        """Whether a worker still announces itself."""
        self.engine.worker_announced(worker_id, announced)
        self._due()

    def task_ready(self, worker_id: str, ready: TaskReady) -> None:
        """A task is prepared."""
        self.keeper.task_ready(ready)
        self.engine.task_ready(worker_id, ready)
        self._traces.moved((ready.task_id,))
        self._due()

    def task_failed(self, worker_id: str, failed: TaskFailed) -> None:
        """A task cannot be done."""
        self.keeper.task_failed(failed)
        self.engine.task_failed(worker_id, failed)
        self._traces.moved((failed.task_id,))
        self._due()

    def unet_tick_done(self, worker_id: str, done: UnetTickDone) -> None:
        """A UNet plan has run: the next one first, the books after."""
        planned = self._planned(worker_id, done.tick)
        self.engine.unet_tick_done(worker_id, done, now_ms())
        self._pump()
        self.observer.reported(worker_id, "unet", done, planned)
        self._trace(worker_id, "unet", done, planned)
        self.keeper.unet_tick_done(worker_id, done)

    def vae_tick_done(self, worker_id: str, done: VaeTickDone) -> None:
        """A VAE plan has run."""
        planned = self._planned(worker_id, done.tick)
        self.engine.vae_tick_done(worker_id, done)
        self._pump()
        self.observer.reported(worker_id, "vae", done, planned)
        self._trace(worker_id, "vae", done, planned)
        self.keeper.vae_tick_done(worker_id, done)

    def image_decoded(self, worker_id: str, image: DecodedImage) -> None:
        """An image file has come."""
        self.engine.image_decoded(worker_id, image, now_ms())
        self._traces.decoded(image)
        self._due()

    def preview_drawn(self, preview: Preview) -> None:
        """A preview has come."""
        self.engine.preview_drawn(preview)
        self._due()

    def superseded(self, newest_token: int = 0) -> None:
        """Another leader holds the pool, or a worker; `newest_token`: where the worker says."""
        self.newest_token = max(self.newest_token, newest_token)
        self.ended.set()

    def image_stored(self, task_id: str) -> None:
        """Redis holds an image."""
        self.engine.image_stored(task_id, now_ms())
        self._traces.moved((task_id,))
        self._due()

    def images_missing(self, record: JobRecord) -> None:
        """Redis has lost images of a job that was about to be finished: they are drawn again."""
        log.error("redis has lost images of a job", job_id=record.job_id, images_left=list(record.images_done))
        self._job_arrived(record)

    def cannot_write(self, job_id: str, reason: str) -> None:
        """A job whose state in Redis and here do not go together fails: it would never end otherwise."""
        job = self.engine.holdings.jobs.get(job_id)
        if job:
            self.engine.holdings.fail(job_id, _INTERNAL, reason)
            self._due()
        else:
            self.writer.submit(FailJob(job_id, now_ms(), _INTERNAL, reason))

    def job_ended_elsewhere(self, job_id: str) -> None:
        """A job was cancelled, swept or claimed: its tasks are nobody's business here any more."""
        job = self.engine.holdings.jobs.get(job_id)
        if job:
            record, now = job.record, now_ms()
            outcome = "expired" if record.deadline_ms and record.deadline_ms <= now else "cancelled"
            self._metrics.job_ended(outcome, now - record.accepted_at_ms)
            self._traces.job_ended(job_id, outcome)
        self.engine.job_dropped(job_id)
        self._due()

    def _planned(self, worker_id: str, tick: int) -> PlannedPart | None:
        """What a worker was asked to do in a tick, while its report has not been taken."""
        lane = self.engine.holdings.unet.get(worker_id) or self.engine.holdings.vae.get(worker_id)
        return lane.plans.get(tick) if lane else None

    def _trace(self, worker_id: str, kind: str, done: UnetTickDone | VaeTickDone, planned: PlannedPart | None) -> None:
        """A tick's share of the traces; of those tasks that it moved, the stage ends with it."""
        lane = self.engine.holdings.unet.get(worker_id) or self.engine.holdings.vae.get(worker_id)
        if lane:
            self._traces.ticked(lane, kind, done, planned)
        if isinstance(done, UnetTickDone):
            self._traces.moved(task_id for task_id, _ in done.finished)
        self._traces.moved(entry.task_id for entry in done.skipped)

    # ---- the engine's wishes

    def _due(self) -> None:
        """Pump once after everything that has come in this turn of the event loop."""
        if not self._pump_is_due:
            self._pump_is_due = True
            asyncio.get_running_loop().call_soon(self._pump)

    def _pump(self) -> None:
        self._pump_is_due = False
        self.engine.pump(now_ms())
        for effect in self.engine.take_effects():
            if isinstance(effect, _WORKER_EFFECTS):
                self.streams.send(effect)
                if isinstance(effect, Admit):
                    self._traces.moved((effect.task.task_id,))
            else:
                self._metrics.observe_effect(effect, now_ms())
                self._traces.effect(effect)
                self.writer.submit(effect)
        for profile, query in self._plans.take_missing():
            self._cold_plans.submit(profile, [query])
