"""The views of the holdings that a policy gets."""

from collections import Counter
from dataclasses import replace

from services.scheduler.engine.holdings import Holdings
from services.scheduler.engine.tasks import Job, Phase, Task, UnetLaneState, VaeLaneState
from services.scheduler.policy.snapshots import (
    Claim,
    DomainSnapshot,
    PoolSnapshot,
    ReadyDecode,
    RunningTask,
    SkipState,
    UnetLane,
    VaeLane,
    WaitingTask,
    same_weights,
)
from synerdiff.jobs import JobRecord
from synerdiff.skip_cfg import SkipCfgMode


def pool_snapshot(holdings: Holdings, plan_ahead: int, now_ms: int) -> PoolSnapshot:
    """The view for admission: the waiting tasks in order of acceptance, and every UNet worker."""
    jobs = holdings.jobs

    def age(task: Task) -> tuple[int, str, int]:
        return jobs[task.job_id].record.accepted_at_ms, task.job_id, task.index

    waiting = tuple(_waiting_view(task, jobs[task.job_id]) for task in sorted(holdings.waiting.values(), key=age))
    callers = _several_callers(holdings, now_ms)
    lanes = tuple(
        replace(_unet_view(lane, jobs, plan_ahead), held=_held(lane, jobs) if lane.model in callers else {})
        for lane in holdings.unet.values()
    )
    return PoolSnapshot(now_ms, waiting, lanes, holdings.profiles, holdings.budgets, holdings.shares.ahead(), callers)


def _several_callers(holdings: Holdings, now_ms: int) -> dict[str, frozenset[str]]:
    """By model, the callers that have work or had lately, where these are several."""
    about = {lane.model: set(holdings.shares.lately(lane.model, now_ms)) for lane in holdings.unet.values()}
    for job in holdings.jobs.values():
        if job.record.request.model in about:
            about[job.record.request.model].add(job.record.caller)
    return {model: frozenset(callers) for model, callers in about.items() if len(callers) > 1}


def _held(lane: UnetLaneState, jobs: dict[str, Job]) -> Counter[str]:
    """Slots by caller."""
    return Counter(jobs[task.job_id].record.caller for task in lane.tasks.values())


def has_room(holdings: Holdings, domain: str, plan_ahead: int) -> bool:
    """Whether a worker of the domain might take another plan: cheap, to be asked before a snapshot is made."""
    if any(lane.domain == domain and len(lane.plans) < plan_ahead for lane in holdings.unet.values()):
        return True
    vae = (lane for lane in holdings.vae.values() if lane.domain == domain)
    return bool(holdings.ready) and any(len(lane.plans) < plan_ahead for lane in vae)


def domain_snapshot(holdings: Holdings, domain: str, plan_ahead: int, now_ms: int) -> DomainSnapshot:
    """The view for a domain's plan: its lanes, its decodes, and those of domains without a VAE worker for them."""
    unet = tuple(
        _unet_view(lane, holdings.jobs, plan_ahead) for lane in holdings.unet.values() if lane.domain == domain
    )
    lanes, ready = decodable(holdings, domain, plan_ahead)
    vae = tuple(_vae_view(lane, plan_ahead) for lane in lanes)
    decodes = []
    for task in ready:
        home, claim = holdings.unet[task.unet_worker].domain, _claim(task, holdings.jobs[task.job_id].record)
        decodes.append(ReadyDecode(task.spec.task_id, task.key, home, claim))
    profiles = {key: profile for (where, key), profile in holdings.profiles.items() if where == domain}
    return DomainSnapshot(
        now_ms,
        domain,
        unet,
        vae,
        tuple(decodes),
        len(holdings.waiting),
        profiles=profiles,
        budgets=holdings.budgets,
        memory=holdings.memory.of_domain(domain),
        ahead=holdings.shares.ahead(),
    )


def decodable(holdings: Holdings, domain: str, plan_ahead: int) -> tuple[list[VaeLaneState], list[Task]]:
    """The domain's VAE workers, and the decodes that they may take: those here, and those where no VAE worker can.

    Of a model whose workers hold several weights, those of one digest at a time: that of the task which has waited
    longest for a worker with room for a plan. So a policy need not know of weights.
    """
    lanes = [lane for lane in holdings.vae.values() if lane.domain == domain]
    places: dict[tuple[str, str], set[str]] = {}
    for lane in holdings.vae.values():
        if not lane.draining:
            places.setdefault((lane.domain, lane.model), set()).add(lane.weights)
    here, shown = list[tuple[Task, str]](), dict[str, str]()
    for task in holdings.ready.values():
        model, home, wanted = task.key.model, holdings.unet[task.unet_worker].domain, _vae_weights(holdings, task)
        if home != domain and any(same_weights(held, wanted) for held in places.get((home, model), ())):
            continue
        here.append((task, wanted))
        if model not in shown:
            fitting = (lane for lane in lanes if lane.model == model and same_weights(lane.weights, wanted))
            free = next((lane for lane in fitting if len(lane.plans) < plan_ahead and not lane.draining), None)
            shown |= {model: free.weights} if free else {}
    lanes = [lane for lane in lanes if lane.weights == shown.get(lane.model, lane.weights)]
    held = {(lane.model, lane.weights) for lane in lanes}

    def fits_all(task: Task, wanted: str) -> bool:
        return all(same_weights(weights, wanted) for model, weights in held if model == task.key.model)

    return lanes, [task for task, wanted in here if fits_all(task, wanted)]


def _vae_weights(holdings: Holdings, task: Task) -> str:
    return holdings.jobs[task.job_id].vae_weights


def _claim(task: Task, record: JobRecord) -> Claim:
    request = record.request
    return Claim(
        task.job_id,
        task.index,
        request.priority,
        record.accepted_at_ms,
        record.deadline_ms,
        request.timed,
        task.first_come_ms,
        task.tail_ms,
        record.caller,
    )


def _waiting_view(task: Task, job: Job) -> WaitingTask:
    calls = task.num_calls or task.spec.num_inference_steps
    return WaitingTask(task.spec.task_id, task.key, task.spec.rows, calls, _claim(task, job.record), job.unet_weights)


def _unet_view(lane: UnetLaneState, jobs: dict[str, Job], plan_ahead: int) -> UnetLane:
    running, undecoded, preparing = [], 0, 0
    for task in lane.tasks.values():
        if task.phase is Phase.RUNNING:
            undecoded += 1
            if task.planned_calls < task.num_calls:
                running.append(_running_view(task, jobs[task.job_id].record))
        elif task.phase is Phase.PREPARING:
            undecoded += 1
            preparing += 1
    return UnetLane(
        worker_id=lane.worker_id,
        domain=lane.domain,
        model=lane.model,
        slots=0 if lane.draining or lane.no_room else lane.slots,
        resident=len(lane.tasks),
        preparing=preparing,
        undecoded=undecoded,
        running=tuple(running),
        wants_plan=bool(running) and len(lane.plans) < plan_ahead,
        sizes={key: growth.size() for key, growth in lane.growth.items()},
        shares_cores=lane.shares_cores,
        weights=lane.weights,
    )


def _running_view(task: Task, record: JobRecord) -> RunningTask:
    return RunningTask(
        task.spec.task_id,
        task.key,
        task.spec.rows,
        task.planned_calls,
        task.num_calls,
        _claim(task, record),
        _skip_state(task, record),
    )


def _skip_state(task: Task, record: JobRecord) -> SkipState:
    asked = record.request.skip_cfg
    must: bool | None = None
    if task.spec.rows < 2 or not task.spec.skip_predictor or asked.mode is SkipCfgMode.OFF:
        must = False
    elif asked.mode is SkipCfgMode.FIXED:
        must = task.planned_calls in asked.steps
    elif task.planned_calls < task.replay_until:
        must = task.planned_calls in task.replay
    return SkipState(must, asked.max_fraction or 1.0, len(task.skipped), task.skip_run, task.drift)


def _vae_view(lane: VaeLaneState, plan_ahead: int) -> VaeLane:
    wants_plan = len(lane.plans) < plan_ahead and not lane.draining
    return VaeLane(lane.worker_id, lane.domain, lane.model, len(lane.tasks), wants_plan)
