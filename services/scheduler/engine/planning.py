"""A domain's planning: the holdings as a policy sees them, and its answer as plans for the workers, in step or not."""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TypeVar

from services.scheduler.engine.effects import SendUnetPlan, SendVaePlan
from services.scheduler.engine.holdings import Holdings
from services.scheduler.engine.tasks import Job, Lane, Phase, Task, UnetLaneState, VaeLaneState
from services.scheduler.engine.ticks import PartItem, PlannedPart
from services.scheduler.policy.snapshots import (
    Claim,
    DecodePart,
    DomainSnapshot,
    Item,
    PoolSnapshot,
    ReadyDecode,
    RunningTask,
    SkipState,
    TickPlan,
    UnetBatch,
    UnetLane,
    VaeLane,
    WaitingTask,
    same_weights,
)
from synerdiff.plans import DecodeEntry, Execution, ItemRef, UnetEntry, UnetItem, UnetPlan, VaeItem, VaePlan
from synerdiff.profiles import Setting
from synerdiff.skip_cfg import SkipCfgMode

# A worker waits for the other at most this many times as long as the item before should take: a plan is conditional.
_PATIENCE = 3
_PATIENCE_FLOOR_MS = 50
# For an item without a predicted time.
_PATIENCE_UNKNOWN_MS = 2000

ItemT = TypeVar("ItemT", UnetItem, VaeItem)


def pool_snapshot(holdings: Holdings, plan_ahead: int, now_ms: int) -> PoolSnapshot:
    """The view for admission: the waiting tasks in order of acceptance, and every UNet worker."""
    jobs = holdings.jobs

    def age(task: Task) -> tuple[int, str, int]:
        return jobs[task.job_id].record.accepted_at_ms, task.job_id, task.index

    waiting = []
    for task in sorted(holdings.waiting.values(), key=age):
        job, spec, calls = jobs[task.job_id], task.spec, task.num_calls or task.spec.num_inference_steps
        waiting.append(WaitingTask(spec.task_id, task.key, spec.rows, calls, _claim(task, job), job.unet_weights))
    callers = _several_callers(holdings, now_ms)
    lanes = []
    for lane in holdings.unet.values():
        shared = lane.tasks.values() if lane.model in callers else ()
        held = Counter(jobs[task.job_id].record.caller for task in shared)
        lanes.append(replace(_unet_view(lane, jobs, plan_ahead), held=held))
    return PoolSnapshot(
        now_ms, tuple(waiting), tuple(lanes), holdings.profiles, holdings.budgets, holdings.shares.ahead(), callers
    )


def _several_callers(holdings: Holdings, now_ms: int) -> dict[str, frozenset[str]]:
    """By model, the callers that have work or had lately, where these are several."""
    about = {lane.model: set(holdings.shares.lately(lane.model, now_ms)) for lane in holdings.unet.values()}
    for job in holdings.jobs.values():
        if job.record.request.model in about:
            about[job.record.request.model].add(job.record.caller)
    return {model: frozenset(callers) for model, callers in about.items() if len(callers) > 1}


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
    vae = tuple(
        VaeLane(lane.worker_id, domain, lane.model, len(lane.tasks), len(lane.plans) < plan_ahead and lane.takes_new)
        for lane in lanes
    )
    decodes = []
    for task in ready:
        home, claim = holdings.unet[task.unet_worker].domain, _claim(task, holdings.jobs[task.job_id])
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
        if lane.takes_new:
            places.setdefault((lane.domain, lane.model), set()).add(lane.weights)
    here, shown = list[tuple[Task, str]](), dict[str, str]()
    for task in holdings.ready.values():
        model, home, wanted = (
            task.key.model,
            holdings.unet[task.unet_worker].domain,
            holdings.jobs[task.job_id].vae_weights,
        )
        if home != domain and any(same_weights(held, wanted) for held in places.get((home, model), ())):
            continue
        here.append((task, wanted))
        if model not in shown:
            fitting = (lane for lane in lanes if lane.model == model and same_weights(lane.weights, wanted))
            free = next((lane for lane in fitting if len(lane.plans) < plan_ahead and lane.takes_new), None)
            shown |= {model: free.weights} if free else {}
    lanes = [lane for lane in lanes if lane.weights == shown.get(lane.model, lane.weights)]
    held = {(lane.model, lane.weights) for lane in lanes}

    def fits_all(task: Task, wanted: str) -> bool:
        return all(same_weights(weights, wanted) for model, weights in held if model == task.key.model)

    return lanes, [task for task, wanted in here if fits_all(task, wanted)]


def _claim(task: Task, job: Job) -> Claim:
    record, request = job.record, job.record.request
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


def _unet_view(lane: UnetLaneState, jobs: dict[str, Job], plan_ahead: int) -> UnetLane:
    running, undecoded, preparing = [], 0, 0
    for task in lane.tasks.values():
        if task.phase is Phase.RUNNING:
            undecoded += 1
            if task.planned_calls < task.num_calls:
                spec, calls, job = task.spec, (task.planned_calls, task.num_calls), jobs[task.job_id]
                states = _claim(task, job), _skip_state(task, job)
                running.append(RunningTask(spec.task_id, task.key, spec.rows, *calls, *states))
        elif task.phase is Phase.PREPARING:
            undecoded += 1
            preparing += 1
    return UnetLane(
        worker_id=lane.worker_id,
        domain=lane.domain,
        model=lane.model,
        slots=0 if not lane.takes_new or lane.no_room else lane.slots,
        resident=len(lane.tasks),
        preparing=preparing,
        undecoded=undecoded,
        running=tuple(running),
        wants_plan=bool(running) and len(lane.plans) < plan_ahead,
        sizes={key: growth.size() for key, growth in lane.growth.items()},
        shares_cores=lane.shares_cores,
        weights=lane.weights,
    )


def _skip_state(task: Task, job: Job) -> SkipState:
    asked = job.record.request.skip_cfg
    must: bool | None = None
    if task.spec.rows < 2 or not task.spec.skip_predictor or asked.mode is SkipCfgMode.OFF:
        must = False
    elif asked.mode is SkipCfgMode.FIXED:
        must = task.planned_calls in asked.steps
    elif task.planned_calls < task.replay_until:
        must = task.planned_calls in task.replay
    return SkipState(must, asked.max_fraction or 1.0, len(task.skipped), task.skip_run, task.drift)


def dispatch(holdings: Holdings, domain: str, plan: TickPlan, tick: int, leader_token: int) -> None:
    """Split a tick into each worker's part, as effects, and mark the tasks that it names as planned."""
    _Split(holdings, domain, plan, tick, leader_token).into_effects()


class _Split:
    """One tick on its way to its workers."""

    def __init__(self, holdings: Holdings, domain: str, plan: TickPlan, tick: int, leader_token: int) -> None:
        self._holdings = holdings
        self._domain = domain
        self._plan = plan
        self._tick = tick
        self._leader_token = leader_token
        self._pair = _pair(holdings, domain) if plan.in_step else None
        # Of this pair under this leader: another leader's ticks count from 1 again.
        named = " ".join((str(leader_token), *(lane.worker_id for lane in self._pair or ())))
        self._pace = hashlib.sha256(named.encode()).hexdigest()[:16] if self._pair else ""
        self._unet: dict[str, list[tuple[UnetItem, PartItem]]] = {}
        self._vae: dict[str, list[tuple[VaeItem, PartItem]]] = {}
        self._patience_ms = _PATIENCE_FLOOR_MS

    def into_effects(self) -> None:
        self._take_turns()
        for place, item in enumerate(self._plan.items, start=1):
            self._add(place, item)
        holdings, times_ms = self._holdings, [item.predicted_ms for item in self._plan.items]
        predicted_ms = sum(times_ms) if all(times_ms) else 0.0
        for worker_id, unet_part in self._unet.items():
            unet_plan = UnetPlan(self._leader_token, self._tick, self._under_way(holdings.unet[worker_id], unet_part))
            holdings.effects.append(SendUnetPlan(worker_id, unet_plan, predicted_ms))
        for worker_id, vae_part in self._vae.items():
            vae_plan = VaePlan(self._leader_token, self._tick, self._under_way(holdings.vae[worker_id], vae_part))
            holdings.effects.append(SendVaePlan(worker_id, vae_plan, predicted_ms))

    def _take_turns(self) -> None:
        """Charge each caller for its steps in the tick."""
        holdings, tasks = self._holdings, self._holdings.tasks
        steps = (item.unet for item in self._plan.items if item.unet)
        stepping = [(tasks[task_id], task_id in batch.skipping) for batch in steps for task_id in batch.task_ids]
        holdings.shares.stepped((holdings.jobs[task.job_id], task, skips) for task, skips in stepping)

    def _under_way(self, lane: Lane, part: Sequence[tuple[ItemT, PartItem]]) -> tuple[ItemT, ...]:
        """Keep the record of a worker's part. Returns the items to send."""
        items, planned = zip(*part, strict=True)
        task_ids = tuple(dict.fromkeys(entry.task_id for item in items for entry in item.entries))
        key, in_step = self._holdings.tasks[task_ids[0]].key, self._pair is not None
        lane.plans[self._tick] = PlannedPart(task_ids, planned, self._plan.threshold, key, in_step, self._plan.why)
        return items

    def _add(self, place: int, item: Item) -> None:
        planned = self._planned(place, item)
        unet_after, vae_after = self._partners_last()
        if item.unet:
            execution = self._execution(place, item.unet.threads, unet_after)
            self._unet.setdefault(item.unet.worker_id, []).append((self._unet_item(item.unet, execution), planned))
        if item.vae:
            execution = self._execution(place, item.vae.threads, vae_after)
            decodes = tuple(self._decode_entry(item.vae.worker_id, part) for part in item.vae.parts)
            self._vae.setdefault(item.vae.worker_id, []).append((VaeItem(decodes, execution), planned))
        for lane, part in zip(self._pair or (), (item.unet, item.vae), strict=False):
            if part:
                lane.last_in_step = self._pace, ItemRef(self._tick, place)
        expected_ms = round(_PATIENCE * item.predicted_ms) if item.predicted_ms else _PATIENCE_UNKNOWN_MS
        self._patience_ms = max(_PATIENCE_FLOOR_MS, expected_ms)

    def _partners_last(self) -> tuple[ItemRef | None, ItemRef | None]:
        """The items that the UNet worker's part has to come after, and the VAE worker's."""
        if self._pair is None:
            return None, None
        last = (lane.last_in_step for lane in self._pair)
        unet, vae = (item if item and item[0] == self._pace else None for item in last)
        return vae and vae[1], unet and unet[1]

    def _execution(self, place: int, threads: int, after: ItemRef | None) -> Execution:
        return Execution(place, threads, after, self._patience_ms if after else 0, self._pace)

    def _planned(self, place: int, item: Item) -> PartItem:
        rows = skips = 0
        if item.unet:
            skips = len(item.unet.skipping)
            rows = sum(self._holdings.tasks[task_id].spec.rows for task_id in item.unet.task_ids) - skips
        parts = item.vae.parts if item.vae else ()
        decodes = sum((part.end - part.first) / part.chunks for part in parts)
        chunks = max((part.chunks for part in parts), default=1)
        setting = Setting(chunks, item.unet.threads if item.unet else 0, item.vae.threads if item.vae else 0)
        named = (*(item.unet.task_ids if item.unet else ()), *(part.task_id for part in parts))
        keys = {self._holdings.tasks[task_id].key for task_id in named}
        tasks = len(item.unet.task_ids) if item.unet else 0
        key = keys.pop() if len(keys) == 1 else None
        return PartItem(place, rows, skips, decodes, chunks, setting, item.predicted_ms, tasks, key, item.reason)

    def _unet_item(self, batch: UnetBatch, execution: Execution) -> UnetItem:
        entries = []
        for task_id in batch.task_ids:
            skip = task_id in batch.skipping
            entries.append(UnetEntry(task_id, self._holdings.tasks[task_id].plan_call(skip), skip))
        return UnetItem(tuple(entries), execution)

    def _decode_entry(self, worker_id: str, part: DecodePart) -> DecodeEntry:
        holdings, task = self._holdings, self._holdings.tasks[part.task_id]
        if part.task_id in holdings.ready:
            holdings.decoding(task, worker_id)
            profile = holdings.profiles.get((self._domain, task.key.ordinary))
            holdings.shares.decoded(holdings.jobs[task.job_id], task, profile)
        assert task.slot is not None, "a decode is planned only after the report of the last step"
        return DecodeEntry(
            task_id=part.task_id,
            arena_address=holdings.unet[task.unet_worker].arena_address,
            slot=task.slot,
            width=task.key.width,
            height=task.key.height,
            image_format=holdings.jobs[task.job_id].record.request.image_format,
            parameters_json=_parameters_json(task),
            chunks=part.chunks,
            first_chunk=part.first,
            end_chunk=part.end,
            exact=task.spec.exact,
        )


def _pair(holdings: Holdings, domain: str) -> tuple[UnetLaneState, VaeLaneState] | None:
    """The two workers of a domain that has one of each: only such a pair can run in step."""
    unet = [lane for lane in holdings.unet.values() if lane.domain == domain]
    vae = [lane for lane in holdings.vae.values() if lane.domain == domain]
    return (unet[0], vae[0]) if len(unet) == len(vae) == 1 else None


def _parameters_json(task: Task) -> str:
    """The parameters that make the picture again, as embedded in its file."""
    parameters = asdict(task.spec) | {"model": task.key.model, "sampler": task.spec.sampler.name.lower()}
    del parameters["preview_every"], parameters["task_id"], parameters["skip_predictor"]
    if not task.spec.exact:
        del parameters["exact"]
    if task.skipped:
        parameters |= {"skip_cfg_steps": task.skipped, "skip_cfg_predictor": task.spec.skip_predictor}
    return json.dumps(parameters, ensure_ascii=False)
