"""The scheduler's Prometheus metrics."""

from functools import cache
from typing import NamedTuple, Self

from prometheus_client import Counter, Gauge, Histogram

from services.scheduler.callers import Caller
from services.scheduler.engine.ticks import Ring
from synerdiff.requests import ImageRequest, rows_of_call

_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_LATENCY_S = (0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120, 300, 600)
_RATIOS = (0.5, 0.65, 0.8, 0.9, 0.95, 1.0, 1.05, 1.1, 1.25, 1.5, 2, 3, 5, 10)
_ROWS = (1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64)
_ENDS = (
    ("finished", "OK"),
    ("failed", "INTERNAL"),
    ("failed", "FAILED_PRECONDITION"),
    ("failed", "RESOURCE_EXHAUSTED"),
    ("cancelled", "CANCELLED"),
    ("expired", "DEADLINE_EXCEEDED"),
    ("lost", "NOT_FOUND"),
)
_BY_CLASS = ["model", "priority"]
KEPT_JOBS = 2048

# A CA may issue any number of names: those past the first MOST_NAMES are counted together.
MOST_NAMES = 200
OTHERS = "(others)"


class EndedJob(NamedTuple):
    """When a job ended, how, and how long after its acceptance."""

    ended_unix_ms: float
    outcome: str
    latency_ms: float


class PoolMetrics:
    """Metrics of a leading scheduler. One instance per process: see `of_process`. `ended`: the last jobs."""

    def __init__(self) -> None:
        self.ended = Ring[EndedJob](KEPT_JOBS)
        self.leading = Gauge("synerdiff_leading", "1 while this scheduler leads its pool", ["pool"])
        self.queue_jobs = Gauge("synerdiff_queue_jobs", "jobs accepted and not yet started", _BY_CLASS)
        self.queue_oldest = Gauge("synerdiff_queue_oldest_age_seconds", "age of the oldest of these", _BY_CLASS)
        self.tasks = Gauge("synerdiff_tasks", "tasks held by the leader", ["model", "phase"])
        self.slots = Gauge("synerdiff_slots", "arena slots of attached UNet workers", ["model"])
        self.slots_used = Gauge("synerdiff_slots_used", "arena slots that hold a task", ["model"])
        self.workers = Gauge("synerdiff_workers", "attached workers", ["model", "kind"])
        self.write_backlog = Gauge("synerdiff_store_backlog", "results not yet in Redis")
        self.redis_up = Gauge("synerdiff_redis_up", "1 while Redis takes and keeps the writes of this scheduler")
        self.redis_losses = Counter("synerdiff_redis_losses", "times that Redis turned out to have lost its data")
        self.redis_used = Gauge("synerdiff_redis_used_bytes", "memory that Redis uses")
        self.redis_limit = Gauge("synerdiff_redis_limit_bytes", "memory at which Redis refuses writes; 0: none")
        self.decode_backlog = Gauge(
            "synerdiff_decode_backlog_seconds", "decodes ready or under way, in seconds of one VAE worker", ["model"]
        )
        self.losses = Counter("synerdiff_worker_losses", "workers lost that had not said that they drain", ["kind"])
        self.overdue = Counter(
            "synerdiff_overdue_workers",
            "workers that did not answer in time and are given nothing new (suspect), or are given up (lost)",
            ["kind", "became"],
        )
        self.unreadable = Counter("synerdiff_unreadable_reports", "images of workers that cannot be read", ["kind"])
        for kind in ("unet", "vae"):
            self.losses.labels(kind)
            for became in ("suspect", "lost"):
                self.overdue.labels(kind, became)
        self.halved = Counter("synerdiff_halved_items", "items run in halves for want of memory", ["kind"])
        self._ticks = Counter("synerdiff_ticks", "plans that workers have run", ["kind"])
        self.skipped = Counter("synerdiff_skipped_entries", "plan entries that no longer fitted", ["kind", "reason"])
        self._rows = Histogram("synerdiff_batch_rows", "UNet rows or decodes per batch", ["kind"], buckets=_ROWS)
        self._item = Histogram("synerdiff_item_seconds", "time of one batch on its worker", ["kind"], buckets=_SECONDS)
        self.of_kind = {
            kind: (self._ticks.labels(kind), self._rows.labels(kind), self._item.labels(kind))
            for kind in ("unet", "vae")
        }
        self.threshold = Gauge(
            "synerdiff_threshold", "least share of the fastest round's UNet throughput that ticks keep", ["domain"]
        )
        self.profile_drift = Gauge(
            "synerdiff_profile_drift",
            "largest relative distance of a measured item time from its profile",
            ["domain", "model", "size"],
        )
        self.controller = Gauge("synerdiff_controller", "state of the threshold controller", ["domain", "term"])
        self._ratio = Histogram(
            "synerdiff_item_predicted_ratio", "measured over predicted time of an item", ["kind"], buckets=_RATIOS
        )
        self.ratios = {kind: self._ratio.labels(kind) for kind in ("unet", "vae", "beside")}
        self.skipped_steps = Counter("synerdiff_skipped_steps", "UNet steps without guidance by plan", ["model"])
        self.set_aside = Counter("synerdiff_set_aside", "running tasks that made way for others", ["model"])
        self.jobs = Counter(
            "synerdiff_jobs_ended",
            "jobs that ended: finished, failed, cancelled, expired, or lost by Redis; each counted by one scheduler",
            ["outcome", "code"],
        )
        self.images = Counter("synerdiff_images", "images made")
        self.latency = Histogram(
            "synerdiff_job_seconds", "acceptance to end, by outcome", ["outcome"], buckets=_LATENCY_S
        )
        self._stages = Histogram(
            "synerdiff_stage_seconds", "where a finished job's time went", ["stage"], buckets=_LATENCY_S
        )
        # Sums over outcomes need every one of them, and a rate its first event, from the start.
        for outcome, code in _ENDS:
            self.jobs.labels(outcome, code)
            if outcome != "lost":
                self.latency.labels(outcome)
        self.of_stage = {stage: self._stages.labels(stage) for stage in ("queue", "encode", "denoise", "decode")}

    @classmethod
    @cache
    def of_process(cls) -> Self:
        """The instance of this process."""
        return cls()


_requests = Counter("synerdiff_caller_requests_total", "Generate and Submit calls by caller", ["caller", "outcome"])
_images = Counter("synerdiff_caller_images_total", "Images of accepted jobs by caller", ["caller"])
_steps = Counter(
    "synerdiff_caller_row_steps_total", "Denoising steps asked for by caller, times UNet rows and images", ["caller"]
)


class CallerUsage:
    """One for a process. The caller "" is anonymous."""

    def __init__(self) -> None:
        self._names: set[str] = set()

    def accepted(self, caller: Caller, request: ImageRequest) -> None:
        """A new job."""
        name = self._label(caller)
        _requests.labels(name, "accepted").inc()
        _images.labels(name).inc(request.num_images)
        _steps.labels(name).inc(request.num_images * request.num_inference_steps * rows_of_call(request.guidance_scale))

    def refused(self, caller: Caller) -> None:
        """A call that made no job."""
        _requests.labels(self._label(caller), "refused").inc()

    def _label(self, caller: Caller) -> str:
        if caller.name not in self._names and len(self._names) >= MOST_NAMES:
            return OTHERS
        self._names.add(caller.name)
        return caller.name
