"""Redis full, read-only, killed, flushed and replaced under a load: what comes of accepted jobs, what new ones hear.

    python -m bench.redis_faults [--fault full,read-only,killed,flushed,replaced] [--seconds 120] [--rate 5]

For each fault a deployment of its own: Redis behind an address that may lead elsewhere (as a Service's), two
schedulers, a UNet worker and a VAE worker with the bundled model. Requests are sent at a rate, each once, by Generate
and Submit in turn, to both schedulers in turn. After 10 s the fault begins; 30 s before the end its cause goes away.
Every picture is compared with that of the same request, made before. The schedulers' metrics are scraped every 5 s, and
`promtool` says by the project's own rules whether the alert fires. Status 1 where a promise is broken:

- an accepted job ends with its own picture, or, where Redis has lost its record, its client is told so;
- a request that is not accepted is UNAVAILABLE;
- the alert is silent before the fault and fires during it;
- within 10 s of the cause going away both schedulers accept again and a new request has its picture; none restarts.
"""

import asyncio
import contextlib
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import typer

from bench.befallen_redis import FAULTS, RedisService
from bench.command import run, say, some_of
from bench.patient_load import Load, Sent, undisturbed
from bench.reporting import markdown_table
from bench.scraped import Scrapes, fires
from synerdiff.redis_process import RedisProcess, free_port
from synerdiff_cli.deployment import BUNDLED_MODEL, LocalOptions, ModelSource, plan_deployment
from synerdiff_cli.supervisor import Supervisor

BEFORE_S, AFTER_S = 10.0, 30.0
RECOVERED_WITHIN_S = 10.0


# ---- a fault under a load


@dataclass(frozen=True)
class Found:
    """What came of a fault. `broken`: promises that were not kept, in words."""

    fault: str
    accepted: int
    own_pictures: int
    lost: int
    refused: Mapping[str, int]
    alert: str
    accepting_s: float
    drawing_s: float
    end_lines: str
    trouble_lines: int
    broken: tuple[str, ...]


async def under(name: str, seconds: float, rate: float, keep_logs: Path | None = None) -> Found:
    """Let a fault befall a deployment under load. `keep_logs`: a folder that the processes' logs are copied to."""
    fault = FAULTS[name]
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        replica = RedisProcess(folder / "replica") if fault.replica else None
        service = RedisService(RedisProcess(folder / "primary"), replica)
        async with service.serving() as url:
            options = LocalOptions(
                folder, (ModelSource("emoji", BUNDLED_MODEL),), schedulers=2, redis_url=url, dtype="float32"
            )
            deployment, ports = plan_deployment(options), dict[str, int]()
            for child in deployment.children:
                ports[child.name] = free_port()
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
                if fault.lasts:
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
            if keep_logs:
                shutil.copytree(children[0].log.parent, keep_logs / name, dirs_exist_ok=True)
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

    def found(self, scrapes: Scrapes, seconds: float) -> Found:
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
        return Found(
            self.name,
            len(accepted),
            len(own),
            len(told),
            refused,
            alert.partition(":")[0],
            round(accepting_s, 1),
            round(drawing_s, 1),
            f"{sum(sent.job_id in ends for sent in accepted)}/{len(accepted)}",
            sum(line.get("event", "").startswith("redis ") for line in self.lines),
            tuple(broken),
        )

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
        if fault.lasts and self.ended_s - self.began_s < 75:
            return "not asked: the fault is shorter than the alert's patience"
        firing_s = (self.ended_s if fault.lasts else seconds) - scrapes.every_s  # the last scrape that shows it
        labels = {name: value for name, value in fault.alert.items() if name != "alertname"}
        try:
            said = fires(scrapes, fault.alert["alertname"], labels, silent_s=self.began_s, firing_s=firing_s)
        except FileNotFoundError as error:
            return f"not asked: {error}"
        return f"no: {said}" if said else fault.alert["alertname"]


async def measure(
    fault: Annotated[str, typer.Option(help=f"By comma: {', '.join(FAULTS)}. Default: all.")] = "",
    seconds: Annotated[float, typer.Option(help="Of load for each fault.")] = 120.0,
    rate: Annotated[float, typer.Option(help="Requests a second.")] = 5.0,
    keep_logs: Annotated[Path | None, typer.Option(help="A folder that the processes' logs are copied to.")] = None,
) -> list[Found]:
    if seconds <= BEFORE_S + AFTER_S:
        raise typer.BadParameter(f"{seconds:g} is not more than {BEFORE_S + AFTER_S:g}", param_hint="--seconds")
    return [await under(name, seconds, rate, keep_logs) for name in some_of(fault, FAULTS, "--fault")]


HEAD = (
    "fault",
    "accepted",
    "with their own picture",
    "lost, and told so",
    "refused",
    "alert that fired",
    "last refusal after its end (s)",
    "first new picture (s)",
    "ends in the log",
    "lines about Redis, all processes",
)


def show(found: Sequence[Found]) -> str:
    """A Markdown table, and below it what is broken."""
    rows = [
        (
            each.fault,
            each.accepted,
            each.own_pictures,
            each.lost,
            ", ".join(f"{count} {code}" for code, count in sorted(each.refused.items())) or "none",
            each.alert,
            each.accepting_s,
            each.drawing_s,
            each.end_lines,
            each.trouble_lines,
        )
        for each in found
    ]
    broken = [f"{each.fault}: {promise}" for each in found for promise in each.broken]
    return "\n".join([markdown_table(HEAD, rows), "", *broken])


if __name__ == "__main__":
    run(measure, show=show, well=lambda found: not any(each.broken for each in found))
