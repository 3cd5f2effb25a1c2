"""What the scenarios share: a cluster, clients in front of it, and what is asked of every load."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from redis.asyncio import Redis

from bench.status import slots_used, status_of
from deploy.rehearsal import answers
from deploy.rehearsal.answers import Answer
from deploy.rehearsal.cluster import Cluster, Errand, NotInTime
from deploy.rehearsal.pod import Pod
from deploy.rehearsal.report import Report
from services.scheduler.store import keys
from synerdiff.redis_client import connect

SCHEDULER, GATEWAY, UNET, VAE, REDIS = "scheduler", "gateway", "unet-worker", "vae-worker", "redis"
WORKERS = (UNET, VAE)

_SCHEDULER_PORT, _REDIS_PORT = 50051, 6379
_IMAGE = "synerdiff/scheduler:client"


@dataclass(frozen=True)
class Options:
    """How long and how hard. A picture has `steps[0]` to `steps[1]` steps. `patience_s`: for whatever must come."""

    requests: int = 12
    clients: int = 3
    steps: tuple[int, int] = (4, 12)
    seed: int = 1
    chaos_s: float = 90.0
    kill_every_s: float = 7.0
    measure_s: float = 12.0
    hold_s: float = 5.0
    patience_s: float = 240.0


@dataclass
class Load:
    """A load under way, or over. `answers` are complete once it is over."""

    errand: Errand
    answers: list[Answer] = field(default_factory=list)

    def answered(self) -> int:
        """Requests answered so far."""
        return len(answers.read(self.errand.out / "answers"))

    def steps(self) -> int:
        """Steps that clients have been told of so far."""
        counted = self.errand.out / "steps"
        return int(counted.read_text()) if counted.exists() else 0


class Stage:
    """A cluster with the means to load and to question it."""

    def __init__(self, cluster: Cluster, report: Report, options: Options) -> None:
        self.cluster = cluster
        self.report = report
        self.options = options
        self._quiet: list[Answer] = []
        self._errands = 0

    async def send(self, clients: int, *more: str) -> Load:
        """Start clients in a pod of their own, which reach the scheduler's Service by its name."""
        self._errands += 1
        lowest, highest = self.options.steps
        numbers = {"requests": self.options.requests, "seed": self.options.seed, "clients": clients}
        words = ["--address", f"{SCHEDULER}:{_SCHEDULER_PORT}", "--out", "/out"]
        words += [word for name, value in numbers.items() for word in (f"--{name}", str(value))]
        words += ["--model", self._model_name(), "--least-steps", str(lowest), "--most-steps", str(highest), *more]
        command = ("python", "-m", "deploy.rehearsal.load", *words)
        return Load(await self.cluster.run(f"client-{self._errands}", _IMAGE, command))

    async def finish(self, load: Load) -> list[Answer]:
        """Wait for the end of a load. Raises NotInTime."""
        status = await load.errand.ended(self.options.patience_s)
        load.answers = answers.read(load.errand.out / "answers")
        if status != 0 or not load.answers:
            raise NotInTime(f"a client ended with status {status} after {len(load.answers)} answers; see its log")
        return load.answers

    async def quiet(self) -> list[Answer]:
        """Every request of the load made alone, once: what its pictures have to look like."""
        if not self._quiet:
            self._quiet = await self.finish(await self.send(1))
        return self._quiet

    @asynccontextmanager
    async def under_load(self, scenario: str) -> AsyncIterator[Load]:
        """Requests all the time while the body runs; after it, everything that must hold of them is checked."""
        quiet = await self.quiet()
        self.report.none_of(scenario, "quiet requests failed", answers.errors(quiet))
        stopped_before = self.cluster.killed_after_grace
        load, began = await self.send(self.options.clients, "--endless"), time.monotonic()
        await self.cluster.until(lambda: load.answered() > 0, "a first answer", self.options.patience_s)
        yield load
        load.errand.process.send_signal(signal.SIGTERM)
        found = await self.finish(load)
        seconds = time.monotonic() - began
        images = sum(len(answer.images) for answer in found)
        levels = answers.farthest(found, quiet)
        self.report.measured(scenario, "load", f"{len(found)} requests, {images} pictures in {seconds:.0f} s")
        self.report.none_of(scenario, "requests failed", answers.errors(found))
        self.report.none_of(scenario, "jobs or images twice", answers.repeated(found))
        self.report.none_of(scenario, "pictures unlike the quiet ones", answers.differing(found, quiet))
        self.report.measured(scenario, "farthest pixel", f"{levels} of 255 levels")
        self.report.check(scenario, "jobs left in Redis", await self.jobs_left() == 0, str(await self.jobs_left()))
        used = await slots_used(list(self._schedulers()))
        self.report.check(scenario, "slots left in use", used == 0, str(used))
        killed = self.cluster.killed_after_grace - stopped_before
        self.report.check(scenario, "pods killed after their grace", killed == 0, str(killed))

    def _model_name(self) -> str:
        """What the manifests call the workers' model; simulated workers leave another one behind."""
        variables = self.cluster.workload(UNET).template.containers[0].environment
        return next((variable.value for variable in variables if variable.name == "SYNERDIFF_MODEL_NAME"), "")

    async def jobs_left(self) -> int:
        """Jobs that have not ended, as Redis has it."""
        pod = next(pod for pod in self.cluster.pods(REDIS) if pod.ready)
        redis: Redis
        async with connect(f"redis://{pod.ip}:{_REDIS_PORT}/0") as redis:
            members = await redis.zrange(keys.PATTERNS["deadlines"], 0, -1)
        return sum(1 for member in members if member)  # the empty one only keeps the set there

    def _schedulers(self) -> dict[str, Pod]:
        """Their pods by address."""
        return {f"{pod.ip}:{_SCHEDULER_PORT}": pod for pod in self.cluster.pods(SCHEDULER)}

    async def leader(self) -> Pod:
        """The scheduler that leads. Raises NotInTime."""
        give_up_at = time.monotonic() + self.options.patience_s
        while time.monotonic() < give_up_at:
            for address, pod in self._schedulers().items():
                status = await status_of(address)
                if status and status.leader:
                    return pod
            await asyncio.sleep(0.2)
        raise NotInTime(f"a leader: not within {self.options.patience_s:g} s")
