"""Stages of jobs as spans: what a death, a refusal, a cancellation and a change of leader make of them."""

from typing import Any

import pytest

from services.scheduler.engine import events
from services.scheduler.engine.engine import Engine, EngineBounds
from services.scheduler.engine.tasks import Phase, Task, UnetLaneState, VaeLaneState
from services.scheduler.engine.ticks import PartItem, PlannedPart
from services.scheduler.policy.policies import ConfiguredPolicy
from services.scheduler.policy.policy_spec import POLICIES, PolicyBounds
from services.scheduler.telemetry.job_traces import MOST_LINKS, TICKS_APART, JobTraces, has_spans
from synerdiff.jobs import JobRecord, JobState
from synerdiff.plans import DecodedImage, ItemTiming, SlotRef, TaskFailed, TaskReady, UnetTickDone
from synerdiff.profiles import Setting
from synerdiff.requests import ImageFormat
from synerdiff.tracing import Span, TraceContext, Tracer
from tests.values import a_request

MS = 1_000_000
STORED = TraceContext(77, 1)
SLOT = SlotRef("arena", 0, 1)


class Led:
    """An engine with one worker of each kind, and the traces of what it does. Time is `now_ms`."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.now_ms = 1000
        self.engine = Engine(ConfiguredPolicy(POLICIES["continuous"], PolicyBounds()), 1, EngineBounds())
        self.traces = JobTraces(Tracer(self.spans.append), self.engine.holdings, 1, lambda: self.now_ms * MS)
        self.on(events.UnetAttached(UnetLaneState("u", "gpu", "emoji", slots=4)))
        self.on(events.VaeAttached(VaeLaneState("v", "gpu", "emoji")))

    def on(self, event: events.Event) -> None:
        self.traces.on(event, self.engine.on(event, self.now_ms))
        self.take_effects()

    def take_effects(self) -> None:
        for effect in self.engine.take_effects():
            self.traces.effect(effect)

    def arrive(self, state: JobState = JobState.QUEUED, stored: TraceContext = STORED, **changes: Any) -> Task:
        record = JobRecord("job", state, a_request(**changes), 400, 2**60, False, traceparent=stored.traceparent)
        self.on(events.JobArrived(record))
        return self.engine.holdings.jobs["job"].tasks[0]

    def admit(self, task: Task) -> None:
        self.engine.holdings.admission_changed = True
        self.engine.pump(self.now_ms)
        self.take_effects()

    def ready(self, task: Task) -> None:
        self.on(events.Reported("u", TaskReady(task.spec.task_id, 4, 12.5)))

    def denoising(self) -> Task:
        """A task whose prompt is encoded; its spans are taken."""
        task = self.arrive()
        self.admit(task)
        self.ready(task)
        self.take()
        return task

    def tick(self, number: int, task: Task, *, finished: bool = False) -> None:
        item = PartItem(1, 6, 0, 0.0, 1, Setting(), 20.0, tasks=1, key=task.key)
        timing = ItemTiming(self.now_ms * MS, (self.now_ms + 20) * MS, 6)
        ends = ((task.spec.task_id, SLOT),) if finished else ()
        done = UnetTickDone(number, (timing,), (), ends)
        part = PlannedPart((task.spec.task_id,), (item,), 0.0, task.key)
        self.engine.holdings.unet["u"].plans[number] = part
        self.on(events.Reported("u", done))

    def take(self) -> list[Span]:
        """The spans that have come since the last call."""
        spans, self.spans[:] = list(self.spans), []
        return spans


@pytest.fixture
def led() -> Led:
    return Led()


def test_each_stage_is_a_span_from_where_the_one_before_ended(led: Led) -> None:
    task = led.arrive()
    for step in (led.admit, led.ready):
        led.now_ms += 100
        step(task)
    led.tick(1, task)
    led.now_ms += 100
    led.tick(2, task, finished=True)
    led.now_ms += 100
    image = DecodedImage(task.spec.task_id, ImageFormat.PNG, 64, 64, b"png", False, 7.0, 3.0)
    led.on(events.Reported("v", image))
    led.now_ms += 100
    led.on(events.ImageStored(task.spec.task_id))
    spans = {span.name: span for span in led.take()}
    stages = ("queue", "encode", "denoise", "decode", "store")
    bounds = [(spans[name].start_ns // MS, spans[name].end_ns // MS) for name in stages]
    assert bounds == [(400, 1100), (1100, 1200), (1200, 1300), (1300, 1400), (1400, 1500)]
    job = spans["job"]
    assert (job.parent, job.start_ns, job.end_ns) == (STORED, 400 * MS, 1500 * MS)
    assert all(spans[name].parent == job.context for name in stages)
    assert job.attributes["synerdiff.outcome"] == "finished"
    assert spans["encode"].attributes["synerdiff.prompt_ms"] == 12.5
    assert {k: v for k, v in spans["denoise"].attributes.items() if k != "synerdiff.image"} == {
        "synerdiff.worker": "u",
        "synerdiff.domain": "gpu",
        "synerdiff.steps": 2,
        "synerdiff.skipped_steps": 0,
        "synerdiff.mean_batch_rows": 6.0,
    }
    assert spans["decode"].attributes["synerdiff.worker"] == "v"
    assert spans["decode"].attributes["synerdiff.image_file_ms"] == 3.0


def test_some_ticks_are_spans_linked_both_ways_with_the_denoising_they_belong_to_up_to_a_bound(led: Led) -> None:
    task = led.denoising()
    for number in range((MOST_LINKS + 10) * TICKS_APART):
        led.tick(number, task)
    ticks = led.take()
    led.tick(1001, task, finished=True)
    denoise = next(span for span in led.take() if span.name == "denoise")
    assert list(denoise.links) == [tick.context for tick in ticks[:MOST_LINKS]]
    with_spans = [number for number in range((MOST_LINKS + 10) * TICKS_APART) if has_spans(number)]
    assert [tick.attributes["synerdiff.tick"] for tick in ticks] == with_spans
    assert denoise.attributes["synerdiff.steps"] == (MOST_LINKS + 10) * TICKS_APART + 1
    assert all(list(tick.links) == [denoise.context] for tick in ticks)
    assert len({tick.context.trace_id for tick in ticks}) == len(ticks)


def test_a_lost_worker_ends_the_stage_with_an_error_and_the_task_queues_again(led: Led) -> None:
    task = led.denoising()
    led.tick(1, task)
    led.take()
    led.now_ms += 50
    led.on(events.WorkerLost("u"))
    (denoise,) = led.take()
    assert (denoise.name, denoise.error) == ("denoise", "its worker was lost")
    assert (denoise.attributes["synerdiff.worker"], denoise.attributes["synerdiff.steps"]) == ("u", 1)
    led.on(events.UnetAttached(UnetLaneState("u", "gpu", "emoji", slots=4)))
    led.now_ms += 50
    led.admit(task)
    (queue,) = led.take()
    assert (queue.name, queue.start_ns // MS, queue.end_ns // MS) == ("queue", 1050, 1100)
    assert queue.attributes["synerdiff.deaths"] == 1


def test_a_worker_without_room_puts_the_task_back_into_its_queue(led: Led) -> None:
    task = led.arrive()
    led.admit(task)
    led.on(events.Reported("u", TaskFailed(task.spec.task_id, 8, "full")))
    assert [(span.name, span.error) for span in led.take()] == [("queue", ""), ("encode", "")]
    assert task.phase is Phase.WAITING


def test_a_job_that_fails_or_is_cancelled_ends_its_open_stage(led: Led) -> None:
    task = led.arrive()
    led.admit(task)
    led.take()
    led.on(events.Reported("u", TaskFailed(task.spec.task_id, 13, "it could not be done")))
    encode, job = led.take()
    assert [(span.name, span.error) for span in (encode, job)] == [
        (n, "it could not be done") for n in ("encode", "job")
    ]
    led.traces.job_ended("job", "failed")
    assert led.take() == []


def test_a_new_leader_goes_on_in_the_same_trace_below_the_same_job(led: Led) -> None:
    led.denoising()
    led.traces.left()
    (left,) = led.take()
    assert (left.name, left.attributes["synerdiff.leader_left"]) == ("denoise", True)
    other = Led()
    other.arrive(JobState.RUNNING)
    other.now_ms += 10
    other.on(events.JobDropped("job"))
    queue, job = other.take()
    assert queue.attributes["synerdiff.taken_over"] is True
    assert queue.start_ns == 1000 * MS
    assert left.parent == queue.parent == job.context


def test_what_is_not_sampled_is_not_followed(led: Led) -> None:
    task = led.arrive(stored=STORED._replace(sampled=False))
    led.admit(task)
    led.ready(task)
    led.tick(1, task, finished=True)
    led.traces.job_ended("job", "finished")
    assert led.take() == []
