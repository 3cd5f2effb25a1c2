"""A pool's leader at work: the engine, driven with real workers, Redis and the clock.

A leader first reads the jobs that the pool held, then attaches to its workers and their tasks, then reads on.

A leadership is whole or over. An exception in any part of it, the engine first of all, may leave the holdings
wrong, and plans from wrong holdings hang jobs or assign a slot twice. The jobs are in Redis and their tasks on the
workers; the next leader makes new holdings from these within seconds. So a fault ends the leadership.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from functools import partial

from redis.exceptions import RedisError

from services.scheduler.engine.effects import StoreEffect, WorkerEffect
from services.scheduler.engine.engine import Engine, EngineBounds
from services.scheduler.engine.events import DomainGone, Event, JobArrived, JobDropped, JobEvent, Reported
from services.scheduler.engine.ticks import TickLog
from services.scheduler.leading.observer import Observer, correct_profiles
from services.scheduler.leading.store_writer import StoreWriter
from services.scheduler.leading.worker_stream import Patience
from services.scheduler.leading.worker_streams import WorkerStreams
from services.scheduler.planner.plan_book import ColdPlans, PlanBook
from services.scheduler.policy.policies import ConfiguredPolicy
from services.scheduler.policy.snapshots import Thresholds
from services.scheduler.profiles.keeper import KeeperOptions, ProfileKeeper
from services.scheduler.store.notifications import Subscription
from services.scheduler.store.queue import JobStore
from services.scheduler.store.scripts import Lease
from services.scheduler.telemetry.job_ends import tell_lost
from services.scheduler.telemetry.job_traces import JobTraces
from services.scheduler.telemetry.metrics import PoolMetrics
from synerdiff.errors import StaleLeader, Unavailable
from synerdiff.jobs import JobRecord
from synerdiff.plans import UnetTickDone, VaeTickDone
from synerdiff.redis_client import TROUBLE_LOG
from synerdiff.registry import WorkerRegistry
from synerdiff.stopping import cancel_and_wait
from synerdiff.telemetry import get_logger
from synerdiff.tls import ClientTls
from synerdiff.tracing import Tracer

log = get_logger("leader")

WORKERS_EVERY_S = 0.5
DEADLINES_EVERY_S = 0.1
RECONCILE_EVERY_S = 1.0
CLAIM_EVERY_S = 5.0
CORRECT_EVERY_S = 1.0
PROFILES_EVERY_S = 0.5
CLAIM_ABSENCE_S = 60.0  # a pool without a leader for this long is not coming back soon: others take its jobs
WANT_IDLE_S = 0.02
READ_AGAIN_S = 0.5  # the safety net under pub/sub


@dataclass(frozen=True)
class LeaderOptions:
    """`thresholds` makes each leadership's source of thresholds for ticks. `plans`: the policy's memory of planned
    rounds, which the leader fills."""

    policy: ConfiguredPolicy
    bounds: EngineBounds = field(default_factory=EngineBounds)
    thresholds: Callable[[], Thresholds | None] = lambda: None
    profiles: KeeperOptions = field(default_factory=KeeperOptions)
    plans: PlanBook = field(default_factory=PlanBook)
    worker_tls: ClientTls | None = None
    patience: Patience = field(default_factory=Patience)


class JobReader:
    """One per leadership. Methods but `follow_controls` are steps, to be repeated; they raise the store's errors."""

    def __init__(self, store: JobStore, lease: Lease, engine: Engine, on: Callable[[JobEvent], None]) -> None:
        self._store = store
        self._lease = lease
        self._engine = engine
        self._on = on
        self._accepted: set[str] = set()  # models whose jobs were accepted of late

    async def read_pending(self) -> None:
        """Read the jobs that an earlier leader of the pool left."""
        self._arrived(await self._store.read_pending(self._lease))

    async def read_new(self, accepted: Subscription) -> None:
        """Read once, then wait for as long as reading again would find nothing. A pool that is full reads on only as
        jobs are accepted: one may be of a caller that has few here."""
        room = more = False
        for model, wanted in self._engine.wanted().items():
            if wanted.jobs > 0 or model in self._accepted:
                records = await self._store.read_new(self._lease, [model], *wanted)
                self._arrived(records)
                room = room or wanted.jobs > 0
                more = more or len(records) >= wanted.jobs > 0
        if not more:
            if not room:
                await asyncio.sleep(WANT_IDLE_S)
            self._accepted = {model.decode() for model in await accepted.wait(READ_AGAIN_S if room else 0.0)}

    async def claim_stale(self) -> None:
        """Take over the jobs of pools that have had no leader for long."""
        for model, count in self._engine.wanted_jobs().items():
            self._arrived(await self._store.claim_stale(self._lease, [model], count, CLAIM_ABSENCE_S))

    async def drop_ended(self) -> None:
        """Drop jobs that have ended or are lost without a message to this leader."""
        held = list(self._engine.holdings.jobs)
        if not held:
            return
        gone = await self._store.gone(held, self._lease.pool)
        for job_id in gone.ended | gone.lost:
            self._on(JobDropped(job_id, lost=job_id in gone.lost))

    async def follow_controls(self) -> None:
        """Drop jobs as they are cancelled."""
        async for job_id in self._store.controls(self._lease.pool):
            self._on(JobDropped(job_id))

    def _arrived(self, records: Iterable[JobRecord]) -> None:
        for record in records:
            self._on(JobArrived(record))


def now_ms() -> int:
    """Unix time in ms: deadlines and acceptance times are compared across processes."""
    return time.time_ns() // 1_000_000


class Leader:
    """One leadership: events in, the engine, its effects out. The `Listener` of its streams and its writer."""

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
        self._fault: BaseException | None = None
        self._lease = lease
        self._store = store
        self._registry = registry
        self.observer = Observer(self.engine.holdings, ticks, PoolMetrics.of_process())
        self._traces = JobTraces(tracer or Tracer(), self.engine.holdings, lease.token)
        self.writer = StoreWriter(store, lease, self)
        self.streams = WorkerStreams(lease.token, self, options.worker_tls, options.patience)
        self._jobs = JobReader(store, lease, self.engine, self.on)
        self.keeper = ProfileKeeper(options.profiles, self.engine, self.streams.send, self.on)
        self._plans = options.plans
        self._cold_plans = ColdPlans(options.plans.add)
        self._domains: set[str] = set()
        self._pump_is_due = False

    async def lead(self) -> None:
        """Run until superseded or cancelled. Raises the error of any part, which ends all parts."""
        async with contextlib.AsyncExitStack() as leaving:  # all of it, whatever fails on the way out
            for close in (self._tell_losses, self.writer.stop, self.streams.close, self.keeper.close):
                leaving.push_async_callback(close)
            leaving.callback(self._traces.left)
            leaving.callback(self.ended.set)
            await self._jobs.read_pending()
            ended, parts = asyncio.create_task(self.ended.wait()), list(map(asyncio.create_task, self._parts()))
            leaving.push_async_callback(cancel_and_wait, ended, *parts)
            await asyncio.wait([ended, *parts], return_when=asyncio.FIRST_COMPLETED)
            if self._fault:
                raise self._fault
            for part in parts:
                if part.done():
                    part.result()
                    raise RuntimeError(f"{part.get_coro()} has ended")

    def _parts(self) -> list[Coroutine[None, None, None]]:
        repeated = (
            (self._follow_workers, WORKERS_EVERY_S),
            (self._check_deadlines, DEADLINES_EVERY_S),
            (self._jobs.drop_ended, RECONCILE_EVERY_S),
            (self._jobs.claim_stale, CLAIM_EVERY_S),
            (self.correct_profiles, CORRECT_EVERY_S),
            (self.keeper.follow, PROFILES_EVERY_S),
        )
        parts = [self._forever(step, every_s) for step, every_s in repeated]
        return [*parts, self._follow_queue(), self._jobs.follow_controls(), self.writer.run(), self._cold_plans.run()]

    # ---- the Listener of streams and writer

    def on(self, event: Event) -> None:
        """Take an event: the engine first, then the next plans, and the observers only after them."""
        if self.ended.is_set():
            return
        try:
            report = event.report if isinstance(event, Reported) else None
            if report is None or self.keeper.prober:
                self.keeper.on(event)
            self.observer.before(event)
            planned = self.engine.on(event, now_ms())
            if isinstance(report, UnetTickDone | VaeTickDone):
                self._pump()
            else:
                self._pump_soon()
            self.observer.on(event, planned)
            self._traces.on(event, planned)
        except Exception as error:
            self.failed(error)

    def superseded(self, newest_token: int = 0) -> None:
        """Another leader holds the pool, or a worker; `newest_token`: where the worker says."""
        self.newest_token = max(self.newest_token, newest_token)
        self.ended.set()

    def failed(self, error: BaseException) -> None:
        """A part of this leadership cannot go on: `lead` ends, and raises it."""
        self._fault = self._fault or error
        self.ended.set()

    async def _tell_losses(self) -> None:
        """Log jobs that Redis has lost as this leadership ends, maybe because of them: no other knows of them."""
        held = self.engine.holdings.jobs
        job_ids = sorted(held.keys() | self.writer.unwritten)
        with contextlib.suppress(RedisError, Unavailable, OSError):
            for job_id in (await self._store.gone(job_ids)).lost if job_ids else ():
                tell_lost(job_id, held[job_id].record if job_id in held else None)

    # ---- carrying out effects

    def _pump_soon(self) -> None:
        """Pump once after everything that has come in this turn of the event loop."""
        if not self._pump_is_due:
            self._pump_is_due = True
            asyncio.get_running_loop().call_soon(self._pump_or_fail)

    def _pump_or_fail(self) -> None:
        try:
            self._pump()
        except Exception as error:
            self.failed(error)

    def _pump(self) -> None:
        self._pump_is_due = False
        try:
            self.engine.pump(now_ms())
        finally:  # domains whose planning failed do not keep the plans of the others back
            self._carry_out()
        if self._plans.missing:
            for profile, query in self._plans.take_missing():
                self._cold_plans.submit(profile, [query])

    def _carry_out(self) -> None:
        for effect in self.engine.take_effects():
            if isinstance(effect, WorkerEffect):
                self.streams.send(effect)
            else:
                self.observer.effect(effect)
                if isinstance(effect, StoreEffect):
                    self.writer.submit(effect)
            self._traces.effect(effect)

    # ---- parts

    async def _forever(self, step: Callable[[], Awaitable[None]], every_s: float) -> None:
        """Repeat a step; a Redis that is away for a while is no reason to stop leading."""
        while True:
            try:
                await step()
            except StaleLeader:
                self.superseded()
            except (RedisError, Unavailable, OSError) as error:
                if not TROUBLE_LOG.failed(error):
                    log.warning("redis cannot be used", error=str(error))
                await asyncio.sleep(0.2)
            await asyncio.sleep(every_s)

    async def _follow_workers(self) -> None:
        records = await self._registry.workers(self._lease.pool)
        self.keeper.announced(record for record in records if not record.draining)
        self.streams.reconcile(records)
        before, self._domains = self._domains, self.engine.holdings.domains() | {record.domain for record in records}
        for domain in before - self._domains:
            self.on(DomainGone(domain))

    async def _follow_queue(self) -> None:
        """Read jobs as the engine wants more, and as they are accepted."""
        with self._store.listen_accepted() as accepted:
            await self._forever(partial(self._jobs.read_new, accepted), 0.0)

    async def correct_profiles(self) -> None:
        """Plan with profiles corrected by measured times."""
        await correct_profiles(self.engine.holdings, self.observer, self._plans, self._cold_plans, self.on)

    async def _check_deadlines(self) -> None:
        self.engine.check_deadlines(now_ms())
        self._pump_soon()
