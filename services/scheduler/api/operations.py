"""The operators' API: the pool's status, the last ticks as a trace, and ticks as they come."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing
from typing import Any

from services.scheduler.api.tick_watches import TickWatches, check_domain, leader_of
from services.scheduler.engine.holdings import Holdings
from services.scheduler.engine.tasks import Phase, UnetLaneState
from services.scheduler.leading.observer import Observer
from services.scheduler.leading.pool import Pool
from services.scheduler.policy.controller import ControllerState, ThresholdController
from services.scheduler.policy.policy_spec import Pace
from services.scheduler.policy.snapshots import BatchKey, Thresholds
from services.scheduler.store.queue import QueueDepth
from services.scheduler.telemetry.decode_backlog import decode_backlog_s
from services.scheduler.telemetry.metrics import PoolMetrics
from services.scheduler.telemetry.tick_messages import chrome_trace
from synerdiff.profiles import Profile
from synerdiff.redis_client import patiently
from synerdiff.registry import WorkerRecord
from synerdiff.rpc import ServiceHost
from synerdiff.v1 import images_pb2, operations_pb2, operations_pb2_grpc

SERVICE = "synerdiff.v1.Operations"
_REDIS_PATIENCE_S = 2.0
_OF_THE_RECORD = ("worker_id", "kind", "domain", "address", "device", "execution", "memory_format", "weights")
_UNDER_WAY = (Phase.PREPARING, Phase.RUNNING)
_DECODING = (Phase.READY_TO_DECODE, Phase.DECODING, Phase.STORING)


class OperationsService(operations_pb2_grpc.OperationsServicer):
    """synerdiff.v1.Operations of one pool: from its leader's holdings where this process leads, else from Redis."""

    def __init__(self, pool: Pool) -> None:
        self.watches = TickWatches(pool)
        self._pool = pool
        self._trace_turn = asyncio.Lock()

    def add_to(self, host: ServiceHost) -> None:
        """Serve on `host`."""
        host.add(SERVICE, operations_pb2_grpc.add_OperationsServicer_to_server, self)

    async def GetStatus(
        self, request: operations_pb2.GetStatusRequest, context: Any
    ) -> operations_pb2.GetStatusResponse:
        """The pool just now."""
        leader = self._pool.leader
        holdings = leader.engine.holdings if leader else None
        workers = await patiently(lambda: self._pool.registry.workers(self._pool.name), _REDIS_PATIENCE_S)
        depths = await self._pool.store.queue_depths()
        return operations_pb2.GetStatusResponse(
            pool=self._pool.name,
            leader=leader is not None,
            policy=self._pool.options.policy.name,
            workers=worker_statuses(workers, holdings),
            queues=_queue_statuses(depths, holdings),
            planning=planning_statuses(leader.engine.holdings, leader.observer, leader.thresholds) if leader else (),
        )

    async def GetTrace(self, request: operations_pb2.GetTraceRequest, context: Any) -> operations_pb2.GetTraceResponse:
        """The last ticks, made on another thread: ticks go on meanwhile. One trace at a time: each takes tens of MB."""
        leader = leader_of(self._pool)
        records = self._pool.ticks.records(request.domain)
        if not records:
            check_domain(leader, request.domain)
        async with self._trace_turn:
            return operations_pb2.GetTraceResponse(trace_json=await asyncio.to_thread(chrome_trace, records))

    async def WatchTicks(
        self, request: operations_pb2.WatchTicksRequest, context: Any
    ) -> AsyncIterator[operations_pb2.WatchTicksResponse]:
        """Ticks and ended jobs as they come."""
        async with aclosing(self.watches.watch(request.domain, request.last)) as messages:
            async for message in messages:
                yield message

    async def update_gauges(self) -> None:
        """Set the gauges of the process's metrics to their present values."""
        metrics, leader = PoolMetrics.of_process(), self._pool.leader
        metrics.leading.labels(self._pool.name).set(leader is not None)
        for depth in await self._pool.store.queue_depths():
            labels = (depth.model, depth.priority.name.lower())
            metrics.queue_jobs.labels(*labels).set(depth.waiting)
            metrics.queue_oldest.labels(*labels).set(depth.oldest_age_s)
        for gauge in (metrics.tasks, metrics.slots, metrics.slots_used, metrics.workers):
            gauge.clear()
        metrics.write_backlog.set(leader.writer.backlog if leader else 0)
        backlog_s = {card.name: 0.0 for card in await self._pool.registry.cards()}
        if leader:
            backlog_s = decode_backlog_s(leader.engine.holdings, leader.observer.decode_times, backlog_s)
        for model, seconds in backlog_s.items():
            metrics.decode_backlog.labels(model).set(seconds)
        if leader:
            set_holdings_gauges(metrics, leader.engine.holdings)
            set_planning_gauges(metrics, leader.engine.holdings, leader.observer, leader.thresholds)


def set_holdings_gauges(metrics: PoolMetrics, holdings: Holdings) -> None:
    """Tasks by phase, slots and workers."""
    for (model, phase), count in Counter((t.key.model, t.phase) for t in holdings.tasks.values()).items():
        metrics.tasks.labels(model, phase.name.lower()).set(count)
    for lane in holdings.unet.values():
        metrics.slots.labels(lane.model).inc(lane.slots)
        metrics.slots_used.labels(lane.model).inc(len(lane.tasks))
    for kind, lanes in (("unet", holdings.unet), ("vae", holdings.vae)):
        for model, count in Counter(lane.model for lane in lanes.values()).items():
            metrics.workers.labels(model, kind).set(count)


def worker_statuses(records: Iterable[WorkerRecord], holdings: Holdings | None) -> list[operations_pb2.WorkerStatus]:
    """Announced workers by id, then workers that the leader holds without an announcement: they drain."""
    statuses = [_worker_status(record, holdings) for record in records]
    announced = {status.worker_id for status in statuses}
    for kind, lanes in (("unet", holdings.unet), ("vae", holdings.vae)) if holdings else ():
        for lane in lanes.values():
            if lane.worker_id not in announced:
                status = operations_pb2.WorkerStatus(
                    worker_id=lane.worker_id, kind=kind, model=lane.model, domain=lane.domain
                )
                statuses.append(_as_held(status, holdings))
    return statuses


def _worker_status(record: WorkerRecord, holdings: Holdings | None) -> operations_pb2.WorkerStatus:
    same = {name: getattr(record, name) for name in _OF_THE_RECORD}
    share = record.mps_thread_percent
    status = operations_pb2.WorkerStatus(model=record.model_card.name, mps_thread_percent=share, **same)
    return _as_held(status, holdings)


def _as_held(status: operations_pb2.WorkerStatus, holdings: Holdings | None) -> operations_pb2.WorkerStatus:
    """The status with the state of the worker's lane, where the leader has one."""
    lane = holdings.lane(status.worker_id) if holdings else None
    if lane:
        status.attached, status.draining, status.suspect, status.rows = True, lane.draining, lane.suspect, lane.rows
        status.running = len(lane.tasks)
    if isinstance(lane, UnetLaneState):
        status.running = sum(task.phase in _UNDER_WAY for task in lane.tasks.values())
        status.slots, status.slots_used = lane.slots, len(lane.tasks)
    return status


def _queue_statuses(depths: Iterable[QueueDepth], holdings: Holdings | None) -> list[operations_pb2.QueueStatus]:
    queues: dict[str, operations_pb2.QueueStatus] = {}
    for depth in depths:
        queue = queues.setdefault(depth.model, operations_pb2.QueueStatus(model=depth.model))
        queue.waiting += depth.waiting
        queue.oldest_age_s = max(queue.oldest_age_s, depth.oldest_age_s)
        queue.classes.add(
            priority=images_pb2.Priority.ValueType(depth.priority.value),
            waiting=depth.waiting,
            oldest_age_s=depth.oldest_age_s,
        )
    for task in holdings.tasks.values() if holdings else ():
        queue = queues.setdefault(task.key.model, operations_pb2.QueueStatus(model=task.key.model))
        queue.running += task.phase in _UNDER_WAY
        queue.decoding += task.phase in _DECODING
    return [queues[model] for model in sorted(queues)]


def planning_statuses(
    holdings: Holdings, observer: Observer, thresholds: Thresholds | None = None
) -> list[operations_pb2.PlanningStatus]:
    """One for each domain and batch key with a profile, and one for each domain that plans without any."""
    statuses = [
        _profiled(domain, key, profile, observer) for (domain, key), profile in sorted(holdings.profiles.items())
    ]
    for domain in sorted(holdings.domains() - {status.domain for status in statuses}):
        threshold = observer.thresholds.get(domain, 0.0)
        statuses.append(operations_pb2.PlanningStatus(domain=domain, threshold=threshold))
    for status in statuses:
        state = controller_state(thresholds, status.domain)
        if state:
            terms = {name: value for name, value in state._asdict().items() if name != "switches"}
            status.controller.CopyFrom(operations_pb2.ControllerTerms(**terms))
    return statuses


def controller_state(thresholds: Thresholds | None, domain: str) -> ControllerState | None:
    """Where a domain's controller stands; None where its threshold is not controlled, or not in use yet."""
    return thresholds.state(domain) if isinstance(thresholds, ThresholdController) else None


def set_planning_gauges(
    metrics: PoolMetrics, holdings: Holdings, observer: Observer, thresholds: Thresholds | None
) -> None:
    """Threshold and state of its controller by domain, drift by profile."""
    for gauge in (metrics.threshold, metrics.profile_drift, metrics.controller):
        gauge.clear()
    domains = {lane.domain for lane in holdings.unet.values()}
    for domain in domains:
        state = controller_state(thresholds, domain)
        for term, value in state._asdict().items() if state else ():
            metrics.controller.labels(domain, term).set(value)
    for domain, threshold in observer.thresholds.items():
        if threshold and domain in domains:
            metrics.threshold.labels(domain).set(threshold)
    for (domain, key), correction in observer.corrections.items():
        if (domain, key) in holdings.profiles:
            metrics.profile_drift.labels(domain, key.model, f"{key.width}x{key.height}").set(correction.drift)


def _profiled(domain: str, key: BatchKey, profile: Profile, observer: Observer) -> operations_pb2.PlanningStatus:
    correction = observer.corrections.get((domain, key))
    original = correction.original if correction and correction.current is profile else profile
    threshold = observer.thresholds.get(domain, 0.0)
    return operations_pb2.PlanningStatus(
        domain=domain,
        model=key.model,
        width=key.width,
        height=key.height,
        threshold=threshold,
        knee_rows=Pace.of(profile, threshold or 1.0).rows,
        profile_digest=original.digest,
        profile_made_at=original.made_at,
        profile_origin=", ".join(sorted({cell.origin for cell in original.cells})),
        profile_drift=correction.drift if correction else 0.0,
        profile_corrected=profile is not original,
    )
