"""The cost of metrics and traces per tick: on the event loop, on the exporter's thread, once a second, and by scrapes.

    python -m bench.telemetry_cost [--domains 8] [--tasks 64] [--steps 20] [--tick-ms 20] [--limit-ms 0.2]

A simulated pool under a leader's engine; its events and effects go to a leader's own observer, metrics and traces, with
every request traced. CPU time of those alone, the least of `repeats`; a tick is a UNet worker's part with a VAE
worker's beside it. Exits with 1 above --limit-ms.
"""

import gc
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import ReadableSpan
from prometheus_client import generate_latest

from bench.command import markdown_table, run
from services.scheduler.api.operations import set_holdings_gauges, set_planning_gauges
from services.scheduler.engine.effects import Effect, LetJobGo, StoreEffect, StoreImage
from services.scheduler.engine.events import Event, JobArrived, Reported
from services.scheduler.engine.holdings import Holdings
from services.scheduler.engine.ticks import PlannedPart, TickLog
from services.scheduler.leading.observer import Observer
from services.scheduler.policy.policies import ConfiguredPolicy
from services.scheduler.policy.policy_spec import POLICIES, PolicyBounds
from services.scheduler.simulation.simulated_device import MODEL, Overheads
from services.scheduler.simulation.simulation import SimulatedPool, simulate
from services.scheduler.simulation.workloads import Mix, burst
from services.scheduler.telemetry.decode_backlog import decode_backlog_s
from services.scheduler.telemetry.job_traces import JobTraces
from services.scheduler.telemetry.metrics import PoolMetrics
from services.scheduler.telemetry.request_traces import Deliveries, RequestTrace
from synerdiff.otlp import BATCH_SPANS, sdk_spans
from synerdiff.plans import ItemTiming, UnetTickDone, VaeTickDone
from synerdiff.profiles import Cell, ItemCaps, Profile, ProfileSubject
from synerdiff.tracing import TraceContext, Tracer
from synerdiff.v1 import images_pb2

SCRAPE_EVERY_S = 15.0
WAVES = 6
PARENT = (("traceparent", TraceContext(1, 2).traceparent),)
_TO_SDK = sdk_spans({"service.name": "a scheduler"})
IMAGE = images_pb2.GenerateEvent(image=images_pb2.Image(data=b"png"))


@dataclass(frozen=True)
class Load:
    """The load: `tasks` over `domains`, of `steps` steps each; a domain ticks every `tick_ms`."""

    domains: int
    tasks: int
    steps: int
    tick_ms: float

    @property
    def ticks_per_s(self) -> float:
        return self.domains * 1000 / self.tick_ms


class Telemetry:
    """A leader's telemetry beside a simulation. `spent_s`: CPU time by use; `ticks`: UNet plans run."""

    def __init__(self, holdings: Holdings, load: Load) -> None:
        self.spans: list[ReadableSpan] = []
        self.spent_s: dict[str, float] = defaultdict(float)
        self.ticks = 0
        self._load = load
        self._holdings = holdings
        self._tracer = Tracer(lambda span: self.spans.append(_TO_SDK(span)))
        self._metrics = PoolMetrics.of_process()
        self._observer = Observer(holdings, TickLog(), self._metrics)
        self._traces = JobTraces(self._tracer, holdings, leader_token=1)
        self._parents: dict[str, str] = {}

    def on(self, event: Event, planned: PlannedPart | None) -> None:
        """An event, with the fields that a simulation leaves out: the request's trace, and the times of items."""
        if isinstance(event, JobArrived):
            event = self._spend("spans", self._accepted, event)
        if isinstance(event, Reported) and isinstance(event.report, UnetTickDone | VaeTickDone) and planned:
            items = tuple(ItemTiming(1, 20_000_001, item.rows or round(item.decodes)) for item in planned.items)
            event = replace(event, report=replace(event.report, items=items))
            self.ticks += isinstance(event.report, UnetTickDone)
        self._spend("metrics", self._observer.on, event, planned)
        self._spend("spans", self._traces.on, event, planned)
        if isinstance(event, Reported) and isinstance(event.report, UnetTickDone):
            self._now_and_then()

    def effect(self, effect: Effect) -> None:
        if isinstance(effect, StoreEffect | LetJobGo):
            self._spend("metrics", self._observer.effect, effect)
        self._spend("spans", self._traces.effect, effect)
        if isinstance(effect, StoreImage):
            told = Deliveries(self._tracer, effect.job_id, self._parents[effect.job_id])
            self._spend("spans", told.delivered, IMAGE, 1)

    def _accepted(self, event: JobArrived) -> JobArrived:
        trace = RequestTrace(self._tracer, "ImageGeneration/Generate", PARENT)
        trace.accepted(event.record.job_id, "a request", created=True)
        self._parents[event.record.job_id] = trace.traceparent
        return JobArrived(replace(event.record, traceparent=trace.traceparent))

    def _now_and_then(self) -> None:
        """The work once a second, but for reading the queue's depths from Redis, and that of scrapes."""
        for name, work, every_s in (
            ("gauges, once a second", self._gauges, 1.0),
            ("scrapes, every 15 s", generate_latest, SCRAPE_EVERY_S),
        ):
            if self.ticks % round(every_s * self._load.ticks_per_s) == 1:
                self._spend(name, work)

    def _gauges(self) -> None:
        set_holdings_gauges(self._metrics, self._holdings)
        set_planning_gauges(self._metrics, self._holdings, self._observer, None)
        for model, seconds in decode_backlog_s(self._holdings, self._observer.decode_times, [MODEL]).items():
            self._metrics.decode_backlog.labels(model).set(seconds)

    def export(self) -> None:
        """All spans as protobuf, batch by batch, as the exporter's thread makes them."""
        for start in range(0, len(self.spans), BATCH_SPANS):
            batch = self.spans[start : start + BATCH_SPANS]
            self._spend("spans as protobuf, on the exporter's thread", _protobuf, batch)

    def _spend(self, name: str, work: Callable[..., Any], *arguments: Any) -> Any:
        began_ns = time.thread_time_ns()
        result = work(*arguments)
        self.spent_s[name] += (time.thread_time_ns() - began_ns) / 1e9
        return result


def _protobuf(spans: Sequence[ReadableSpan]) -> bytes:
    return bytes(encode_spans(spans).SerializeToString())


def device(load: Load) -> Profile:
    """Every batch of the load takes `tick_ms`, whatever is decoded beside it."""
    most = 2 * load.tasks // load.domains
    cells = [Cell(rows, decodes, load.tick_ms, load.tick_ms) for rows in (0, 1, most) for decodes in (0, 1, 2)]
    subject = ProfileSubject(MODEL, "digest", "device", "float16", (4, 64, 64), "")
    return Profile(subject, tuple(cells[1:]), ItemCaps(most // 2, 2), "2026-01-01T00:00:00Z")


def watched(load: Load, waves: int = WAVES) -> Telemetry:
    """The telemetry of so many bursts, each as many requests as run at once."""
    heard: list[Telemetry] = []

    def listen(holdings: Holdings) -> Telemetry:
        heard.append(Telemetry(holdings, load))
        return heard[0]

    slots = load.tasks // load.domains
    pool = SimulatedPool(device(load), load.domains, Overheads(slots=slots), unprofiled=True)
    policy = ConfiguredPolicy(POLICIES["continuous"], PolicyBounds(unet_batch=slots))
    simulate(pool, policy, burst(waves * load.tasks, Mix(steps=((load.steps, 1.0),)), seed=0), bystander=listen)
    heard[0].export()
    return heard[0]


def measure(load: Load) -> dict[str, float]:
    """ms of a tick, by use."""
    telemetry = watched(load)
    return {name: 1000 * seconds / telemetry.ticks for name, seconds in telemetry.spent_s.items()}


def command(
    domains: int = 8, tasks: int = 64, steps: int = 20, tick_ms: float = 20.0, repeats: int = 5, limit_ms: float = 0.2
) -> dict[str, float]:
    """ms of a tick, the least of each part, and `over`: by how much they pass the limit."""
    gc.set_threshold(50_000, 20, 20)  # as a scheduler does
    rounds = [measure(Load(domains, tasks, steps, tick_ms)) for _ in range(repeats)]
    found = {name: min(one[name] for one in rounds) for name in rounds[0]}
    return found | {"all": sum(found.values()), "over": max(0.0, sum(found.values()) - limit_ms)}


def table(found: Mapping[str, float]) -> str:
    return markdown_table(("per tick", "ms"), [(name, f"{ms:.4f}") for name, ms in found.items()])


if __name__ == "__main__":
    run(command, show=table, well=lambda found: not found["over"])
