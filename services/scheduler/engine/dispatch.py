"""A policy's answer as plans for the workers: each worker's part, in step where the tick asks for it."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict

from services.scheduler.engine.effects import SendUnetPlan, SendVaePlan
from services.scheduler.engine.holdings import Holdings
from services.scheduler.engine.tasks import Lane, PartItem, PlannedPart, Task, UnetLaneState, VaeLaneState
from services.scheduler.policy.snapshots import DecodePart, Item, TickPlan, UnetBatch, VaeBatch
from synerdiff.plans import (
    DecodeEntry,
    Execution,
    ItemRef,
    UnetEntry,
    UnetItem,
    UnetPlan,
    VaeItem,
    VaePlan,
)
from synerdiff.profiles import Setting

# A worker waits for the other at most this many times as long as the item before should take: a plan is conditional.
_PATIENCE = 3
_PATIENCE_FLOOR_MS = 50
# Where nothing says how long an item takes.
_PATIENCE_UNKNOWN_MS = 2000


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
        self._pace = _pace_name(*self._pair, leader_token) if self._pair else ""
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
            unet_items = tuple(item for item, _ in unet_part)
            named = tuple(entry.task_id for item in unet_items for entry in item.entries)
            holdings.unet[worker_id].plans[self._tick] = self._part(named, [planned for _, planned in unet_part])
            unet_plan = UnetPlan(self._leader_token, self._tick, unet_items)
            holdings.effects.append(SendUnetPlan(worker_id, unet_plan, predicted_ms))
        for worker_id, vae_part in self._vae.items():
            vae_items = tuple(item for item, _ in vae_part)
            named = tuple(dict.fromkeys(entry.task_id for item in vae_items for entry in item.entries))
            holdings.vae[worker_id].plans[self._tick] = self._part(named, [planned for _, planned in vae_part])
            vae_plan = VaePlan(self._leader_token, self._tick, vae_items)
            holdings.effects.append(SendVaePlan(worker_id, vae_plan, predicted_ms))

    def _take_turns(self) -> None:
        """Count what each caller gets of the tick."""
        holdings, tasks = self._holdings, self._holdings.tasks
        steps = (item.unet for item in self._plan.items if item.unet)
        stepping = [(tasks[task_id], task_id in batch.skipping) for batch in steps for task_id in batch.task_ids]
        holdings.shares.stepped((holdings.jobs[task.job_id], task, skips) for task, skips in stepping)

    def _part(self, task_ids: tuple[str, ...], items: Sequence[PartItem]) -> PlannedPart:
        """The record of a worker's part."""
        key = self._holdings.tasks[task_ids[0]].key
        return PlannedPart(task_ids, tuple(items), self._plan.threshold, key, self._pair is not None, self._plan.why)

    def _add(self, place: int, item: Item) -> None:
        planned = self._planned(place, item)
        unet_after, vae_after = self._partners_last()
        if item.unet:
            execution = self._execution(place, item.unet.threads, unet_after)
            self._unet.setdefault(item.unet.worker_id, []).append((self._unet_item(item.unet, execution), planned))
            self._remember(self._holdings.unet[item.unet.worker_id], place)
        if item.vae:
            execution = self._execution(place, item.vae.threads, vae_after)
            self._vae.setdefault(item.vae.worker_id, []).append((self._vae_item(item.vae, execution), planned))
            self._remember(self._holdings.vae[item.vae.worker_id], place)
        expected_ms = round(_PATIENCE * item.predicted_ms) if item.predicted_ms else _PATIENCE_UNKNOWN_MS
        self._patience_ms = max(_PATIENCE_FLOOR_MS, expected_ms)

    def _partners_last(self) -> tuple[ItemRef | None, ItemRef | None]:
        """The items that the UNet worker's part has to come after, and the VAE worker's."""
        if self._pair is None:
            return None, None
        unet, vae = (lane.last_in_step for lane in self._pair)
        return (
            vae[1] if vae and vae[0] == self._pace else None,
            unet[1] if unet and unet[0] == self._pace else None,
        )

    def _remember(self, lane: Lane, place: int) -> None:
        if self._pair:
            lane.last_in_step = self._pace, ItemRef(self._tick, place)

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

    def _vae_item(self, batch: VaeBatch, execution: Execution) -> VaeItem:
        return VaeItem(tuple(self._decode_entry(batch.worker_id, part) for part in batch.parts), execution)

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


def _pace_name(unet: UnetLaneState, vae: VaeLaneState, leader_token: int) -> str:
    """Of this pair under this leader: another leader's ticks count from 1 again."""
    return hashlib.sha256(f"{leader_token} {unet.worker_id} {vae.worker_id}".encode()).hexdigest()[:16]


def _parameters_json(task: Task) -> str:
    """The parameters that make the picture again, as embedded in its file."""
    parameters = asdict(task.spec) | {"model": task.key.model, "sampler": task.spec.sampler.name.lower()}
    del parameters["preview_every"], parameters["task_id"], parameters["skip_predictor"]
    if not task.spec.exact:
        del parameters["exact"]
    if task.skipped:
        parameters |= {"skip_cfg_steps": task.skipped, "skip_cfg_predictor": task.spec.skip_predictor}
    return json.dumps(parameters, ensure_ascii=False)
