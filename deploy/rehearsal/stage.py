"""The shared parts of the scenarios: a cluster, clients in front of it, and the checks of every load."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from redis.asyncio import Redis

from bench.status import slots_used, status_of
from deploy.rehearsal import answers
from deploy.rehearsal.answers import Answer
from deploy.rehearsal.cluster import Cluster, NotInTime
from deploy.rehearsal.pod import Pod
from deploy.rehearsal.report import Options, Report
from services.scheduler.store import keys
from synerdiff.redis_client import connect

SCHEDULER, GATEWAY, UNET, VAE, REDIS = "scheduler", "gateway", "unet-worker", "vae-worker", "redis"
WORKERS = (UNET, VAE)

_SCHEDULER_PORT, _REDIS_PORT = 50051, 6379
_IMAGE = "synerdiff/scheduler:client"


@dataclass
class Load:
    """A load under way, or over: its process, and the folder it writes to. `answers` are complete once it is over."""

    process: asyncio.subprocess.Process
    out: Path
    endless: bool
    answers: list[Answer] = field(default_factory=list)

    def answered(self) -> int:
        """Requests answered so far."""
        return len(answers.read(self.out / "answers"))

    def steps(self) -> int:
        """Steps in the clients' progress events so far."""
        counted = self.out / "steps"
        return int(counted.read_text()) if counted.exists() else 0


class Stage:
    """A cluster with the means to load and to question it."""

    def __init__(self, cluster: Cluster, report: Report, options: Options) -> None:
        self.cluster = cluster
        self.report = report
        self.options = options
        self._quiet: list[Answer] = []
        self._loads = 0

    async def send(self, clients: int, *more: str, endless: bool = False) -> Load:
        """Start clients in a pod of their own, which reach the scheduler's Service by its name."""
        self._loads += 1
        # The manifests' name of the workers' model; simulated workers leave another one behind.
        variables = self.cluster.workload(UNET).template.containers[0].environment
        model = next((each.value for each in variables if each.name == "SYNERDIFF_MODEL_NAME"), "")
        told = {"address": f"{SCHEDULER}:{_SCHEDULER_PORT}", "out": "/out", "clients": clients, "model": model}
        told |= {n: getattr(self.options, n) for n in ("requests", "seed", "least_steps", "most_steps")}
        words = [word for name, value in told.items() for word in (f"--{name.replace('_', '-')}", str(value))]
        command = ("python", "-m", "deploy.rehearsal.load", *words, *more)
        command += ("--endless",) if endless else ()
        return Load(*await self.cluster.run(f"client-{self._loads}", _IMAGE, command), endless)

    async def finish(self, load: Load) -> list[Answer]:
        """Wait for the end of a load; an endless one is asked to end. Raises NotInTime."""
        if load.endless:
            load.process.send_signal(signal.SIGTERM)
        try:
            status = await asyncio.wait_for(load.process.wait(), self.options.patience_s)
        except TimeoutError:
            raise NotInTime(f"a client has not ended within {self.options.patience_s:g} s") from None
        load.answers = answers.read(load.out / "answers")
        if status != 0 or not load.answers:
            raise NotInTime(f"a client ended with status {status} after {len(load.answers)} answers; see its log")
        return load.answers

    async def scaled(self, replicas: int, *names: str) -> None:
        """So many pods of each of these workloads. Raises NotInTime."""
        for name in names:
            self.cluster.scale(name, replicas)
        await self.cluster.settled(*names)

    async def quiet(self) -> list[Answer]:
        """Every request of the load made alone, once: the reference for its pictures."""
        if not self._quiet:
            self._quiet = await self.finish(await self.send(1))
        return self._quiet

    @asynccontextmanager
    async def under_load(self, scenario: str) -> AsyncIterator[Load]:
        """Requests all the time while the body runs; after it, everything that must hold of them is checked."""
        quiet = await self.quiet()
        self.report.none_of(scenario, "quiet requests failed", answers.errors(quiet))
        stopped_before = self.cluster.killed_after_grace
        load, began = await self.send(self.options.clients, endless=True), time.monotonic()
        await self.cluster.until(lambda: load.answered() > 0, "a first answer")
        yield load
        found = await self.finish(load)
        seconds = time.monotonic() - began
        images = sum(len(answer.images) for answer in found)
        unlike, farthest = answers.compared(found, quiet)
        self.report.measured(scenario, "load", f"{len(found)} requests, {images} pictures in {seconds:.0f} s")
        self.report.none_of(scenario, "requests failed", answers.errors(found))
        self.report.none_of(scenario, "jobs or images twice", answers.repeated(found))
        self.report.none_of(scenario, "pictures unlike the quiet ones", unlike)
        self.report.measured(scenario, "farthest pixel", f"{farthest} of 255 levels")
        self.report.check(scenario, "jobs left in Redis", await self.jobs_left() == 0, str(await self.jobs_left()))
        used = await slots_used(list(self._schedulers()))
        self.report.check(scenario, "slots left in use", used == 0, str(used))
        killed = self.cluster.killed_after_grace - stopped_before
        self.report.check(scenario, "pods killed after their grace", killed == 0, str(killed))

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
