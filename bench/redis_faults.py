"""Redis full, read-only, killed, flushed and replaced under a load: the ends of accepted jobs, the answers to new ones.

    python -m bench.redis_faults [--fault full,read-only,killed,flushed,replaced] [--seconds 120] [--rate 5]

For each fault a deployment of its own: Redis behind an address that may lead elsewhere (as a Service's), two
schedulers, a UNet worker and a VAE worker with the bundled model. Requests are sent at a rate, each once, by Generate
and Submit in turn, to both schedulers in turn. After 10 s the fault begins; 30 s before the end its cause goes away.
Every picture is compared with that of the same request, made before. The schedulers' metrics are scraped every 5 s, and
`promtool` says by the project's own rules whether the alert fires. Status 1 where a promise is broken:

- an accepted job ends with its own picture, or, where Redis has lost its record, its client gets that error;
- a request that is not accepted is UNAVAILABLE;
- the alert is silent before the fault and fires during it;
- within 10 s of the cause going away both schedulers accept again and a new request has its picture; none restarts.
"""

import asyncio
import contextlib
import json
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from bench.command import markdown_table, run, say, some_of
from bench.faulty_redis import FAULTS, RedisService
from bench.pictures import Picture, levels, pixels
from bench.scraped import Scrapes, fires
from bench.serving import PROMPTS
from synerdiff.cards import Sampler
from synerdiff.client import AsyncClient, Event, ImageReady
from synerdiff.client.load.requests import LoadRequest
from synerdiff.errors import SynerDiffError
from synerdiff.redis_process import RedisProcess, free_port
from synerdiff_cli.deployment import BUNDLED_MODEL, LocalOptions, ModelSource, plan_deployment
from synerdiff_cli.supervisor import Supervisor

MOST_LEVELS = 2  # of 255, that a picture may differ by from the same one in another batch
REQUESTS = 24  # unlike each other; sent again and again
STEPS = 4
# Longer than any fault: the client of an accepted job waits for it.
_PATIENCE_S = 600.0


@dataclass
class Sent:
    """A request and its result. Times in s of the load. `code`: of a refusal, or of an accepted job's bad end."""

    number: int
    scheduler: int
    sent_s: float
    job_id: str = ""
    code: str = ""
    message: str = ""
    answered_s: float = 0.0
    ended_s: float = 0.0
    levels: int | None = None

    @property
    def own_picture(self) -> bool:
        return self.levels is not None and self.levels <= MOST_LEVELS


@dataclass
class Load:
    """Requests at a rate, each sent once; accepted jobs are followed to their end. `pictures`: of every request."""

    addresses: Sequence[str]
    pictures: Mapping[int, Picture]
    began_s: float = field(default_factory=time.monotonic)
    sent: list[Sent] = field(default_factory=list)

    def now_s(self) -> float:
        return time.monotonic() - self.began_s

    async def run(self, seconds: float, rate: float) -> None:
        """Return once every accepted job has ended."""
        async with contextlib.AsyncExitStack() as stack, asyncio.TaskGroup() as tasks:
            opened = [[AsyncClient(a, patience_s=p) for a in self.addresses] for p in (0.0, _PATIENCE_S)]
            for client in (client for clients in opened for client in clients):
                stack.push_async_callback(client.close)
            for number in range(round(seconds * rate)):
                await asyncio.sleep(max(0.0, number / rate - self.now_s()))
                sent = Sent(number, number % len(self.addresses), self.now_s())
                self.sent.append(sent)
                tasks.create_task(self._one(sent, *(clients[sent.scheduler] for clients in opened)))

    async def _one(self, sent: Sent, eager: AsyncClient, patient: AsyncClient) -> None:
        request = REQUESTED[sent.number % REQUESTS]
        try:
            if sent.number // len(self.addresses) % 2:
                sent.job_id = (await eager.submit(request.prompt, **request.options())).job_id
            else:
                await self._hear(sent, eager.stream(request.prompt, **request.options()))
        except SynerDiffError as error:
            if not sent.job_id:
                sent.code, sent.message = error.code.name, error.message
        sent.answered_s = sent.answered_s or self.now_s()
        if sent.job_id and sent.levels is None:
            try:
                await self._hear(sent, patient.watch(sent.job_id))
            except SynerDiffError as error:
                sent.code, sent.message = error.code.name, error.message

    async def _hear(self, sent: Sent, events: AsyncIterator[Event]) -> None:
        async for event in events:
            sent.job_id, sent.answered_s = event.job_id, sent.answered_s or self.now_s()
            if isinstance(event, ImageReady):
                sent.levels = levels(self.pictures[sent.number % REQUESTS], pixels(event.image))
                sent.ended_s = self.now_s()


REQUESTED = tuple(
    LoadRequest(PROMPTS[number], 1000 + number, STEPS, 4.0, Sampler.DDIM, skip_cfg=False) for number in range(REQUESTS)
)


async def undisturbed(address: str) -> dict[int, Picture]:
    """The picture of each request. Raises RuntimeError where two are alike: one could pass for the other."""
    async with AsyncClient(address, patience_s=60.0) as client:
        drawn = [await client.generate(request.prompt, **request.options()) for request in REQUESTED]
    pictures = {number: pixels(result.image) for number, result in enumerate(drawn)}
    for number, picture in pictures.items():
        if any(levels(picture, pictures[other]) <= MOST_LEVELS for other in range(number)):
            raise RuntimeError(f"request {number} has the picture of another")
    return pictures


BEFORE_S, AFTER_S = 10.0, 30.0
RECOVERED_WITHIN_S = 10.0


# ---- a fault under a load


async def under(name: str, seconds: float, rate: float) -> dict[str, Any]:
    """Inject a fault into a deployment under load: the results, and the promises that are `broken`, in words."""
    fault = FAULTS[name]
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        replica = RedisProcess(folder / "replica") if fault.needs_replica else None
        service = RedisService(RedisProcess(folder / "primary"), replica)
        async with service.serving() as url:
            options = LocalOptions(
                folder, (ModelSource("emoji", BUNDLED_MODEL),), schedulers=2, redis_url=url, dtype="float32"
            )
            deployment = plan_deployment(options)
            ports = {child.name: free_port() for child in deployment.children}
            children = [
                replace(c, environment={**c.environment, "SYNERDIFF_METRICS_PORT": str(ports[c.name])})
                for c in deployment.children
            ]
            async with Supervisor(children) as supervisor:
                await supervisor.start()
                pictures = await undisturbed(deployment.addresses[0])
                pids = supervisor.pids()
                load = Load(deployment.addresses, pictures)
                scrapes = Scrapes({pod: port for pod, port in ports.items() if pod.startswith("scheduler")})
                scraping = asyncio.create_task(scrapes.run())
                sending = asyncio.create_task(load.run(seconds, rate))
                await asyncio.sleep(BEFORE_S)
                began_s, held = load.now_s(), await service.holds([s.job_id for s in load.sent if s.job_id])
                say(f"{name}: begins with {len(held)} jobs in Redis")
                await fault.begin(service)
                if fault.end:
                    await asyncio.sleep(max(0.0, seconds - AFTER_S - load.now_s()))
                    await fault.end(service)
                ended_s = load.now_s()
                say(f"{name}: its cause is gone")
                accepted_before = [s.job_id for s in load.sent if s.job_id and s.answered_s <= ended_s]
                lost = set(accepted_before) - await service.holds(accepted_before)
                await sending
                await asyncio.sleep(1.0)
                scraping.cancel()
                restarted = supervisor.pids() != pids
            lines = [line for child in children for line in _log_lines(child.log)]
    outcome = Outcome(name, load.sent, began_s, ended_s, lost, restarted, lines)
    return outcome.found(scrapes, seconds)


def _log_lines(path: Path) -> list[dict[str, Any]]:
    lines = []
    for text in path.read_text(errors="replace").splitlines():
        with contextlib.suppress(ValueError):
            line = json.loads(text)
            lines += [line] if isinstance(line, dict) else []
    return lines


@dataclass(frozen=True)
class Outcome:
    """A load under a fault that began and ended at these times. `lost`: ids of jobs without a record as it ended."""

    name: str
    sent: Sequence[Sent]
    began_s: float
    ended_s: float
    lost: set[str]
    restarted: bool
    lines: Sequence[Mapping[str, Any]]

    def found(self, scrapes: Scrapes, seconds: float) -> dict[str, Any]:
        accepted = [sent for sent in self.sent if sent.job_id]
        told = [sent for sent in accepted if sent.job_id in self.lost and sent.code == "NOT_FOUND"]
        own = [sent for sent in accepted if sent.own_picture]
        refused = Counter(sent.code for sent in self.sent if not sent.job_id)
        ends = Counter(line.get("job_id") for line in self.lines if line.get("event") == "ended")
        alert = self._alert(scrapes, seconds)
        accepting_s, drawing_s = self.accepting_s(), self.drawing_s()
        good = {sent.job_id for sent in (*own, *told)}
        broken = [f"job {s.job_id}: {s.code} {s.message or s.levels}" for s in accepted if s.job_id not in good]
        broken += [
            f"request {s.number}: {s.code} {s.message}" for s in self.sent if not s.job_id and s.code != "UNAVAILABLE"
        ]
        broken += [f"the end of a job is told {times} times" for times in ends.values() if times > 1]
        if self.lost and not FAULTS[self.name].loses:
            broken.append(f"Redis has lost {len(self.lost)} jobs")
        if alert.startswith("no:"):
            broken.append(alert)
        if max(accepting_s, drawing_s) > RECOVERED_WITHIN_S:
            broken.append(f"recovered only after {max(accepting_s, drawing_s):.1f} s")
        if self.restarted:
            broken.append("a process was restarted")
        return {
            "fault": self.name,
            "accepted": len(accepted),
            "with their own picture": len(own),
            "lost, and told so": len(told),
            "refused": ", ".join(f"{count} {code}" for code, count in sorted(refused.items())) or "none",
            "alert that fired": alert.partition(":")[0],
            "last refusal after its end (s)": round(accepting_s, 1),
            "first new picture (s)": round(drawing_s, 1),
            "ends in the log": f"{sum(sent.job_id in ends for sent in accepted)}/{len(accepted)}",
            "lines about Redis, all processes": sum(line.get("event", "").startswith("redis ") for line in self.lines),
            "broken": broken,
        }

    def accepting_s(self) -> float:
        """From the fault's end to the last refusal."""
        refused_s = [sent.answered_s for sent in self.sent if not sent.job_id]
        return max(0.0, max(refused_s, default=0.0) - self.ended_s)

    def drawing_s(self) -> float:
        """From the fault's end to the first picture of a request that was sent after it."""
        later = [sent for sent in self.sent if sent.sent_s >= self.ended_s and sent.own_picture]
        return min((sent.ended_s for sent in later), default=float("inf")) - self.ended_s

    def _alert(self, scrapes: Scrapes, seconds: float) -> str:
        """Whether the alert for the fault fires, by promtool; or why that cannot be said."""
        fault = FAULTS[self.name]
        if fault.end and self.ended_s - self.began_s < 75:
            return "not asked: the fault is shorter than the alert's patience"
        firing_s = (self.ended_s if fault.end else seconds) - scrapes.every_s  # the last scrape that shows it
        try:
            said = fires(scrapes, fault.alert, {"severity": "critical"}, silent_s=self.began_s, firing_s=firing_s)
        except FileNotFoundError as error:
            return f"not asked: {error}"
        return f"no: {said}" if said else fault.alert


async def measure(
    fault: Annotated[str, typer.Option(help=f"By comma: {', '.join(FAULTS)}. Default: all.")] = "",
    seconds: Annotated[float, typer.Option(help="Of load for each fault.")] = 120.0,
    rate: Annotated[float, typer.Option(help="Requests a second.")] = 5.0,
) -> list[dict[str, Any]]:
    if seconds <= BEFORE_S + AFTER_S:
        raise typer.BadParameter(f"{seconds:g} is not more than {BEFORE_S + AFTER_S:g}", param_hint="--seconds")
    return [await under(name, seconds, rate) for name in some_of(fault, FAULTS, "--fault")]


def show(found: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table, and below it the broken promises."""
    rows = [tuple(each.values())[:-1] for each in found]
    broken = [f"{each['fault']}: {promise}" for each in found for promise in each["broken"]]
    return "\n".join([markdown_table(tuple(found[0])[:-1], rows), "", *broken])


if __name__ == "__main__":
    run(measure, show=show, well=lambda found: not any(each["broken"] for each in found))
