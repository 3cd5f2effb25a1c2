"""A leader's records of events and effects: log, ticks, metrics, corrections of profiles."""

import asyncio
import contextlib
import time
from collections.abc import Callable

from services.scheduler.engine.effects import Effect, FailJob, FinishJob, LetJobGo, StoreImage
from services.scheduler.engine.events import DomainGone, Event, JobDropped, ProfileKnown, Reported, WorkerLost
from services.scheduler.engine.holdings import Holdings
from services.scheduler.engine.tasks import Phase, UnetLaneState
from services.scheduler.engine.ticks import MeasuredItem, Pairing, PlannedPart, TickLog, TickRecord
from services.scheduler.planner.plan_book import ColdPlans, PlanBook
from services.scheduler.policy.snapshots import BatchKey
from services.scheduler.profiles.corrections import ProfileCorrection
from services.scheduler.telemetry.decode_backlog import DecodeTimes
from services.scheduler.telemetry.job_ends import tell_lost
from services.scheduler.telemetry.metrics import EndedJob, PoolMetrics
from synerdiff.plans import UnetTickDone, VaeTickDone
from synerdiff.profiles import Profile
from synerdiff.telemetry import get_logger

log = get_logger("observer")

_PLAN_AGAIN, _PLAN_AGAIN_S = 64, 2.0  # queries, and seconds that a corrected profile waits for their plans


class Observer:
    """One per leadership. Reads the holdings and changes nothing of them.

    `corrections`: by domain and batch key, of every profile in use that items were measured for.
    `thresholds`: that of each domain's last reported tick. `decode_times`: of decodes as they ran.
    """

    def __init__(self, holdings: Holdings, ticks: TickLog, metrics: PoolMetrics) -> None:
        self.corrections: dict[tuple[str, BatchKey], ProfileCorrection] = {}
        self.thresholds: dict[str, float] = {}
        self.decode_times = DecodeTimes()
        self._holdings = holdings
        self._ticks = ticks
        self._metrics = metrics
        self._pairing = Pairing()
        self._stepped: dict[str, frozenset[str]] = {}

    def before(self, event: Event) -> None:
        """Count an undrained worker that is lost, and a lost job, before the engine takes the event."""
        held = self._holdings
        match event:
            case WorkerLost(worker_id):
                lane = held.lane(worker_id)
                if lane and lane.takes_new:
                    self._metrics.losses.labels("unet" if worker_id in held.unet else "vae").inc()
            case JobDropped(job_id, lost=True) if job_id in held.jobs:
                tell_lost(job_id, held.jobs[job_id].record)

    def effect(self, effect: Effect) -> None:
        """An effect that is not a worker's."""
        match effect:
            case StoreImage():
                self._metrics.images.inc()
            case FinishJob(accepted_at_ms=accepted_at_ms, timings=timings):
                self._ended("finished", accepted_at_ms)
                for stage, seconds in self._metrics.of_stage.items():
                    seconds.observe(getattr(timings, f"{stage}_ms") / 1000)
            case FailJob(accepted_at_ms=accepted_at_ms):
                self._ended("failed", accepted_at_ms)
            case LetJobGo(accepted_at_ms=accepted_at_ms, outcome=outcome):
                self._ended(outcome, accepted_at_ms)

    def _ended(self, outcome: str, accepted_at_ms: int) -> None:
        now_ms = time.time_ns() / 1e6
        self._metrics.ended.add(EndedJob(now_ms, outcome, now_ms - accepted_at_ms))

    def on(self, event: Event, planned: PlannedPart | None) -> None:
        """An event that the engine has taken, once the next plans are out. `planned`: as `Engine.on` said."""
        match event:
            case Reported(worker_id, UnetTickDone() as done):
                self.reported(worker_id, "unet", done, planned)
            case Reported(worker_id, VaeTickDone() as done):
                self.reported(worker_id, "vae", done, planned)
            case DomainGone(domain):
                self.thresholds.pop(domain, None)

    def reported(
        self, worker_id: str, kind: str, done: UnetTickDone | VaeTickDone, planned: PlannedPart | None
    ) -> None:
        """A tick has run. `planned`: the part of it that this worker was asked for, if by this leader."""
        held = self._holdings
        lane = held.lane(worker_id)
        if lane is None:
            return
        being_decoded = sum(task.phase is Phase.DECODING for vae in held.vae.values() for task in vae.tasks.values())
        queues = len(held.waiting), len(held.ready) + being_decoded
        record = TickRecord.of((lane.domain, worker_id, kind), done, planned, queues)
        self._ticks.add(record)
        self._count(kind, done)
        if isinstance(done, VaeTickDone):
            self.decode_times.reported(done, planned)
        if planned is None:
            return
        self.thresholds[lane.domain] = planned.threshold
        if isinstance(lane, UnetLaneState):
            if skips := sum(item.skips for item in planned.items):
                self._metrics.skipped_steps.labels(lane.model).inc(skips)
            self._count_set_aside(lane, frozenset(planned.task_ids))
        for item in self._pairing.add(record):
            self._measured(item)
        if any(timing.halved for timing in done.items):
            self._tell_shortage(worker_id, kind, lane.domain, done, planned)

    def _count(self, kind: str, done: UnetTickDone | VaeTickDone) -> None:
        ticks, rows, seconds = self._metrics.of_kind[kind]
        ticks.inc()
        for item in done.items:
            rows.observe(item.rows)
            seconds.observe((item.end_unix_ns - item.start_unix_ns) / 1e9)
            if item.halved:
                self._metrics.halved.labels(kind).inc()
        for entry in done.skipped:
            self._metrics.skipped.labels(kind, entry.reason.name.lower()).inc()

    def due(self, now_s: float) -> list[tuple[str, BatchKey, ProfileCorrection]]:
        """The profiles that have drifted far enough; the records of gone workers and profiles are forgotten."""
        held = self._holdings
        self._stepped = {worker_id: ids for worker_id, ids in self._stepped.items() if worker_id in held.unet}
        self.corrections = {place: c for place, c in self.corrections.items() if place in held.profiles}
        return [(*place, c) for place, c in self.corrections.items() if c.due(now_s)]

    def _tell_shortage(
        self, worker_id: str, kind: str, domain: str, done: UnetTickDone | VaeTickDone, planned: PlannedPart
    ) -> None:
        fewest = min(timing.halved for timing in done.items if timing.halved)
        caps = self._holdings.memory.of(domain, planned.key) if planned.key else None
        now = {"most_tasks": caps.unet} if caps and kind == "unet" else {"most_decodes": caps.vae} if caps else {}
        log.warning("memory did not suffice: smaller items from now on", worker_id=worker_id, at_once=fewest, **now)

    def _measured(self, item: MeasuredItem) -> None:
        ratio, key = item.ratio, item.planned.key
        if ratio is None:
            return
        self._metrics.ratios[item.kind].observe(ratio)
        profile = self._holdings.profiles.get((item.domain, key)) if key else None
        if key and profile:
            self._correction(item.domain, key, profile).observe(item)

    def _correction(self, domain: str, key: BatchKey, profile: Profile) -> ProfileCorrection:
        """The correction of the profile in use; that of another profile is forgotten."""
        correction = self.corrections.get((domain, key))
        if correction and profile is not correction.current and profile == correction.original:
            correction.revert(profile)
        elif correction is None or profile is not correction.current:
            correction = self.corrections[domain, key] = ProfileCorrection(profile)
        return correction

    def _count_set_aside(self, lane: UnetLaneState, stepped: frozenset[str]) -> None:
        """Count the tasks that stepped in the worker's tick before this one, not in this one, and are not done."""
        left_out = self._stepped.get(lane.worker_id, frozenset()) - stepped
        self._stepped[lane.worker_id] = stepped
        tasks = (lane.tasks.get(task_id) for task_id in left_out)
        set_aside = sum(1 for task in tasks if task and task.phase is Phase.RUNNING)
        if set_aside:
            self._metrics.set_aside.labels(lane.model).inc(set_aside)


async def correct_profiles(
    holdings: Holdings, observer: Observer, plans: PlanBook, cold: ColdPlans, on: Callable[[ProfileKnown], None]
) -> None:
    """Replace the profiles that have drifted; made on another thread, since a table takes a while."""
    for domain, key, correction in observer.due(time.monotonic()):
        log_scales, old = correction.log_scales(), correction.current
        corrected = await asyncio.to_thread(correction.corrected, log_scales)
        # Plan the latest queries of the old profile with the new one, so that no tick misses its plan.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PLAN_AGAIN_S):
                cold.submit(corrected, plans.queries(old.digest)[-_PLAN_AGAIN:])
                await cold.settled()
        if holdings.profiles.get((domain, key)) is correction.current:
            correction.adopt(corrected, log_scales, time.monotonic())
            on(ProfileKnown(domain, key, corrected))
