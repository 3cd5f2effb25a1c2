"""The jobs, tasks and lanes of a pool, and every move of a task. The decisions are the engine's."""

from collections.abc import Iterable
from dataclasses import replace

import grpc

from services.scheduler.engine.effects import (
    Admit,
    CancelOnWorker,
    Effect,
    FailJob,
    FinishJob,
    ForgetImages,
    MarkDecoding,
    ReleaseSlots,
    StartJob,
    StoreImage,
)
from services.scheduler.engine.item_sizes import MemoryBounds
from services.scheduler.engine.tasks import Job, Phase, Task, UnetLaneState, VaeLaneState
from services.scheduler.policy.ordering import CallTurns, call_cost
from services.scheduler.policy.policy_spec import Pace
from services.scheduler.policy.snapshots import Ahead, BatchKey, TurnClass
from synerdiff.plans import DecodedImage, ResidentTask, SlotRef, TaskReady
from synerdiff.profiles import Profile
from synerdiff.requests import TaskSpec
from synerdiff.skip_cfg import SkipCfgBudget, SkipCfgMode

_INTERNAL = grpc.StatusCode.INTERNAL.value[0]
# For requests that list the steps to skip, on a model whose budget was never measured.
_UNMEASURED_PREDICTOR = "reuse"
# A caller whose job came within this time may well send another: its share of the slots is kept within reach.
LATELY_MS = 60_000


class Shares:
    """The turns of callers, and the time of each caller's last job by model."""

    def __init__(self) -> None:
        self._turns = CallTurns()
        self._came_ms: dict[str, dict[str, int]] = {}

    def came(self, job: Job, now_ms: int) -> None:
        """The pool takes up a job."""
        self._came_ms.setdefault(job.record.request.model, {})[job.record.caller] = now_ms

    def lately(self, model: str, now_ms: int) -> frozenset[str]:
        """The callers with a job in the last LATELY_MS."""
        came_ms = self._came_ms.get(model, {})
        for caller in [caller for caller, when_ms in came_ms.items() if now_ms - when_ms > LATELY_MS]:
            del came_ms[caller]
        return frozenset(came_ms)

    def ahead(self) -> Ahead:
        """How far each caller is ahead of the virtual time: a copy."""
        return self._turns.ahead()

    def stepped(self, calls: Iterable[tuple[Job, Task, bool]]) -> None:
        """Charge the UNet calls of a tick, each with whether it skips guidance."""
        self._turns.stepped(
            (_turn_class(job), job.record.caller, call_cost(task.key, task.spec.rows - skips))
            for job, task, skips in calls
        )

    def decoded(self, job: Job, task: Task, profile: Profile | None) -> None:
        """Charge a decode, as the rows that take as long; without a profile it is free."""
        if profile:
            pace = Pace.of(profile)
            rows = pace.decode_ms * pace.rows / pace.call_ms
            self._turns.charge(_turn_class(job), job.record.caller, call_cost(task.key, rows))


def _turn_class(job: Job) -> TurnClass:
    return TurnClass(job.record.request.model, job.record.request.priority)


class Holdings:
    """Jobs, tasks and lanes, with the effects that moving them asks for.

    Invariants: a task is in `waiting` exactly while it is WAITING and in `ready` exactly while it is READY_TO_DECODE; a
    task from PREPARING to STORING is in its UNet lane's `tasks` while that lane exists, and so holds one of its slots.
    """

    def __init__(self, max_deaths: int) -> None:
        self.max_deaths = max_deaths
        self.jobs: dict[str, Job] = {}
        self.tasks: dict[str, Task] = {}
        self.unet: dict[str, UnetLaneState] = {}
        self.vae: dict[str, VaeLaneState] = {}
        self.waiting: dict[str, Task] = {}
        self.ready: dict[str, Task] = {}
        self.profiles: dict[tuple[str, BatchKey], Profile] = {}
        self.memory = MemoryBounds()
        self.budgets: dict[str, SkipCfgBudget] = {}
        self.shares = Shares()
        self.effects: list[Effect] = []
        # Changed since the last plans were made: only there is planning worth the time.
        self.admission_changed = False
        self.changed_domains: set[str] = set()

    # ---- looking up

    def holds(self, task: Task) -> bool:
        """Whether the task is still held: a task that fails takes the others of its job with it."""
        return task.spec.task_id in self.tasks

    def held_by(self, worker_id: str, task_id: str) -> Task | None:
        """The task, if it holds a slot of this UNet worker."""
        lane = self.unet.get(worker_id)
        return lane.tasks.get(task_id) if lane else None

    def lane(self, worker_id: str) -> UnetLaneState | VaeLaneState | None:
        """The worker, of either kind."""
        return self.unet.get(worker_id) or self.vae.get(worker_id)

    def domains(self) -> set[str]:
        """The domains with a worker."""
        return {lane.domain for lane in (*self.unet.values(), *self.vae.values())}

    # ---- measurements

    def plan_by(self, domain: str, key: BatchKey, profile: Profile) -> None:
        """Plan with a profile, from the domain's next tick on."""
        self.profiles[domain, key] = self.memory.within(domain, key, profile)
        self.admission_changed = True
        self.changed_domains.add(domain)
        if profile.skip_cfg:
            self.budgets[key.model] = profile.skip_cfg

    def forget_domain(self, domain: str) -> None:
        """Forget the measurements of a domain."""
        self.profiles = {place: profile for place, profile in self.profiles.items() if place[0] != domain}
        self.memory.forget(domain)

    # ---- the moves of a task

    def admit(self, task: Task, worker_id: str, now_ms: int) -> None:
        """Give a waiting task to a UNet worker."""
        del self.waiting[task.spec.task_id]
        task.become(Phase.PREPARING)
        task.admitted_ms = now_ms
        lane = self._to_lane(task, worker_id, now_ms)
        job = self.jobs[task.job_id]
        job.unet_weights = job.unet_weights or lane.weights
        self.effects.append(Admit(worker_id, task.spec))
        self._start(job, now_ms)

    def adopt(self, task: Task, worker_id: str, held: ResidentTask, now_ms: int) -> None:
        """Take up a waiting task at the call that a UNet worker reached under an earlier leader or stream."""
        del self.waiting[task.spec.task_id]
        self._to_lane(task, worker_id, now_ms)
        task.num_calls, task.done_calls, task.planned_calls = held.num_calls, held.next_call, held.next_call
        task.skipped = list(held.skipped_calls)
        # The leader that admitted it may have gone before it could say so.
        self._start(self.jobs[task.job_id], now_ms)
        if held.slot:
            task.slot = held.slot
            self._to_decode(task)
        else:
            task.become(Phase.RUNNING if held.num_calls else Phase.PREPARING)

    def prepared(self, task: Task, ready: TaskReady) -> None:
        """Its worker has prepared it: it may step."""
        task.become(Phase.RUNNING)
        task.num_calls, task.encode_ms = ready.num_calls, ready.encode_ms
        job = self.jobs[task.job_id]
        job.warnings += [w for w in ready.warnings if w not in job.warnings]
        self.changed_domains.add(self.unet[task.unet_worker].domain)

    def denoised(self, task: Task, slot: SlotRef, now_ms: int) -> None:
        """Its last UNet call is made."""
        task.slot, task.denoised_ms, task.denoise_ms = slot, now_ms, max(0, now_ms - task.admitted_ms)
        self._to_decode(task)
        self.settle(task.job_id, now_ms)

    def decoding(self, task: Task, worker_id: str) -> None:
        """A plan tells a VAE worker to decode it."""
        del self.ready[task.spec.task_id]
        task.become(Phase.DECODING)
        task.vae_worker = worker_id
        lane, job = self.vae[worker_id], self.jobs[task.job_id]
        lane.tasks[task.spec.task_id] = task
        job.vae_weights = job.vae_weights or lane.weights

    def decoded(self, task: Task, worker_id: str, image: DecodedImage, now_ms: int) -> None:
        """This VAE worker holds the image file, whichever was asked last: `ForgetImages` goes to it."""
        task_id = task.spec.task_id
        self.ready.pop(task_id, None)
        asked = self.vae.get(task.vae_worker)
        if asked and task.vae_worker != worker_id and asked.tasks.pop(task_id, None):
            self.effects.append(CancelOnWorker(asked.worker_id, (task_id,)))
        task.vae_worker = worker_id
        if worker_id in self.vae:
            self.vae[worker_id].tasks[task_id] = task
        if task.phase is not Phase.STORING:
            task.become(Phase.STORING)
            task.decode_ms = max(0, now_ms - task.denoised_ms) if task.denoised_ms else image.decode_ms
            self.effects.append(StoreImage(task.job_id, task.index, task.spec.seed, image))

    def stored(self, task_id: str, now_ms: int) -> None:
        """Redis holds its image: its slot is free, and its job may be finished."""
        task = self.tasks.get(task_id)
        if task and task.phase is Phase.STORING:
            self._leave_workers(task, cancel=False)
            task.become(Phase.DONE)
            self.settle(task.job_id, now_ms)

    def wait_again(self, task: Task) -> None:
        """Take the task back from its workers."""
        self._leave_workers(task, cancel=True)
        task.back_to_waiting()
        self._to_waiting(task)

    def run_again(self, task: Task) -> None:
        """The task's latents are gone: it runs from step 0 again, to the same picture."""
        task.deaths += 1
        if task.deaths > self.max_deaths:
            self.fail(task.job_id, _INTERNAL, f"image {task.index}: its workers were lost {task.deaths} times")
        else:
            self.wait_again(task)

    def decode_again(self, task: Task) -> None:
        """The VAE worker is gone; the latents are still in their slot, if the UNet worker's present life holds it."""
        holder = self.unet.get(task.unet_worker)
        if holder is None or task.spec.task_id not in holder.tasks or task.deaths >= self.max_deaths:
            self.run_again(task)
            return
        task.deaths += 1
        lane = self.vae.get(task.vae_worker)
        if lane:
            lane.tasks.pop(task.spec.task_id, None)
        self._to_decode(task)

    # ---- jobs

    def add(self, job: Job) -> None:
        """Hold a job; its tasks wait."""
        self.jobs[job.record.job_id] = job
        for task in job.tasks:
            self.tasks[task.spec.task_id] = task
            self._to_waiting(task)

    def settle(self, job_id: str, now_ms: int) -> None:
        """Move the job on if all its tasks have moved on."""
        job = self.jobs[job_id]
        if all(task.phase is Phase.DONE for task in job.tasks):
            told = job.timings(now_ms), tuple(job.warnings), job.skipped_steps(), job.workers()
            self.effects.append(FinishJob(job_id, job.record.accepted_at_ms, *told))
            self.drop(job_id)
        elif not job.decoding and all(task.phase.value >= Phase.READY_TO_DECODE.value for task in job.tasks):
            job.decoding = True
            self.effects.append(MarkDecoding(job_id))

    def fail(self, job_id: str, code: int, message: str) -> None:
        """End the job with an error; `code` is a google.rpc.Code."""
        job = self.jobs[job_id]
        self.effects.append(FailJob(job_id, job.record.accepted_at_ms, code, message, job.workers()))
        self.drop(job_id)

    def drop(self, job_id: str) -> None:
        """Hold the job no more, wherever its tasks are."""
        job = self.jobs.pop(job_id, None)
        for task in job.tasks if job else ():
            self._leave_workers(task, cancel=True)
            self.tasks.pop(task.spec.task_id, None)

    # ---- parts of moves

    def _to_waiting(self, task: Task) -> None:
        self.waiting[task.spec.task_id] = task
        self.admission_changed = True

    def _to_lane(self, task: Task, worker_id: str, now_ms: int) -> UnetLaneState:
        lane = self.unet[worker_id]
        lane.tasks[task.spec.task_id] = task
        task.unet_worker = worker_id
        task.spec = self._with_predictor(task)
        return lane

    def _to_decode(self, task: Task) -> None:
        """The task's latents are in its slot, ready for any VAE worker that can reach them."""
        task.become(Phase.READY_TO_DECODE)
        task.vae_worker = ""
        self.ready[task.spec.task_id] = task
        self.admission_changed = True
        self.changed_domains.update(lane.domain for lane in self.vae.values() if lane.model == task.key.model)

    def _leave_workers(self, task: Task, *, cancel: bool) -> None:
        """Take the task off every lane; tell its workers to free its resources."""
        task_id = task.spec.task_id
        self.waiting.pop(task_id, None)
        self.ready.pop(task_id, None)
        self.admission_changed = True
        unet, vae = self.unet.get(task.unet_worker), self.vae.get(task.vae_worker)
        if unet and unet.tasks.pop(task_id, None):
            self.changed_domains.add(unet.domain)
            self.effects.append((CancelOnWorker if cancel else ReleaseSlots)(unet.worker_id, (task_id,)))
        if vae and vae.tasks.pop(task_id, None):
            self.changed_domains.add(vae.domain)
            self.effects.append((CancelOnWorker if cancel else ForgetImages)(vae.worker_id, (task_id,)))

    def _start(self, job: Job, now_ms: int) -> None:
        if not job.started:
            job.started, job.started_ms = True, now_ms
            self.effects.append(StartJob(job.record.job_id))

    def _with_predictor(self, task: Task) -> TaskSpec:
        """The spec with its predictor of guidance: the one of the task's earlier run, else the best for the model."""
        if task.spec.rows < 2 or task.spec.skip_predictor:
            return task.spec
        budget = self.budgets.get(task.key.model)
        asked = self.jobs[task.job_id].record.request.skip_cfg
        if asked.mode is SkipCfgMode.OFF or (budget is None and asked.mode is SkipCfgMode.AUTO):
            return task.spec
        return replace(task.spec, skip_predictor=budget.predictor if budget else _UNMEASURED_PREDICTOR)
