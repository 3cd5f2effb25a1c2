"""The engine: what happens to what is held. Pure: no clock, no I/O, no randomness.

Events come in as method calls, with the time where it matters; what must be done comes out of `take_effects`. The pool
drives it with real workers, a simulator can drive it with virtual ones. Plans run ahead of reports by `plan_ahead`
ticks, so that no worker waits for the scheduler; a plan is therefore conditional, and a skipped entry only moves its
task's mark back.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import grpc

from services.scheduler.engine.batch_growth import BatchGrowth, most_of_slots
from services.scheduler.engine.dispatch import send_plan
from services.scheduler.engine.effects import (
    Admit,
    CancelOnWorker,
    Effect,
    ForgetImages,
    ReportProgress,
    StartJob,
    StoreImage,
)
from services.scheduler.engine.foresight import Foresight
from services.scheduler.engine.holdings import Holdings, lacking_weights
from services.scheduler.engine.tasks import Job, Phase, PlannedPart, Task, UnetLaneState, VaeLaneState
from services.scheduler.engine.views import domain_snapshot, has_room, pool_snapshot
from services.scheduler.policy.snapshots import BatchKey, Policy, Thresholds
from synerdiff.jobs import JobRecord, JobState
from synerdiff.plans import (
    DecodedImage,
    ItemTiming,
    Preview,
    ResidentTask,
    SkippedEntry,
    SkipReason,
    TaskFailed,
    TaskReady,
    UnetTickDone,
    VaeTickDone,
)
from synerdiff.profiles import Profile
from synerdiff.requests import TaskSpec, task_spec
from synerdiff.skip_cfg import SkipCfgBudget, SkipCfgMode

# A worker that has no room right now answers an admission with this code: the task waits again, nothing failed.
_NO_ROOM = grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
# For requests that list the steps to skip, on a model whose budget was never measured.
_UNMEASURED_PREDICTOR = "reuse"
_FAILED_PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION.value[0]
_DEADLINE_EXCEEDED = grpc.StatusCode.DEADLINE_EXCEEDED.value[0]


@dataclass(frozen=True)
class EngineBounds:
    """How far the engine goes.

    `plan_ahead`: plans under way per worker. `max_deaths`: losses of its worker that a task survives. `read_ahead`:
    jobs read from the queue per slot, so that what is most urgent can be chosen and the rest waits in Redis.
    `weights_wait_s`: how long a job waits for the weights it was accepted for, while only others are served.
    """

    plan_ahead: int = 2
    max_deaths: int = 10
    read_ahead: int = 2
    weights_wait_s: float = 60.0


class Engine:
    """Everything one pool does. One instance per leadership; a new leader starts from an empty one."""

    def __init__(
        self,
        policy: Policy,
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
        self._ticks: dict[str, int] = {}

    def take_effects(self) -> list[Effect]:
        """What has to be done since the last call, in order."""
        effects, self.holdings.effects = self.holdings.effects, []
        return effects

    # ---- jobs

    def job_arrived(self, record: JobRecord, now_ms: int = 0) -> None:
        """A job read from the queue, new or left by an earlier leader. One that is held already is ignored.

        `now_ms`: 0 where it is read as soon as it is accepted.
        """
        if record.job_id in self.holdings.jobs:
            return
        request = record.request
        key = BatchKey(request.model, request.width, request.height, request.exact)
        tasks = [
            Task(task_spec(record.job_id, request, index), record.job_id, index, key)
            for index in range(request.num_images)
            if index not in record.images_done
        ]
        self._foresight.look(self.holdings, record, tasks, now_ms)
        started = record.state is not JobState.QUEUED
        self.holdings.add(Job(record, tasks, started, decoding=record.state is JobState.DECODING))
        self._arrived_calls += sum(task.spec.num_inference_steps for task in tasks)
        self.holdings.settle(record.job_id, record.accepted_at_ms)

    def job_dropped(self, job_id: str) -> None:
        """Somebody else ended the job (cancelled, abandoned): its slots are free within two ticks."""
        self.holdings.drop(job_id)

    def beat(self, now_ms: int) -> None:
        """To be called a few times a second: deadlines that have passed, workers that may have room again."""
        self._expire(now_ms)
        self._refuse_other_weights(now_ms)
        for lane in self.holdings.unet.values():
            if lane.no_room:
                lane.no_room, self.holdings.admission_changed = False, True

    def _expire(self, now_ms: int) -> None:
        late = [job.record for job in self.holdings.jobs.values() if job.record.deadline_ms <= now_ms]
        for record in late:
            seconds = record.request.timeout_ms / 1000
            self.holdings.fail(record.job_id, _DEADLINE_EXCEEDED, f"timeout: the request's {seconds:g} s ran out")

    def _refuse_other_weights(self, now_ms: int) -> None:
        """End jobs whose weights nobody has served for a while, though others of the same model are served."""
        wait_s, held = self.bounds.weights_wait_s, self.holdings.held_weights()
        for job in list(self.holdings.jobs.values()):
            lacking = lacking_weights(job, held)
            if not lacking:
                job.lacking_ms = 0
            elif not job.lacking_ms:
                job.lacking_ms = now_ms
            elif now_ms - job.lacking_ms >= wait_s * 1000:
                model = job.record.request.model
                message = (
                    f"model {model!r}: accepted for {lacking}; no worker has served those for {wait_s:g} s: ask again"
                )
                self.holdings.fail(job.record.job_id, _FAILED_PRECONDITION, message)

    def wanted_jobs(self) -> dict[str, int]:
        """Jobs worth reading now, per model with a UNet worker: a few times its slots, less what waits already."""
        room: dict[str, int] = {}
        for lane in self.holdings.unet.values():
            if not lane.draining:
                room[lane.model] = room.get(lane.model, 0) + self.bounds.read_ahead * lane.slots
        for task in self.holdings.waiting.values():
            if task.key.model in room and not self.holdings.jobs[task.job_id].lacking_ms:
                room[task.key.model] -= 1
        return {model: jobs for model, jobs in room.items() if jobs > 0}

    # ---- what was measured

    def profile_known(self, domain: str, key: BatchKey, profile: Profile) -> None:
        """How long items of `key` take on a domain: from its next tick on, plans go by it."""
        self.holdings.profiles[domain, key] = self.holdings.memory.within(domain, key, profile)
        self.holdings.admission_changed = True
        self.holdings.changed_domains.add(domain)
        if profile.skip_cfg:
            self.budget_known(key.model, profile.skip_cfg)

    def _learn_memory(self, domain: str, kind: str, items: tuple[ItemTiming, ...], planned: PlannedPart | None) -> None:
        """Where memory did not suffice, smaller items are planned from now on."""
        for key in self.holdings.memory.learn(domain, kind, items, planned) if planned else ():
            profile = self.holdings.profiles.get((domain, key))
            if profile:
                self.profile_known(domain, key, profile)

    def profile_unknown(self, domain: str, key: BatchKey) -> None:
        """The domain's device is another one now, or is being measured."""
        self.holdings.profiles.pop((domain, key), None)

    def budget_known(self, model: str, budget: SkipCfgBudget) -> None:
        """How much guidance the pictures of a model can do without."""
        self.holdings.budgets[model] = budget

    def next_tick(self, domain: str) -> int:
        """A tick number of the domain that no plan has had."""
        self._ticks[domain] = self._ticks.get(domain, 0) + 1
        return self._ticks[domain]

    # ---- workers

    def unet_attached(self, lane: UnetLaneState, resident: Iterable[ResidentTask]) -> None:
        """A UNet worker's stream is open. Tasks it still holds and we still want go on where they stand."""
        self.unet_lost(lane.worker_id)
        self.holdings.unet[lane.worker_id] = lane
        self.holdings.admission_changed = True
        unwanted = tuple(held.task_id for held in resident if not self._adopt(lane, held))
        if unwanted:
            self.holdings.effects.append(CancelOnWorker(lane.worker_id, unwanted))
        self.holdings.changed_domains.add(lane.domain)

    def _adopt(self, lane: UnetLaneState, held: ResidentTask) -> bool:
        """Take up what a worker holds of a task, unless the task is gone or runs elsewhere by now."""
        task = self.holdings.tasks.get(held.task_id)
        if task is None:
            return False
        being_decoded = task.phase in (Phase.DECODING, Phase.STORING) and task.slot == held.slot
        if task.phase is not Phase.WAITING and not being_decoded:
            return False
        lane.tasks[held.task_id] = task
        if being_decoded:
            return True
        del self.holdings.waiting[held.task_id]
        task.unet_worker = lane.worker_id
        task.num_calls, task.done_calls, task.planned_calls = held.num_calls, held.next_call, held.next_call
        task.skipped = list(held.skipped_calls)
        task.spec = self._with_predictor(task)
        # The leader that admitted it may have gone before it could say so.
        self._start(self.holdings.jobs[task.job_id], now_ms=0)
        if held.slot:
            task.slot = held.slot
            self.holdings.to_decode(task)
        else:
            task.phase = Phase.RUNNING if held.num_calls else Phase.PREPARING
        return True

    def unet_lost(self, worker_id: str) -> None:
        """A UNet worker's stream has ended: what it held runs again elsewhere, or there once it is back.

        A decode under way is left alone: the VAE worker may have read the latents, and says so if it could not.
        """
        lane = self.holdings.unet.pop(worker_id, None)
        for task in list(lane.tasks.values()) if lane else ():
            if self.holdings.holds(task) and task.phase not in (Phase.DECODING, Phase.STORING):
                self.holdings.run_again(task)

    def vae_attached(self, lane: VaeLaneState) -> None:
        """A VAE worker's stream is open."""
        self.vae_lost(lane.worker_id)
        self.holdings.vae[lane.worker_id] = lane
        self.holdings.changed_domains.add(lane.domain)

    def vae_lost(self, worker_id: str) -> None:
        """A VAE worker's stream has ended: the latents are still in their slots."""
        lane = self.holdings.vae.pop(worker_id, None)
        for task in list(lane.tasks.values()) if lane else ():
            if self.holdings.holds(task) and task.phase is Phase.DECODING:
                self.holdings.decode_again(task)
        for other in self.holdings.vae.values():
            self.holdings.changed_domains.add(other.domain)

    def worker_announced(self, worker_id: str, announced: bool) -> None:
        """A worker that no longer announces itself is draining: it takes nothing new, what it holds goes on."""
        lane = self.holdings.unet.get(worker_id) or self.holdings.vae.get(worker_id)
        if lane and lane.draining == announced:
            lane.draining = not announced
            self.holdings.admission_changed = True
            self.holdings.changed_domains.update(other.domain for other in self.holdings.vae.values())

    # ---- reports

    def task_ready(self, worker_id: str, ready: TaskReady) -> None:
        """A UNet worker has prepared a task."""
        task = self.holdings.held_by(worker_id, ready.task_id)
        if task and task.phase is Phase.PREPARING:
            task.phase = Phase.RUNNING
            task.num_calls, task.encode_ms = ready.num_calls, ready.encode_ms
            job = self.holdings.jobs[task.job_id]
            job.warnings += [w for w in ready.warnings if w not in job.warnings]
            self.holdings.lane_changed(worker_id)

    def task_failed(self, worker_id: str, failed: TaskFailed) -> None:
        """A worker cannot do a task. Without room it waits again; anything else fails its job."""
        task = self.holdings.tasks.get(failed.task_id)
        if task is None or worker_id not in (task.unet_worker, task.vae_worker):
            return
        if failed.code == _NO_ROOM and task.phase is Phase.PREPARING:
            self.holdings.unet[
                worker_id
            ].no_room = True  # or it would be asked again at once, for as long as it refuses
            self.holdings.wait_again(task)
        else:
            self.holdings.fail(task.job_id, failed.code, failed.message)

    def unet_tick_done(self, worker_id: str, done: UnetTickDone, now_ms: int) -> None:
        """A UNet plan has run: move its tasks on, and those that are finished to the decodes."""
        lane = self.holdings.unet.get(worker_id)
        if lane is None:
            return
        self.holdings.changed_domains.add(lane.domain)
        skipped = {entry.task_id: entry for entry in done.skipped}
        part = lane.tick_done(done.tick, done.items)
        self._learn_memory(lane.domain, "unet", done.items, part)
        if part and self.policy.grows_from and not done.skipped:
            self._learn_sizes(lane, done.items, part)
        for task_id in part.task_ids if part else ():
            task = lane.tasks.get(task_id)
            if task and task.phase is Phase.RUNNING:
                self._advance(task, skipped.get(task_id))
        for measured in done.drifts:
            task = lane.tasks.get(measured.task_id)
            if task:
                task.drift = measured.drift
        for task_id, slot in done.finished:
            task = lane.tasks.get(task_id)
            if task and task.phase is Phase.RUNNING:
                task.slot, task.denoised_ms, task.denoise_ms = slot, now_ms, max(0, now_ms - task.admitted_ms)
                self.holdings.to_decode(task)
                self.holdings.settle(task.job_id, now_ms)

    def _learn_sizes(self, lane: UnetLaneState, items: Sequence[ItemTiming], part: PlannedPart) -> None:
        """Take items that ran as planned into the growth of batches of whose times no profile speaks."""
        for planned, ran in zip(part.items, items, strict=False):
            key = planned.key
            if key and (lane.domain, key) not in self.holdings.profiles and ran.rows == planned.rows and not ran.halved:
                growth = lane.growth.setdefault(key, BatchGrowth(self.policy.grows_from, most_of_slots(lane.slots)))
                growth.ran(planned.tasks, ran.rows, (ran.end_unix_ns - ran.start_unix_ns) / 1e6)

    def _advance(self, task: Task, skipped: SkippedEntry | None) -> None:
        if skipped is None:
            task.done_calls += 1
            self.holdings.effects.append(ReportProgress(task.job_id, task.index, task.done_calls, task.num_calls))
        elif skipped.reason is SkipReason.UNKNOWN_TASK:
            self.holdings.run_again(task)
        else:
            task.stands_at(skipped.next_call if skipped.reason is SkipReason.OTHER_CALL else task.done_calls)

    def vae_tick_done(self, worker_id: str, done: VaeTickDone) -> None:
        """A VAE plan has run. Image files come by `image_decoded`; here, latents that could not be read are redone."""
        lane = self.holdings.vae.get(worker_id)
        if lane is None:
            return
        self.holdings.changed_domains.add(lane.domain)
        part = lane.tick_done(done.tick, done.items)
        self._learn_memory(lane.domain, "vae", done.items, part)
        for entry in done.skipped:
            task = lane.tasks.get(entry.task_id)
            if task and task.phase is Phase.DECODING:
                self.holdings.run_again(task)

    def image_decoded(self, worker_id: str, image: DecodedImage, now_ms: int) -> None:
        """An image file has come. One that nobody waits for any more (cancelled, or decoded twice) is forgotten."""
        task = self.holdings.tasks.get(image.task_id)
        if task is None or task.phase not in (Phase.READY_TO_DECODE, Phase.DECODING, Phase.STORING):
            self.holdings.effects.append(ForgetImages(worker_id, (image.task_id,)))
            return
        self.holdings.decoded_by(task, worker_id)
        if task.phase is not Phase.STORING:
            task.phase = Phase.STORING
            task.decode_ms = max(0, now_ms - task.denoised_ms) if task.denoised_ms else image.decode_ms
            self.holdings.effects.append(StoreImage(task.job_id, task.index, task.spec.seed, image))

    def image_stored(self, task_id: str, now_ms: int) -> None:
        """Redis holds the image: its slot is free, and the job may be finished."""
        task = self.holdings.tasks.get(task_id)
        if task and task.phase is Phase.STORING:
            self.holdings.leave_workers(task, cancel=False)
            task.phase = Phase.DONE
            self.holdings.settle(task.job_id, now_ms)

    def preview_drawn(self, preview: Preview) -> None:
        """A preview has come; passed on with the progress it belongs to."""
        task = self.holdings.tasks.get(preview.task_id)
        if task and task.num_calls:
            progress = ReportProgress(task.job_id, task.index, preview.call, task.num_calls, preview.png)
            self.holdings.effects.append(progress)

    # ---- planning

    def pump(self, now_ms: int) -> None:
        """Admit what may be admitted, and plan every domain in which something has changed."""
        if self.holdings.admission_changed:
            self.holdings.admission_changed = False
            self._admit(now_ms)
        changed, self.holdings.changed_domains = self.holdings.changed_domains, set()
        for domain in sorted(changed):
            self._plan(domain, now_ms)

    def _admit(self, now_ms: int) -> None:
        if not self.holdings.waiting or not self.holdings.unet:
            return
        snapshot = pool_snapshot(self.holdings, self._plan_ahead(None), now_ms)
        for admission in self.policy.admit(snapshot):
            task = self.holdings.waiting.pop(admission.task_id)
            job = self.holdings.jobs[task.job_id]
            task.phase, task.unet_worker, task.admitted_ms = Phase.PREPARING, admission.worker_id, now_ms
            task.spec = self._with_predictor(task)
            lane = self.holdings.unet[admission.worker_id]
            lane.tasks[admission.task_id] = task
            job.unet_weights = job.unet_weights or lane.weights
            self.holdings.effects.append(Admit(admission.worker_id, task.spec))
            self._start(job, now_ms)

    def _start(self, job: Job, now_ms: int) -> None:
        if not job.started:
            job.started, job.started_ms = True, now_ms
            self.holdings.effects.append(StartJob(job.record.job_id))

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
            send_plan(self.holdings, domain, plan, self.next_tick(domain), self.leader_token)

    def _plan_ahead(self, domain: str | None) -> int:
        profiles = (profile for (where, _), profile in self.holdings.profiles.items() if where == domain)
        return min(self.bounds.plan_ahead, self.policy.plan_ahead(next(profiles, None)))

    def _with_predictor(self, task: Task) -> TaskSpec:
        """The spec with how to predict guidance: as in the task's earlier life, else as the model bears it best."""
        if task.spec.rows < 2 or task.spec.skip_predictor:
            return task.spec
        budget = self.holdings.budgets.get(task.key.model)
        asked = self.holdings.jobs[task.job_id].record.request.skip_cfg
        if asked.mode is SkipCfgMode.OFF or (budget is None and asked.mode is SkipCfgMode.AUTO):
            return task.spec
        return replace(task.spec, skip_predictor=budget.predictor if budget else _UNMEASURED_PREDICTOR)
