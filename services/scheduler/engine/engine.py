"""The engine: events change the holdings, and plans follow. Pure: no clock, no I/O, no randomness.

Events come in by `on`, each with its time; effects come out of `take_effects`. A leader drives it with real workers,
the simulation with virtual ones. Plans run ahead of reports by `plan_ahead` ticks, so that no worker waits for the
scheduler; a plan is therefore conditional, and a skipped entry only moves its task's mark back.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import grpc

from services.scheduler.engine.effects import Effect, FailJob, LetJobGo
from services.scheduler.engine.events import (
    BudgetKnown,
    Event,
    ImageStored,
    JobArrived,
    JobDropped,
    JobUnwritable,
    ProfileKnown,
    ProfileUnknown,
    Reported,
)
from services.scheduler.engine.foresight import Foresight
from services.scheduler.engine.holdings import Holdings
from services.scheduler.engine.planning import dispatch, domain_snapshot, has_room, pool_snapshot
from services.scheduler.engine.tasks import Job, Phase, Task
from services.scheduler.engine.ticks import PlannedPart
from services.scheduler.engine.worker_events import take_lane_event, take_report
from services.scheduler.policy.policies import ConfiguredPolicy
from services.scheduler.policy.snapshots import BatchKey, Thresholds
from synerdiff.jobs import JobRecord, JobState
from synerdiff.requests import task_spec
from synerdiff.telemetry import get_logger

log = get_logger("engine")

_INTERNAL = grpc.StatusCode.INTERNAL.value[0]
_FAILED_PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION.value[0]
_DEADLINE_EXCEEDED = grpc.StatusCode.DEADLINE_EXCEEDED.value[0]

# Digests by kind of worker, UNet or VAE, and model.
_HeldWeights = dict[tuple[str, str], set[str]]


def fail_late_jobs(holdings: Holdings, now_ms: int) -> None:
    """End the jobs whose deadline has passed."""
    late = [job.record for job in holdings.jobs.values() if job.record.deadline_ms <= now_ms]
    for record in late:
        seconds = record.request.timeout_ms / 1000
        holdings.fail(record.job_id, _DEADLINE_EXCEEDED, f"timeout: the request's {seconds:g} s ran out")


def fail_jobs_of_other_weights(holdings: Holdings, now_ms: int, wait_s: float) -> None:
    """End the jobs whose weights no worker has served for `wait_s`, though others of the same model are served."""
    held = _held_weights(holdings)
    for job in list(holdings.jobs.values()):
        lacking = _lacking_weights(job, held)
        if not lacking:
            job.lacking_ms = 0
        elif not job.lacking_ms:
            job.lacking_ms = now_ms
        elif now_ms - job.lacking_ms >= wait_s * 1000:
            model = job.record.request.model
            message = f"model {model!r}: accepted for {lacking}; no worker has served those for {wait_s:g} s: ask again"
            holdings.fail(job.record.job_id, _FAILED_PRECONDITION, message)


def _held_weights(holdings: Holdings) -> _HeldWeights:
    """The digests of the weights on workers that take new work."""
    held: _HeldWeights = {}
    for kind, lanes in (("UNet", holdings.unet.values()), ("VAE", holdings.vae.values())):
        for lane in lanes:
            if lane.takes_new:
                held.setdefault((kind, lane.model), set()).add(lane.weights)
    return held


def _lacking_weights(job: Job, held: _HeldWeights) -> str:
    """Which weights the job waits for, in words, while workers hold others of its model alone; empty: none."""
    needed = (("UNet", job.unet_weights, Phase.WAITING), ("VAE", job.vae_weights, Phase.READY_TO_DECODE))
    for kind, wanted, last in needed:
        found = held.get((kind, job.record.request.model))
        if not wanted or not found or found & {wanted, ""}:
            continue
        if any(task.phase.value <= last.value for task in job.tasks):
            others = ", ".join(sorted(digest[:12] for digest in found))
            return f"{kind} weights {wanted[:12]}, and only {others} are served"
    return ""


@dataclass(frozen=True)
class EngineBounds:
    """The bounds of the engine.

    `plan_ahead`: plans under way per worker. `max_deaths`: losses of its worker that a task survives. `read_ahead`:
    jobs read from the queue per slot, so that the most urgent can be chosen and the rest waits in Redis.
    `weights_wait_s`: how long a job waits for the weights it was accepted for, while only others are served.
    """

    plan_ahead: int = 2
    max_deaths: int = 10
    read_ahead: int = 2
    weights_wait_s: float = 60.0


class Wanted(NamedTuple):
    """The jobs to read from a model's queue: at most `jobs`, and past that the next one while its caller has fewer than
    `share` tasks waiting here. So a flood that fills the pool does not keep other callers out of it.

    `waiting`: tasks by caller.
    """

    jobs: int
    share: int
    waiting: Mapping[str, int]


class Engine:
    """Everything one pool does. One instance per leadership; a new leader starts from an empty one. An exception from
    it is a fault: the holdings may be wrong then, and this leadership has to end."""

    def __init__(
        self,
        policy: ConfiguredPolicy,
        leader_token: int,
        bounds: EngineBounds | None = None,
        thresholds: Thresholds | None = None,
    ) -> None:
        self.policy = policy
        self._thresholds = thresholds
        self._arrived_calls = 0
        self.leader_token = leader_token
        self.bounds = bounds or EngineBounds()
        self.holdings = Holdings(self.bounds.max_deaths)
        self._foresight = Foresight()
        self._last_tick = 0

    # ---- in and out

    def on(self, event: Event, now_ms: int) -> PlannedPart | None:
        """Take an event. Returns the plan of a tick that has run, None for any other event."""
        held = self.holdings
        match event:
            case Reported(worker_id, report):
                return take_report(held, worker_id, report, now_ms, self.policy.grows_from)
            case JobArrived(record):
                self._job_arrived(record, now_ms)
            case JobDropped(job_id, lost):
                self._job_dropped(job_id, lost, now_ms)
            case ImageStored(task_id):
                held.stored(task_id, now_ms)
            case JobUnwritable(job_id, reason):
                if job_id in held.jobs:
                    held.fail(job_id, _INTERNAL, reason)
                else:
                    held.effects.append(FailJob(job_id, now_ms, _INTERNAL, reason))
            case ProfileKnown(domain, key, profile):
                held.plan_by(domain, key, profile)
            case ProfileUnknown(domain, key):
                held.profiles.pop((domain, key), None)
            case BudgetKnown(model, budget):
                held.budgets[model] = budget
            case _:
                take_lane_event(held, event, now_ms)
        return None

    def check_deadlines(self, now_ms: int) -> None:
        """End late jobs, and try workers without room again. Call it a few times a second."""
        fail_late_jobs(self.holdings, now_ms)
        fail_jobs_of_other_weights(self.holdings, now_ms, self.bounds.weights_wait_s)
        for lane in self.holdings.unet.values():
            if lane.no_room:
                lane.no_room, self.holdings.admission_changed = False, True

    def take_effects(self) -> list[Effect]:
        """The effects since the last call, in order."""
        effects, self.holdings.effects = self.holdings.effects, []
        return effects

    def wanted_jobs(self) -> dict[str, int]:
        """Jobs worth reading now, per model with a UNet worker: a few times its slots, less the waiting tasks."""
        return {model: wanted.jobs for model, wanted in self.wanted().items() if wanted.jobs > 0}

    def wanted(self) -> dict[str, Wanted]:
        """The jobs worth reading now and the waiting tasks, per model with a UNet worker."""
        slots: Counter[str] = Counter()
        for lane in self.holdings.unet.values():
            if lane.takes_new:
                slots[lane.model] += lane.slots
        waiting: dict[str, Counter[str]] = {model: Counter() for model in slots}
        for task in self.holdings.waiting.values():
            job = self.holdings.jobs[task.job_id]
            if task.key.model in waiting and not job.lacking_ms:
                waiting[task.key.model][job.record.caller] += 1
        return {
            model: Wanted(
                max(0, self.bounds.read_ahead * slots[model] - of_callers.total()),
                max(1, slots[model] // max(1, len(of_callers))),
                of_callers,
            )
            for model, of_callers in waiting.items()
        }

    def next_tick(self) -> int:
        """The number of a new plan: a worker ignores a plan unless its number is above the last one's."""
        self._last_tick += 1
        return self._last_tick

    # ---- jobs

    def _job_arrived(self, record: JobRecord, now_ms: int) -> None:
        """Hold a job, new or left by an earlier leader. A job that is held already is ignored. A job that cannot be
        taken up fails alone: else every leader would read it again, and end by its exception."""
        if record.job_id in self.holdings.jobs:
            return
        try:
            tasks = _tasks_of(record)
            self._foresight.look(self.holdings, record, tasks, now_ms)
        except Exception as error:
            log.exception("a job cannot be taken up", job_id=record.job_id)
            reason = f"the job cannot be taken up: {error!r}"
            self.holdings.effects.append(FailJob(record.job_id, record.accepted_at_ms, _INTERNAL, reason))
            return
        started = record.state is not JobState.QUEUED
        job = Job(record, tasks, started, decoding=record.state is JobState.DECODING)
        self.holdings.add(job)
        self.holdings.shares.came(job, now_ms)
        self._arrived_calls += sum(task.spec.num_inference_steps for task in tasks)
        self.holdings.settle(record.job_id, record.accepted_at_ms)

    def _job_dropped(self, job_id: str, lost: bool, now_ms: int) -> None:
        """Its slots are free within two ticks."""
        job = self.holdings.jobs.get(job_id)
        if job:
            outcome = "lost" if lost else "expired" if job.record.deadline_ms <= now_ms else "cancelled"
            self.holdings.effects.append(LetJobGo(job_id, job.record.accepted_at_ms, outcome))
            self.holdings.drop(job_id)

    # ---- planning

    def pump(self, now_ms: int) -> None:
        """Admit tasks, and plan every domain that has changed. Raises ExceptionGroup for the domains whose planning
        failed, once all others are planned."""
        if self.holdings.admission_changed:
            self.holdings.admission_changed = False
            self._admit(now_ms)
        changed, self.holdings.changed_domains = self.holdings.changed_domains, set()
        faults = []
        for domain in sorted(changed):
            try:
                self._plan(domain, now_ms)
            except Exception as error:
                faults.append(error)
        if faults:
            raise ExceptionGroup("domains cannot be planned", faults)

    def _admit(self, now_ms: int) -> None:
        if not self.holdings.waiting or not self.holdings.unet:
            return
        snapshot = pool_snapshot(self.holdings, self._plan_ahead(None), now_ms)
        for admission in self.policy.admit(snapshot):
            self.holdings.admit(self.holdings.waiting[admission.task_id], admission.worker_id, now_ms)

    def _plan(self, domain: str, now_ms: int) -> None:
        """Plan a domain until its workers have as many plans under way as they may, or nothing is left to plan."""
        plan_ahead = self._plan_ahead(domain)
        while has_room(self.holdings, domain, plan_ahead):
            snapshot = domain_snapshot(self.holdings, domain, plan_ahead, now_ms)
            unet_wants = any(lane.wants_plan for lane in snapshot.unet)
            vae_wants = bool(snapshot.decodes) and any(lane.wants_plan for lane in snapshot.vae)
            if not unet_wants and not vae_wants:
                return
            if self._thresholds:
                snapshot = replace(snapshot, threshold=self._thresholds.threshold(snapshot, self._arrived_calls))
            plan = self.policy.plan(snapshot)
            if not plan.items:
                return
            dispatch(self.holdings, domain, plan, self.next_tick(), self.leader_token)

    def _plan_ahead(self, domain: str | None) -> int:
        profiles = (profile for (where, _), profile in self.holdings.profiles.items() if where == domain)
        return min(self.bounds.plan_ahead, self.policy.plan_ahead(next(profiles, None)))


def _tasks_of(record: JobRecord) -> list[Task]:
    """The images of a job that are not stored yet."""
    request = record.request
    key = BatchKey(request.model, request.width, request.height, request.exact)
    return [
        Task(task_spec(record.job_id, request, index), record.job_id, index, key)
        for index in range(request.num_images)
        if index not in record.images_done
    ]
