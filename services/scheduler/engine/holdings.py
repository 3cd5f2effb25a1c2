"""What a pool holds, and the moves a task can make. No decisions here: the engine makes them, from events and plans."""

import grpc

from services.scheduler.engine.effects import (
    CancelOnWorker,
    Effect,
    FailJob,
    FinishJob,
    ForgetImages,
    MarkDecoding,
    ReleaseSlots,
)
from services.scheduler.engine.memory_bounds import MemoryBounds
from services.scheduler.engine.tasks import Job, Phase, Task, UnetLaneState, VaeLaneState
from services.scheduler.policy.snapshots import BatchKey
from synerdiff.profiles import Profile
from synerdiff.skip_cfg import SkipCfgBudget

_INTERNAL = grpc.StatusCode.INTERNAL.value[0]

# Digests by kind of worker, UNet or VAE, and model.
HeldWeights = dict[tuple[str, str], set[str]]


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
        self.effects: list[Effect] = []
        # What has changed since the last plans were made: only there is planning worth the time.
        self.admission_changed = False
        self.changed_domains: set[str] = set()

    def add(self, job: Job) -> None:
        """Hold a job; its tasks wait."""
        self.jobs[job.record.job_id] = job
        for task in job.tasks:
            self.tasks[task.spec.task_id] = task
            self._to_waiting(task)

    def holds(self, task: Task) -> bool:
        """Whether the task is still wanted: one that is given up takes the others of its job with it."""
        return task.spec.task_id in self.tasks

    def held_by(self, worker_id: str, task_id: str) -> Task | None:
        """The task, if it holds a slot of this UNet worker."""
        lane = self.unet.get(worker_id)
        return lane.tasks.get(task_id) if lane else None

    def lane_changed(self, worker_id: str) -> None:
        """Something happened on this worker: its domain may have room for a plan."""
        lane = self.unet.get(worker_id) or self.vae.get(worker_id)
        if lane:
            self.changed_domains.add(lane.domain)

    def to_decode(self, task: Task) -> None:
        """The task's latents are in its slot, ready for any VAE worker that can reach them."""
        task.phase, task.vae_worker = Phase.READY_TO_DECODE, ""
        self.ready[task.spec.task_id] = task
        self.admission_changed = True
        self.changed_domains.update(lane.domain for lane in self.vae.values() if lane.model == task.key.model)

    def wait_again(self, task: Task) -> None:
        """Take the task back from its workers."""
        self.leave_workers(task, cancel=True)
        task.back_to_waiting()
        self._to_waiting(task)

    def run_again(self, task: Task) -> None:
        """What held the task's latents is gone: from step 0, to the same picture."""
        task.deaths += 1
        if task.deaths > self.max_deaths:
            self.fail(task.job_id, _INTERNAL, f"image {task.index}: its workers were lost {task.deaths} times")
        else:
            self.wait_again(task)

    def decode_again(self, task: Task) -> None:
        """The VAE worker is gone; the latents are still in their slot, if that still exists."""
        task.deaths += 1
        if task.unet_worker not in self.unet or task.deaths > self.max_deaths:
            self.run_again(task)
            return
        lane = self.vae.get(task.vae_worker)
        if lane:
            lane.tasks.pop(task.spec.task_id, None)
        self.to_decode(task)

    def decoded_by(self, task: Task, worker_id: str) -> None:
        """This VAE worker holds the image file, whichever was asked last: it is the one to be told of the storing."""
        task_id = task.spec.task_id
        self.ready.pop(task_id, None)
        asked = self.vae.get(task.vae_worker)
        if asked and task.vae_worker != worker_id and asked.tasks.pop(task_id, None):
            self.effects.append(CancelOnWorker(asked.worker_id, (task_id,)))
        task.vae_worker = worker_id
        if worker_id in self.vae:
            self.vae[worker_id].tasks[task_id] = task

    def leave_workers(self, task: Task, *, cancel: bool) -> None:
        """Take the task off every lane; tell the workers to let go of what they hold of it."""
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

    def settle(self, job_id: str, now_ms: int) -> None:
        """Move the job on if all its tasks have moved on."""
        job = self.jobs[job_id]
        if all(task.phase is Phase.DONE for task in job.tasks):
            finished = FinishJob(
                job_id, job.record.accepted_at_ms, job.timings(now_ms), tuple(job.warnings), job.skipped_steps()
            )
            self.effects.append(finished)
            self.drop(job_id)
        elif not job.decoding and all(task.phase.value >= Phase.READY_TO_DECODE.value for task in job.tasks):
            job.decoding = True
            self.effects.append(MarkDecoding(job_id))

    def held_weights(self) -> HeldWeights:
        """The digests that workers which take new work hold."""
        held: HeldWeights = {}
        for kind, lanes in (("UNet", self.unet.values()), ("VAE", self.vae.values())):
            for lane in lanes:
                if not lane.draining:
                    held.setdefault((kind, lane.model), set()).add(lane.weights)
        return held

    def fail(self, job_id: str, code: int, message: str) -> None:
        """End the job with an error; `code` is a google.rpc.Code."""
        self.effects.append(FailJob(job_id, self.jobs[job_id].record.accepted_at_ms, code, message))
        self.drop(job_id)

    def drop(self, job_id: str) -> None:
        """Hold the job no more, wherever its tasks are."""
        job = self.jobs.pop(job_id, None)
        for task in job.tasks if job else ():
            self.leave_workers(task, cancel=True)
            self.tasks.pop(task.spec.task_id, None)

    def _to_waiting(self, task: Task) -> None:
        self.waiting[task.spec.task_id] = task
        self.admission_changed = True


def lacking_weights(job: Job, held: HeldWeights) -> str:
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
