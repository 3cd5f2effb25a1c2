"""Between the holdings and a policy: what it sees of them, and its answer as plans for the workers."""

import json
from dataclasses import asdict

from services.scheduler.effects import SendUnetPlan, SendVaePlan
from services.scheduler.holdings import Holdings
from services.scheduler.snapshots import (
    Batch,
    DomainSnapshot,
    PoolSnapshot,
    ReadyDecode,
    RunningTask,
    TickPlan,
    UnetLane,
    VaeLane,
    WaitingTask,
)
from services.scheduler.tasks import Job, Phase, Task, UnetLaneState, VaeLaneState
from synerdiff.jobs import JobRecord
from synerdiff.plans import DecodeEntry, UnetEntry, UnetItem, UnetPlan, VaeItem, VaePlan


def pool_snapshot(holdings: Holdings, plan_ahead: int, now_ms: int) -> PoolSnapshot:
    """What admission sees: the waiting tasks by priority, then age, and every UNet worker."""
    jobs = holdings.jobs

    def urgency(task: Task) -> tuple[int, int, int]:
        record = jobs[task.job_id].record
        return record.request.priority, record.accepted_at_ms, task.index

    waiting = tuple(_waiting_view(task, jobs[task.job_id]) for task in sorted(holdings.waiting.values(), key=urgency))
    lanes = tuple(_unet_view(lane, jobs, plan_ahead) for lane in holdings.unet.values())
    return PoolSnapshot(now_ms, waiting, lanes)


def has_room(holdings: Holdings, domain: str, plan_ahead: int) -> bool:
    """Whether a worker of the domain might take another plan: cheap, to be asked before a snapshot is made."""
    if any(lane.domain == domain and len(lane.plans) < plan_ahead for lane in holdings.unet.values()):
        return True
    vae = (lane for lane in holdings.vae.values() if lane.domain == domain)
    return bool(holdings.ready) and any(len(lane.plans) < plan_ahead for lane in vae)


def domain_snapshot(holdings: Holdings, domain: str, plan_ahead: int, now_ms: int) -> DomainSnapshot:
    """What a domain's plan sees: its lanes, its decodes, and the decodes of domains without a VAE worker for them."""
    unet = tuple(
        _unet_view(lane, holdings.jobs, plan_ahead) for lane in holdings.unet.values() if lane.domain == domain
    )
    vae = tuple(_vae_view(lane, plan_ahead) for lane in holdings.vae.values() if lane.domain == domain)
    served = {(lane.domain, lane.model) for lane in holdings.vae.values() if not lane.draining}
    decodes = []
    for task in holdings.ready.values():
        home = holdings.unet[task.unet_worker].domain
        if home == domain or (home, task.key.model) not in served:
            decodes.append(ReadyDecode(task.spec.task_id, task.key, home))
    return DomainSnapshot(now_ms, domain, unet, vae, tuple(decodes))


def send_plan(holdings: Holdings, plan: TickPlan, tick: int, leader_token: int) -> None:
    """Split a tick into each worker's part and mark what it names as planned."""
    unet: dict[str, list[UnetItem]] = {}
    vae: dict[str, list[VaeItem]] = {}
    for item in plan.items:
        if item.unet:
            unet.setdefault(item.unet.worker_id, []).append(_unet_item(holdings, item.unet))
        if item.vae:
            vae.setdefault(item.vae.worker_id, []).append(_vae_item(holdings, item.vae))
    for worker_id, unet_items in unet.items():
        holdings.unet[worker_id].plans[tick] = tuple(e.task_id for item in unet_items for e in item.entries)
        holdings.effects.append(SendUnetPlan(worker_id, UnetPlan(leader_token, tick, tuple(unet_items))))
    for worker_id, vae_items in vae.items():
        holdings.vae[worker_id].plans[tick] = tuple(e.task_id for item in vae_items for e in item.entries)
        holdings.effects.append(SendVaePlan(worker_id, VaePlan(leader_token, tick, tuple(vae_items))))


def _waiting_view(task: Task, job: Job) -> WaitingTask:
    record = job.record
    return WaitingTask(task.spec.task_id, task.key, task.spec.rows, record.request.priority, record.deadline_ms)


def _unet_view(lane: UnetLaneState, jobs: dict[str, Job], plan_ahead: int) -> UnetLane:
    running, undecoded = [], 0
    for task in lane.tasks.values():
        if task.phase is Phase.RUNNING:
            undecoded += 1
            if task.planned_calls < task.num_calls:
                running.append(_running_view(task, jobs[task.job_id].record))
        elif task.phase is Phase.PREPARING:
            undecoded += 1
    return UnetLane(
        worker_id=lane.worker_id,
        domain=lane.domain,
        model=lane.model,
        slots=0 if lane.draining or lane.no_room else lane.slots,
        resident=len(lane.tasks),
        undecoded=undecoded,
        running=tuple(running),
        wants_plan=bool(running) and len(lane.plans) < plan_ahead,
    )


def _running_view(task: Task, record: JobRecord) -> RunningTask:
    return RunningTask(
        task.spec.task_id,
        task.key,
        task.spec.rows,
        task.planned_calls,
        task.num_calls,
        record.request.priority,
        record.deadline_ms,
    )


def _vae_view(lane: VaeLaneState, plan_ahead: int) -> VaeLane:
    wants_plan = len(lane.plans) < plan_ahead and not lane.draining
    return VaeLane(lane.worker_id, lane.domain, lane.model, len(lane.tasks), wants_plan)


def _unet_item(holdings: Holdings, batch: Batch) -> UnetItem:
    entries = []
    for task_id in batch.task_ids:
        task = holdings.tasks[task_id]
        entries.append(UnetEntry(task_id, task.planned_calls))
        task.planned_calls += 1
    return UnetItem(tuple(entries))


def _vae_item(holdings: Holdings, batch: Batch) -> VaeItem:
    entries = []
    for task_id in batch.task_ids:
        task = holdings.ready.pop(task_id)
        assert task.slot is not None, "a decode is planned only after the report of the last step"
        task.phase, task.vae_worker = Phase.DECODING, batch.worker_id
        holdings.vae[batch.worker_id].tasks[task_id] = task
        entries.append(
            DecodeEntry(
                task_id=task_id,
                arena_address=holdings.unet[task.unet_worker].arena_address,
                slot=task.slot,
                width=task.key.width,
                height=task.key.height,
                image_format=holdings.jobs[task.job_id].record.request.image_format,
                parameters_json=_parameters_json(task),
            )
        )
    return VaeItem(tuple(entries))


def _parameters_json(task: Task) -> str:
    """What it takes to make the picture again, as embedded in its file."""
    parameters = asdict(task.spec) | {"model": task.key.model, "sampler": task.spec.sampler.name.lower()}
    del parameters["preview_every"], parameters["task_id"]
    return json.dumps(parameters, ensure_ascii=False)
