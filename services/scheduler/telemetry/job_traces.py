"""Spans of a leader's work: one per job, one per stage of each of its images, and one per worker's part of a tick.

Nothing is measured for them: stages come from the phases of tasks when an event has moved them, ticks from their
reports, once the next plans are out. A span is made at the end of its job, stage or tick: no tracing runs between two
steps, and an untraced job costs one look into a dictionary.

Workers make no spans. Their work is in their reports (a prompt's encoding, an image file's, every item of a tick), so
spans of their own would repeat it, beside the step loop and by a clock of another host.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice, repeat

from services.scheduler.engine.effects import Admit, Effect, FailJob, FinishJob, LetJobGo
from services.scheduler.engine.events import Event, ImageStored, JobArrived, Reported, UnetAttached, WorkerLost
from services.scheduler.engine.holdings import Holdings
from services.scheduler.engine.tasks import Job, Lane, Phase, Task
from services.scheduler.engine.ticks import PlannedPart
from services.scheduler.telemetry.request_traces import job_context
from synerdiff.jobs import JobRecord, JobState
from synerdiff.plans import DecodedImage, TaskFailed, TaskReady, UnetTickDone, VaeTickDone
from synerdiff.tracing import Span, TraceContext, Tracer, Value, named_trace, now_ns, parse_traceparent, unix_ns

_OF_THE_REQUEST = ["request_id", "model", "width", "height", "num_inference_steps", "guidance_scale", "num_images"]
MOST_LINKS = 128  # of one span
# About one of so many ticks has spans: OpenTelemetry takes some 50 us for each, and `synerdiff trace` has all.
TICKS_APART = 8
_GOLDEN = 2654435761  # 2**32 over the golden ratio: its multiples fill the circle of 2**32 evenly

_STAGES = {
    Phase.WAITING: "queue",
    Phase.PREPARING: "encode",
    Phase.RUNNING: "denoise",
    Phase.READY_TO_DECODE: "decode",
    Phase.DECODING: "decode",
    Phase.STORING: "store",
    Phase.DONE: "",
}


@dataclass
class Stage:
    """The stage that a task is in. `steps`, `rows`: UNet calls made in it, and the rows of the batches they were in."""

    name: str
    context: TraceContext
    since_ns: int
    deaths: int
    worker: str
    steps: int = 0
    rows: int = 0
    ticks: list[TraceContext] = field(default_factory=list)
    attributes: dict[str, Value] = field(default_factory=dict)

    @classmethod
    def of(cls, job: TraceContext, task: Task, since_ns: int) -> "Stage":
        """The task's present one, below the span of its job."""
        return cls(_STAGES[task.phase], job.child(), since_ns, task.deaths, _worker_of(task, _STAGES[task.phase]))


class TracedTask:
    """A task with its stage, and the one it was in before. `job`: the context of its job's span."""

    def __init__(self, task: Task, job: TraceContext, since_ns: int) -> None:
        self.task = task
        self.stage = Stage.of(job, task, since_ns)
        self._job = job
        self._before: Stage | None = None

    def in_stage(self, name: str) -> Stage | None:
        """Its stage of that name: an image file may come before the report of the tick that decoded it."""
        if self.stage.name == name:
            return self.stage
        return self._before if self._before and self._before.name == name else None

    def has_moved(self) -> bool:
        """Whether it is in another stage by now, or in the same one anew."""
        name = _STAGES[self.task.phase]
        if name != self.stage.name or self.task.deaths != self.stage.deaths:
            return True
        self.stage.worker = _worker_of(self.task, name) or self.stage.worker
        return False

    def begin(self, now_ns: int) -> None:
        """Begin the stage that it has moved to."""
        self._before, self.stage = self.stage, Stage.of(self._job, self.task, now_ns)

    def span(self, holdings: Holdings, end_ns: int, error: str) -> Span:
        """The stage that ends now, perhaps with an error."""
        task, stage = self.task, self.stage
        attributes: dict[str, Value] = {"synerdiff.image": task.index}
        worker_id = (not error and _worker_of(task, stage.name)) or stage.worker
        if worker_id:
            attributes["synerdiff.worker"] = worker_id
            lane = holdings.lane(worker_id)
            if lane:
                attributes["synerdiff.domain"] = lane.domain
        if stage.name == "encode" and task.encode_ms:
            attributes["synerdiff.prompt_ms"] = task.encode_ms
        if stage.name == "denoise":
            attributes |= {"synerdiff.steps": stage.steps, "synerdiff.skipped_steps": len(task.skipped)}
            attributes["synerdiff.mean_batch_rows"] = stage.rows / max(1, stage.steps)
        if task.deaths:
            attributes["synerdiff.deaths"] = task.deaths
        if stage.attributes:
            attributes |= stage.attributes
        links = stage.ticks[:MOST_LINKS]
        return Span(stage.name, stage.context, self._job, stage.since_ns, end_ns, attributes, links, error=error)


def _worker_of(task: Task, stage_name: str) -> str:
    """The worker that has the task in its present stage, or had it in one just left."""
    if stage_name == "decode":
        return task.vae_worker
    return task.unet_worker if stage_name in ("encode", "denoise") else ""


def has_spans(tick: int) -> bool:
    """Whether a tick is among those with spans. Scattered: domains that take turns would else have all or none."""
    return (tick * _GOLDEN & 0xFFFFFFFF) * TICKS_APART < 1 << 32


@dataclass
class _TracedJob:
    """A job and its images. `stored`: the context that the job is stored with."""

    job: Job
    stored: TraceContext
    context: TraceContext
    tasks: list[TracedTask]


class JobTraces:
    """The traces of one leadership. Reads the holdings and changes nothing of them."""

    def __init__(
        self, tracer: Tracer, holdings: Holdings, leader_token: int, clock_ns: Callable[[], int] = now_ns
    ) -> None:
        self._tracer = tracer
        self._holdings = holdings
        self._leader_token = leader_token
        self._clock_ns = clock_ns
        self._jobs: dict[str, _TracedJob] = {}
        self._tasks: dict[str, TracedTask] = {}

    # ---- events and effects

    def on(self, event: Event, planned: PlannedPart | None) -> None:
        """An event that the engine has taken. `planned`: as `Engine.on` said."""
        match event:
            case Reported(worker_id, UnetTickDone() | VaeTickDone() as done):
                self._ticked(self._holdings.lane(worker_id), done, planned)
            case Reported(_, DecodedImage() as image):
                self._decoded(image)
            case Reported(_, TaskReady(task_id) | TaskFailed(task_id)) | ImageStored(task_id):
                self._moved((task_id,))
            case JobArrived(record):
                self._job_arrived(record)
            case UnetAttached() | WorkerLost():  # which may have moved any task
                self._moved(self._tasks)

    def effect(self, effect: Effect) -> None:
        """An effect of the engine: a task may move by it, or a job end."""
        match effect:
            case Admit(task=task):
                self._moved((task.task_id,))
            case FinishJob(job_id=job_id):
                self.job_ended(job_id, "finished")
            case FailJob(job_id=job_id, message=message):
                self.job_ended(job_id, "failed", message)
            case LetJobGo(job_id=job_id, outcome=outcome):
                self.job_ended(job_id, outcome)

    # ---- jobs

    def _job_arrived(self, record: JobRecord) -> None:
        """The leader holds a job: follow it if its trace is recorded."""
        job, stored = self._holdings.jobs.get(record.job_id), parse_traceparent(record.traceparent)
        if job is None or stored is None or not self._tracer.wants(stored) or record.job_id in self._jobs:
            return
        context = job_context(stored, record.job_id)
        fresh = record.state is JobState.QUEUED
        since_ns = unix_ns(record.accepted_at_ms) if fresh else self._clock_ns()
        tasks = [TracedTask(task, context, since_ns) for task in job.tasks]
        for traced in () if fresh else tasks:
            traced.stage.attributes["synerdiff.taken_over"] = True
        self._jobs[record.job_id] = _TracedJob(job, stored, context, tasks)
        self._tasks.update({traced.task.spec.task_id: traced for traced in tasks})

    def job_ended(self, job_id: str, outcome: str, error: str = "") -> None:
        """The leader holds the job no more."""
        traced = self._jobs.pop(job_id, None)
        if traced is None:
            return
        end_ns = self._clock_ns()
        for task in traced.tasks:
            self._tasks.pop(task.task.spec.task_id, None)
            self._end_stage(task, end_ns, error)
        record, request = traced.job.record, traced.job.record.request
        attributes: dict[str, Value] = {f"synerdiff.{name}": getattr(request, name) for name in _OF_THE_REQUEST}
        attributes |= {
            "synerdiff.job_id": record.job_id,
            "synerdiff.outcome": outcome,
            "synerdiff.sampler": request.sampler.name.lower(),
            "synerdiff.priority": request.priority.name.lower(),
            "synerdiff.skipped_steps": sum(len(task.task.skipped) for task in traced.tasks),
            "synerdiff.deaths": sum(task.task.deaths for task in traced.tasks),
        }
        began_ns = unix_ns(record.accepted_at_ms)
        self._tracer.record(Span("job", traced.context, traced.stored, began_ns, end_ns, attributes, error=error))

    def left(self) -> None:
        """The leader leaves: its stages end here, the next leader's go on in the same traces."""
        end_ns = self._clock_ns()
        for traced in self._tasks.values():
            traced.stage.attributes["synerdiff.leader_left"] = True
            self._end_stage(traced, end_ns)
        self._jobs.clear()
        self._tasks.clear()

    # ---- stages

    def _moved(self, task_ids: Iterable[str]) -> None:
        """An event may have moved these tasks to another stage."""
        for task_id in task_ids:
            traced = self._tasks.get(task_id)
            if traced and traced.has_moved():
                lost, now_ns = traced.task.deaths > traced.stage.deaths, self._clock_ns()
                self._end_stage(traced, now_ns, "its worker was lost" if lost else "")
                traced.begin(now_ns)

    def _decoded(self, image: DecodedImage) -> None:
        """An image file has come; its worker says how long its parts took."""
        traced = self._tasks.get(image.task_id)
        if traced:
            times: dict[str, Value] = {
                "synerdiff.decode_ms": image.decode_ms,
                "synerdiff.image_file_ms": image.encode_ms,
                "synerdiff.bytes": len(image.data),
            }
            traced.stage.attributes |= times
            self._moved((image.task_id,))

    def _end_stage(self, traced: TracedTask, end_ns: int, error: str = "") -> None:
        if traced.stage.name:
            self._tracer.record(traced.span(self._holdings, end_ns, error))

    # ---- ticks

    def _ticked(self, lane: Lane | None, done: UnetTickDone | VaeTickDone, planned: PlannedPart | None) -> None:
        """A worker's part of a tick has run: a span, if a task in it is traced, and the end of its tasks' stage."""
        if lane and planned and self._tasks and done.items:
            stages = self._stages_of(lane, done, planned)
            if stages and has_spans(done.tick):
                self._record_tick(lane, done, planned, stages)
        if isinstance(done, UnetTickDone):
            self._moved(task_id for task_id, _ in done.finished)
        self._moved(entry.task_id for entry in done.skipped)

    def _stages_of(self, lane: Lane, done: UnetTickDone | VaeTickDone, planned: PlannedPart) -> list[Stage]:
        """The traced stages that the tick had a part in, their steps and rows counted."""
        unet = isinstance(done, UnetTickDone)
        stage_name = "denoise" if unet else "decode"
        stale = {entry.task_id for entry in done.skipped}
        stages: list[Stage] = []
        named = _rows_by_task(planned) if unet else zip(planned.task_ids, repeat(0), strict=False)
        for task_id, rows in named:
            traced = self._tasks.get(task_id)
            stage = traced.in_stage(stage_name) if traced else None
            if stage:
                stages.append(stage)
                stage.worker = lane.worker_id
                stage.steps += task_id not in stale
                stage.rows += 0 if task_id in stale else rows
        return stages

    def _record_tick(
        self, lane: Lane, done: UnetTickDone | VaeTickDone, planned: PlannedPart, stages: list[Stage]
    ) -> None:
        tick = named_trace(self._leader_token, lane.domain, done.tick)
        unet = isinstance(done, UnetTickDone)
        context, parent = (tick, None) if unet else _beside(tick, planned)
        for stage in stages:
            stage.ticks.append(context)
        links = [stage.context for stage in stages[:MOST_LINKS]]
        attributes: dict[str, Value] = {
            "synerdiff.domain": lane.domain,
            "synerdiff.worker": lane.worker_id,
            "synerdiff.tick": done.tick,
            "synerdiff.rows": sum(item.rows for item in done.items),
            "synerdiff.predicted_ms": sum(item.predicted_ms for item in planned.items),
        }
        if done.skipped:
            attributes["synerdiff.stale"] = len(done.skipped)
        start_ns, end_ns = done.items[0].start_unix_ns, done.items[-1].end_unix_ns
        name = f"{'unet' if unet else 'vae'} tick"
        self._tracer.record(Span(name, context, parent, start_ns, end_ns, attributes, links))


def _rows_by_task(planned: PlannedPart) -> Iterator[tuple[str, int]]:
    """The tasks that step in a UNet worker's part, each with the rows of the batch that it is in."""
    task_ids = iter(planned.task_ids)
    for item in planned.items:
        for task_id in islice(task_ids, item.tasks):
            yield task_id, item.rows


def _beside(tick: TraceContext, planned: PlannedPart) -> tuple[TraceContext, TraceContext | None]:
    """The context of a VAE worker's part and its parent: the UNet worker's part, where the tick has one."""
    if any(item.rows for item in planned.items):
        return tick.named("vae", tick.span_id), tick
    return tick, None
