"""Ticks and ended jobs as messages for those who watch."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence

from services.scheduler.engine.tasks import PartItem
from services.scheduler.engine.ticks import TickRecord
from services.scheduler.planner.baseline_rounds import coarse, fine, vae_first
from services.scheduler.planner.planned_round import PlannedRound, PlanQuery, RoundReason
from services.scheduler.telemetry.ended_jobs import EndedJob
from synerdiff.plans import ItemTiming
from synerdiff.profiles import Profile
from synerdiff.v1 import operations_pb2

_BASELINES: dict[str, Callable[[Profile, PlanQuery, float], PlannedRound]] = {
    "coarse": coarse,
    "fine": fine,
    "vae-first": vae_first,
}
# Rounds that a stream remembers having told of; past that it tells of them again.
_MOST_ROUNDS = 4096

_Told = tuple[str, PlanQuery, bool]


class TickMessages:
    """What one stream says. It remembers the rounds that it has told of."""

    def __init__(self) -> None:
        self._told: dict[_Told, int] = {}
        self._last_id = 0

    def message(
        self, records: Sequence[TickRecord], ended: Iterable[EndedJob], missed: int
    ) -> operations_pb2.WatchTicksResponse:
        """All of it as one message. Takes some ms where rounds are new: not for an event loop."""
        message = operations_pb2.WatchTicksResponse(missed=missed)
        for record in records:
            message.parts.append(self._part(record, message))
        message.ended.extend(operations_pb2.EndedJob(**job._asdict()) for job in ended)
        return message

    def _part(self, record: TickRecord, message: operations_pb2.WatchTicksResponse) -> operations_pb2.TickPart:
        part = operations_pb2.TickPart(
            domain=record.domain,
            worker_id=record.worker_id,
            kind=record.kind,
            tick=record.tick,
            stale=record.stale,
            waiting_tasks=record.waiting,
            pending_decodes=record.decodes,
        )
        planned = record.planned
        if planned:
            part.threshold, part.in_step, part.why = planned.threshold, planned.in_step, planned.why
        for number, timing in enumerate(record.items):
            item = planned.items[number] if planned and number < len(planned.items) else None
            part.items.append(_ran(timing, number + 1))
            if item:
                part.items[-1].place = item.place
                part.items[-1].plan.CopyFrom(_plan(item, self._round(item.reason, message)))
        return part

    def _round(self, reason: RoundReason | None, message: operations_pb2.WatchTicksResponse) -> int:
        """The id of an item's round, which the message tells of if none before it did; 0 for no round."""
        if reason is None:
            return 0
        key = (reason.profile.digest, reason.query, reason.planned is None)
        if key not in self._told:
            if len(self._told) >= _MOST_ROUNDS:
                self._told.clear()
            self._last_id += 1
            self._told[key] = self._last_id
            message.rounds.append(_round(self._last_id, reason))
        return self._told[key]


def _ran(timing: ItemTiming, place: int) -> operations_pb2.RanItem:
    return operations_pb2.RanItem(
        place=place,
        start_unix_ms=timing.start_unix_ns / 1e6,
        end_unix_ms=timing.end_unix_ns / 1e6,
        rows=timing.rows,
        waited_ms=timing.waited_ms,
        halved=timing.halved,
    )


def _plan(item: PartItem, round_id: int) -> operations_pb2.ItemPlan:
    return operations_pb2.ItemPlan(
        tasks=item.tasks,
        skips=item.skips,
        rows=item.rows,
        decodes=item.decodes,
        chunks=item.chunks,
        unet_threads=item.setting.unet_threads,
        vae_threads=item.setting.vae_threads,
        predicted_ms=item.predicted_ms,
        round=round_id,
    )


def _round(round_id: int, reason: RoundReason) -> operations_pb2.PlannedRound:
    query, planned = reason.query, reason.planned
    message = operations_pb2.PlannedRound(
        id=round_id,
        unet=query.unet,
        vae=query.vae,
        skips=query.skips,
        one_row=query.one_row,
        threshold=query.threshold,
        skip_price_ms=query.skip_price_ms,
    )
    if planned:
        message.planned.CopyFrom(_sums("planned", planned))
        message.fastest_ms = planned.fastest_ms
        message.others.extend(_others(reason.profile, query, planned.fastest_ms))
    return message


def _others(profile: Profile, query: PlanQuery, fastest_ms: float) -> Iterator[operations_pb2.RoundSums]:
    for name, baseline in _BASELINES.items():
        with contextlib.suppress(KeyError):  # the profile has no such items
            yield _sums(name, baseline(profile, query, fastest_ms))


def _sums(name: str, planned: PlannedRound) -> operations_pb2.RoundSums:
    return operations_pb2.RoundSums(
        name=name,
        items=len(planned.items),
        one_row=planned.skips,
        total_ms=planned.total_ms,
        mean_decode_ms=planned.mean_decode_ms,
        objective_ms=planned.objective,
        feasible=planned.feasible,
    )
