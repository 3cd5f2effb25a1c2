"""Ticks for operators: as messages, and as a Chrome/Perfetto trace.

Events of lanes: an item, of category "unet" or "vae", named by its rows or decodes; before it, of category "wait", the
wait of its worker for the other one. Both sides of an item carry the same `tick` and `place`, and an arrow joins them.
Times in microseconds since the epoch, as the format wants them.
"""

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from services.scheduler.engine.ticks import MeasuredItem, Pairing, PartItem, TickRecord
from services.scheduler.planner.baseline_rounds import coarse, fine, vae_first
from services.scheduler.planner.planned_round import PlannedRound, PlanQuery, RoundReason
from services.scheduler.telemetry.metrics import EndedJob
from synerdiff.plans import ItemTiming
from synerdiff.profiles import Profile
from synerdiff.v1 import operations_pb2

_BASELINES: dict[str, Callable[[Profile, PlanQuery, float], PlannedRound]] = {
    "coarse": coarse,
    "fine": fine,
    "vae-first": vae_first,
}
_OF_AN_ITEM = ("tasks", "skips", "rows", "decodes", "chunks", "predicted_ms")
_OF_A_QUERY = ("unet", "vae", "skips", "one_row", "threshold", "skip_price_ms")
# Rounds that a stream remembers having sent; past that it sends them again.
_MOST_ROUNDS = 4096

_Told = tuple[str, PlanQuery, bool]

Event = dict[str, Any]
_Place = tuple[str, int, int]


class TickMessages:
    """The messages of one stream. It remembers the rounds that it has sent."""

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
        """The id of an item's round, which the message carries unless an earlier one did; 0 for no round."""
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
    threads, same = item.setting, {name: getattr(item, name) for name in _OF_AN_ITEM}
    return operations_pb2.ItemPlan(
        unet_threads=threads.unet_threads, vae_threads=threads.vae_threads, round=round_id, **same
    )


def _round(round_id: int, reason: RoundReason) -> operations_pb2.PlannedRound:
    query, planned = reason.query, reason.planned
    message = operations_pb2.PlannedRound(id=round_id, **{name: getattr(query, name) for name in _OF_A_QUERY})
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


def chrome_trace(records: Sequence[TickRecord]) -> bytes:
    """The records as JSON of the trace event format. Takes a second per few 10,000 items: not for an event loop."""
    pids = {domain: pid for pid, domain in enumerate(sorted({r.domain for r in records}), start=1)}
    workers = sorted({(r.kind, r.worker_id) for r in records})  # UNet lanes above VAE lanes
    tids = {worker_id: tid for tid, (_, worker_id) in enumerate(workers, start=1)}
    pairing = Pairing(kept=len(records))
    measured = {(m.domain, m.tick, m.planned.place): m for record in records for m in pairing.add(record)}
    # Each event becomes text at once: thousands of them as dictionaries take ten times the memory.
    events = map(json.dumps, _events(records, measured, pids, tids))
    return ('{"traceEvents": [' + ", ".join(events) + '], "displayTimeUnit": "ms"}').encode()


def _events(
    records: Sequence[TickRecord], measured: dict[_Place, MeasuredItem], pids: dict[str, int], tids: dict[str, int]
) -> Iterator[Event]:
    yield from _names(records, pids, tids)
    for record in records:
        lane = {"pid": pids[record.domain], "tid": tids[record.worker_id]}
        yield from (event | lane for event in _items(record, measured))
        yield from (event | {"pid": lane["pid"]} for event in _counters(record))


def _names(records: Iterable[TickRecord], pids: dict[str, int], tids: dict[str, int]) -> Iterator[Event]:
    for domain, pid in pids.items():
        yield {"ph": "M", "name": "process_name", "pid": pid, "args": {"name": domain}}
    for domain, worker_id, kind in sorted({(r.domain, r.worker_id, r.kind) for r in records}):
        lane = {"ph": "M", "pid": pids[domain], "tid": tids[worker_id]}
        yield lane | {"name": "thread_name", "args": {"name": f"{kind} {worker_id}"}}
        yield lane | {"name": "thread_sort_index", "args": {"sort_index": tids[worker_id]}}


def _items(record: TickRecord, measured: dict[_Place, MeasuredItem]) -> Iterator[Event]:
    planned = record.planned.items if record.planned else ()
    for number, timing in enumerate(record.items):
        item = planned[number] if number < len(planned) else None
        place = item.place if item else number + 1
        named = {"tick": record.tick, "place": place}
        if timing.waited_ms > 0:
            waited_us = timing.waited_ms * 1000
            yield _slice("wait", "wait", timing.start_unix_ns / 1000 - waited_us, waited_us, named)
        whole = measured.get((record.domain, record.tick, place))
        args = named | _arguments(record, timing, item, whole)
        duration_us = (timing.end_unix_ns - timing.start_unix_ns) / 1000
        yield _slice(_title(record.kind, timing, item), record.kind, timing.start_unix_ns / 1000, duration_us, args)
        if whole and whole.unet and whole.vae:
            yield _arrow(record, timing, whole)


def _slice(name: str, category: str, start_us: float, duration_us: float, args: Event) -> Event:
    return {"ph": "X", "name": name, "cat": category, "ts": start_us, "dur": duration_us, "args": args}


def _title(kind: str, timing: ItemTiming, item: PartItem | None) -> str:
    if kind == "unet":
        skips = f", {item.skips} skipping" if item and item.skips else ""
        return f"{timing.rows} rows{skips}"
    if item is None:
        return f"{timing.rows} images"
    return f"{item.decodes:.3g} decodes" + (f" in {item.chunks} chunks" if item.chunks > 1 else "")


def _arguments(record: TickRecord, timing: ItemTiming, item: PartItem | None, whole: MeasuredItem | None) -> Event:
    """The known values of one side of an item; `measured_ms` is of the whole item, `ran_ms` of this side."""
    unit = "ran_rows" if record.kind == "unet" else "ran_images"
    args: Event = {unit: timing.rows, "ran_ms": timing.ms, "waited_ms": timing.waited_ms, "stale": record.stale}
    if item is None or record.planned is None:
        return args | {"rows": timing.rows} if record.kind == "unet" else args
    setting = item.setting
    args |= {name: getattr(item, name) for name in _OF_AN_ITEM} | {
        "threads": setting.unet_threads if record.kind == "unet" else setting.vae_threads,
        "in_step": record.planned.in_step,
        "threshold": record.planned.threshold,
    }
    if whole:
        args |= {"measured_ms": whole.ms, "intact": whole.intact}
    return args


def _arrow(record: TickRecord, timing: ItemTiming, whole: MeasuredItem) -> Event:
    """This side's end of the arrow between both sides of an item, from the one that began first."""
    unet, vae = whole.sides
    unet_first = unet.start_unix_ns <= vae.start_unix_ns
    begins = unet_first == (record.kind == "unet")
    identity = f"{record.domain} {record.tick} {whole.planned.place}"
    arrow: Event = {"name": "item", "cat": "item", "id": identity, "ts": timing.start_unix_ns / 1000}
    return arrow | ({"ph": "s"} if begins else {"ph": "f", "bp": "e"})


def _counters(record: TickRecord) -> Iterator[Event]:
    if not record.items:
        return
    began_us, ended_us = record.items[0].start_unix_ns / 1000, record.items[-1].end_unix_ns / 1000
    if record.planned and record.planned.threshold:
        yield {"ph": "C", "name": "threshold", "ts": began_us, "args": {"threshold": record.planned.threshold}}
    yield {"ph": "C", "name": "waiting tasks", "ts": ended_us, "args": {"tasks": record.waiting}}
    yield {"ph": "C", "name": "pending decodes", "ts": ended_us, "args": {"decodes": record.decodes}}
