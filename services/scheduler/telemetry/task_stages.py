"""The stages of a task as spans: read off its phase, made once a stage has ended."""

from dataclasses import dataclass, field

from services.scheduler.engine.holdings import Holdings
from services.scheduler.engine.tasks import Phase, Task
from synerdiff.tracing import Span, TraceContext, Value

# Most links of one span.
MOST_LINKS = 128

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
