"""What metrics and traces cost a tick: on the event loop, on the exporter's thread, once a second, and by scrapes.

    python -m bench.telemetry_cost [--domains 8] [--tasks 64] [--steps 20] [--tick-ms 20] [--limit-ms 0.2] [--profile]

No processes and no network: a leader's own objects are given the reports that its workers would send, every request is
traced. CPU time, the least of `repeats`; a tick is a UNet worker's part with a VAE worker's beside it. What runs once a
second or once a scrape is divided by the ticks between. Exits with 1 above --limit-ms. --profile: where the time goes.
"""

import cProfile
import gc
import itertools
import pstats
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import ReadableSpan
from prometheus_client import generate_latest

from bench.command import run
from bench.reporting import markdown_table
from services.scheduler.api.status import set_holdings_gauges, set_planning_gauges
from services.scheduler.engine.effects import FinishJob
from services.scheduler.engine.holdings import Holdings
from services.scheduler.engine.tasks import Job, PartItem, Phase, PlannedPart, Task, UnetLaneState, VaeLaneState
from services.scheduler.engine.ticks import TickLog
from services.scheduler.leading.observer import Observer
from services.scheduler.policy.controller import ThresholdController
from services.scheduler.policy.snapshots import BatchKey
from services.scheduler.telemetry.decode_backlog import decode_backlog_s
from services.scheduler.telemetry.job_traces import TICKS_APART, JobTraces
from services.scheduler.telemetry.metrics import PoolMetrics
from services.scheduler.telemetry.request_traces import Deliveries, RequestTrace
from synerdiff.cards import Sampler
from synerdiff.jobs import JobRecord, JobState, JobTimings
from synerdiff.otlp import BATCH_SPANS, sdk_spans
from synerdiff.plans import DecodedImage, ItemTiming, SlotRef, UnetTickDone, VaeTickDone
from synerdiff.profiles import Cell, ItemCaps, Profile, ProfileSubject, Setting
from synerdiff.requests import ImageFormat, ImageRequest, Priority, task_spec
from synerdiff.tracing import Span, TraceContext, Tracer
from synerdiff.v1 import images_pb2

SCRAPE_EVERY_S = 15.0
MODEL = "a model"
_TO_SDK = sdk_spans({"service.name": "a scheduler"})
KEY = BatchKey(MODEL, 512, 512)
PARENT = (("traceparent", TraceContext(1, 2).traceparent),)


@dataclass(frozen=True)
class Load:
    """What runs: `tasks` over `domains`, of `steps` steps each; a domain ticks every `tick_ms`."""

    domains: int
    tasks: int
    steps: int
    tick_ms: float

    @property
    def ticks_per_s(self) -> float:
        """Of all domains."""
        return self.domains * 1000 / self.tick_ms

    @property
    def jobs_per_tick(self) -> float:
        """How many end, on average; each has one image."""
        return self.tasks / self.domains / self.steps


class Leadership:
    """What a leader keeps for its telemetry, and the reports it would get."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.spans: list[ReadableSpan] = []
        self.tracer = Tracer(lambda span: self.spans.append(_TO_SDK(span)))
        self.holdings = Holdings(max_deaths=1)
        self.metrics = PoolMetrics.of_process()
        self.observer = Observer(self.holdings, TickLog(), self.metrics)
        self.traces = JobTraces(self.tracer, self.holdings, leader_token=1)
        self.thresholds = ThresholdController()
        self._numbers = itertools.count()
        for domain in range(load.domains):
            name = f"GPU-{domain:036d}"
            self.holdings.unet[f"unet-{domain}"] = UnetLaneState(f"unet-{domain}", name, MODEL, slots=32)
            self.holdings.vae[f"vae-{domain}"] = VaeLaneState(f"vae-{domain}", name, MODEL)
            self.holdings.profiles[name, KEY] = _profile()
            for _ in range(load.tasks // load.domains):
                self.denoising(self.arrive(), domain)
            decoded = self.denoising(self.arrive(), domain)
            for phase in (Phase.READY_TO_DECODE, Phase.DECODING):
                self.move(decoded, phase)
            del self.holdings.unet[f"unet-{domain}"].tasks[decoded.spec.task_id]
            self.holdings.vae[f"vae-{domain}"].tasks[decoded.spec.task_id] = decoded

    def arrive(self) -> Job:
        """A traced job, read from the queue."""
        job = self.new_job()
        self.traces.job_arrived(job.record)
        return job

    def new_job(self) -> Job:
        """A job that the leader holds, and whose trace nobody follows yet."""
        job_id = f"{next(self._numbers):032x}"
        wanted = _request(self.load.steps)
        task = Task(task_spec(job_id, wanted, 0), job_id, 0, KEY)
        parent = TraceContext(int(job_id, 16) + 1, 2).traceparent
        record = JobRecord(job_id, JobState.QUEUED, wanted, 1, 2**60, False, traceparent=parent)
        job = Job(record, [task], started=False, decoding=False)
        self.holdings.add(job)
        return job

    def denoising(self, job: Job, domain: int) -> Task:
        """Its task on a worker, past its encoding."""
        (task,) = job.tasks
        task.unet_worker = f"unet-{domain}"
        for phase in (Phase.PREPARING, Phase.RUNNING):
            self.move(task, phase)
        self.holdings.waiting.pop(task.spec.task_id)
        self.holdings.unet[task.unet_worker].tasks[task.spec.task_id] = task
        return task

    def move(self, task: Task, phase: Phase) -> None:
        """The engine has moved a task on."""
        task.become(phase)
        self.traces.moved((task.spec.task_id,))

    def whole_job(self, job: Job) -> None:
        """Everything that a new job's traces and metrics take, but its ticks."""
        trace = RequestTrace(self.tracer, "ImageGeneration/Generate", PARENT)
        self.traces.job_arrived(job.record)
        trace.accepted(job.record.job_id, "a request", created=True)
        (task,) = job.tasks
        task.unet_worker, task.vae_worker = "unet-0", "vae-0"
        for phase in (Phase.PREPARING, Phase.RUNNING, Phase.READY_TO_DECODE, Phase.DECODING, Phase.STORING):
            self.move(task, phase)
        self.traces.decoded(DecodedImage(task.spec.task_id, ImageFormat.PNG, 512, 512, b"", False, 1.0, 1.0))
        self.move(task, Phase.DONE)
        ended = FinishJob(job.record.job_id, 1, JobTimings(1, 1, 1, 1), ())
        self.metrics.observe_effect(ended, 2)
        self.traces.effect(ended)
        event = images_pb2.GenerateEvent(image=images_pb2.Image(data=b"png"))
        Deliveries(self.tracer, job.record.job_id, job.record.traceparent).delivered(event, 1)

    def forget_jobs_of_no_worker(self) -> None:
        """Drop what `whole_job` left."""
        for task in list(self.holdings.waiting.values()):
            self.holdings.drop(task.job_id)
        self.holdings.effects.clear()

    def tick(self, domain: int, number: int) -> tuple["Part", "Part"]:
        """Both parts of a tick: all tasks of the domain step, and one more is decoded beside that."""
        unet, vae = self.holdings.unet[f"unet-{domain}"], self.holdings.vae[f"vae-{domain}"]
        ids, decoding = tuple(unet.tasks), tuple(vae.tasks)
        item = PartItem(1, 2 * len(ids), 0, 1.0, 1, Setting(), 20.0, len(ids), KEY)
        timing = ItemTiming(1_000_000 * number, 1_000_000 * number + 20_000_000, item.rows)
        slots = tuple((task_id, SlotRef("arena", 1, 1)) for task_id in ids[:1])
        return (
            Part(unet, "unet", UnetTickDone(number, (timing,), (), slots), PlannedPart(ids, (item,), 0.9, KEY, True)),
            Part(vae, "vae", VaeTickDone(number, (timing,), (), ()), PlannedPart(decoding, (item,), 0.9, KEY, True)),
        )

    def gauges(self) -> None:
        """What is done once a second, but for reading the queue's depths from Redis."""
        set_holdings_gauges(self.metrics, self.holdings)
        set_planning_gauges(self.metrics, self.holdings, self.observer, self.thresholds)
        for model, seconds in decode_backlog_s(self.holdings, self.observer.decode_times, [MODEL]).items():
            self.metrics.decode_backlog.labels(model).set(seconds)


@dataclass(frozen=True)
class Part:
    """A worker's part of a tick: its report, and what it was asked for."""

    lane: UnetLaneState | VaeLaneState
    kind: str
    done: UnetTickDone | VaeTickDone
    planned: PlannedPart


def _profile() -> Profile:
    cells = [Cell(r, v, 1.0 + r + 5 * v, 2.0 + r + 5 * v) for r in range(0, 33, 4) for v in range(5) if r or v]
    subject = ProfileSubject(MODEL, "digest", "device", "float16", (4, 64, 64), "")
    return Profile(subject, tuple(cells), ItemCaps(16, 4), "2026-01-01T00:00:00Z")


def _request(steps: int) -> ImageRequest:
    return ImageRequest(
        *("a request", MODEL, "a prompt", "", 512, 512, steps, 7.5, 1, Sampler.DDIM, 1),
        *(ImageFormat.PNG, Priority.NORMAL, 60_000, 0),
    )


def least_ms(repeats: int, count: int, work: Callable[[], object]) -> float:
    """CPU time of one of `count` calls of `work`, the least of `repeats`: other processes do not count."""
    times = []
    for _ in range(repeats):
        began = time.process_time()
        for _ in range(count):
            work()
        times.append(time.process_time() - began)
    return 1000 * min(times) / count


def measure(load: Load, repeats: int, count: int) -> dict[str, float]:
    """ms of a tick, by what they go to."""
    leading = Leadership(load)
    numbers = itertools.count(1)

    def parts() -> tuple[Part, Part]:
        number = next(numbers)
        return leading.tick(number % load.domains, number)

    def observe() -> None:
        for part in made.pop():
            leading.observer.reported(part.lane.worker_id, part.kind, part.done, part.planned)

    def trace() -> None:
        for part in made.pop():
            leading.traces.ticked(part.lane, part.done, part.planned)

    made: list[tuple[Part, Part]] = []

    def timed(work: Callable[[], None]) -> float:
        made.extend(parts() for _ in range(repeats * count))
        return least_ms(repeats, count, work)

    profiles, leading.holdings.profiles = leading.holdings.profiles, {}  # else it would correct them
    found = {"metrics of a tick": timed(observe)}
    leading.holdings.profiles = profiles
    found["spans of a tick"] = timed(trace)
    of_ticks = _encoded(leading.spans, repeats) * len(leading.spans) / (repeats * count)
    leading.spans.clear()
    jobs = [leading.new_job() for _ in range(repeats * count)]
    found["spans of its share of the jobs"] = (
        least_ms(repeats, count, lambda: leading.whole_job(jobs.pop())) * load.jobs_per_tick
    )
    leading.forget_jobs_of_no_worker()
    of_jobs = _encoded(leading.spans, repeats) * len(leading.spans) / (repeats * count) * load.jobs_per_tick
    found["both as protobuf, on the exporter's thread"] = of_ticks + of_jobs + _links(load, repeats)
    found["gauges, once a second"] = least_ms(repeats, 20, leading.gauges) / load.ticks_per_s
    found["scrapes, every 15 s"] = least_ms(repeats, 5, generate_latest) / (load.ticks_per_s * SCRAPE_EVERY_S)
    return found


def _encoded(spans: Sequence[ReadableSpan], repeats: int) -> float:
    """ms that the exporter takes for one of the last batch of them."""
    batch = spans[-BATCH_SPANS:]
    return least_ms(repeats, 1, lambda: encode_spans(batch).SerializeToString()) / len(batch)


def _links(load: Load, repeats: int) -> float:
    """The denoise spans' links to their ticks, which a job without ticks does not have."""
    links = [TraceContext(7, 8)] * (load.steps // TICKS_APART)
    bare, linked = (Span("denoise", TraceContext(1, 2), None, 1, 2, {}, ticks) for ticks in ((), links))
    of_bare, of_linked = (_encoded([_TO_SDK(span)] * BATCH_SPANS, repeats) for span in (bare, linked))
    return (of_linked - of_bare) * load.jobs_per_tick


def command(
    domains: int = 8,
    tasks: int = 64,
    steps: int = 20,
    tick_ms: float = 20.0,
    repeats: int = 7,
    count: int = 400,
    limit_ms: float = 0.2,
    profile: bool = False,
) -> dict[str, float]:
    """ms of a tick, by what they go to, and `over`: by how much they pass the limit."""
    load = Load(domains, tasks, steps, tick_ms)
    gc.set_threshold(50_000, 20, 20)  # as a scheduler does
    profiler = cProfile.Profile()
    work = partial(measure, load, repeats, count)
    found = profiler.runcall(work) if profile else work()
    if profile:
        pstats.Stats(profiler).sort_stats("tottime").print_stats(25)
    return found | {"all": sum(found.values()), "over": max(0.0, sum(found.values()) - limit_ms)}


def table(found: Mapping[str, float]) -> str:
    """As Markdown."""
    return markdown_table(("per tick", "ms"), [(name, f"{ms:.4f}") for name, ms in found.items()])


if __name__ == "__main__":
    run(command, show=table, well=lambda found: not found["over"])
