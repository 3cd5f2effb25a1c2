"""Calls that outlive their gateway: OpenAI's own client, its own retries, and gateways killed under it.

    python -m bench.gateway_kills [--in-flight 2000] [--minutes 5] [--kill-every-s 30]

A real Redis and scheduler, workers that draw nothing (simulated), two gateways behind a balancer of connections. Now
and then one of them is killed with SIGKILL and started again. Each call has an Idempotency-Key. Prints how the calls
ended, and how many jobs the scheduler made for them; status 1 where a call failed or its job finished twice.
"""

import asyncio
import contextlib
import random
import re
import subprocess
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from typing import Self

import httpx2
import openai
import uvloop

from bench.command import run, say
from bench.processes import forwarding, process, simulated_service
from synerdiff.client.load.summary import percentile
from synerdiff.redis_process import free_port

# A client looks through all of its connections at each call.
_CALLS_OF_A_CLIENT = 100
_ENDS_TOLD_WITHIN_S = 3.0  # schedulers count ends twice a second
_ACCEPTED = re.compile(r"^synerdiff_requests_accepted_total\{.*\} (\S+)$", re.MULTILINE)
_FINISHED = re.compile(r'^synerdiff_jobs_ended_total\{.*outcome="finished".*\} (\S+)$', re.MULTILINE)


@dataclass
class Gateways:
    """Processes on ports of their own inside `with`; a killed one is started again at once."""

    scheduler: str
    ports: tuple[int, ...]
    processes: dict[int, "subprocess.Popen[bytes]"] = field(default_factory=dict)
    kills: int = 0
    running: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def __enter__(self) -> Self:
        """Start all of them, and wait until each is ready."""
        for port in self.ports:
            self.start(port)
        while not all(map(_is_ready, self.ports)):
            time.sleep(0.1)
        return self

    def __exit__(self, *error: object) -> None:
        self.running.close()

    def start(self, port: int) -> None:
        options = {"listen": f"127.0.0.1:{port}", "scheduler": self.scheduler, "log_level": "error"}
        self.processes[port] = self.running.enter_context(process("services.gateway", options))

    def shuffled(self) -> list[int]:
        """Where a new connection may go, in any order."""
        return random.sample(self.ports, len(self.ports))

    async def kill_now_and_then(self, every_s: float) -> None:
        """SIGKILL to one after the other."""
        while True:
            await asyncio.sleep(every_s)
            port = self.ports[self.kills % len(self.ports)]
            self.processes[port].kill()
            self.processes[port].wait()
            self.kills += 1
            self.start(port)


@dataclass
class Calls:
    """How calls ended, which jobs answered them, and after how long."""

    ended: Counter[str] = field(default_factory=Counter)
    jobs: set[str] = field(default_factory=set)
    seconds: list[float] = field(default_factory=list)

    async def make(self, client: openai.AsyncOpenAI, until_s: float) -> None:
        """One call after the other."""
        while (began_s := time.monotonic()) < until_s:
            key = {"Idempotency-Key": uuid.uuid4().hex}
            try:
                response = await client.images.generate(prompt="a car", extra_headers=key)
            except openai.OpenAIError as error:
                self.ended[f"{type(error).__name__}: {getattr(error, 'code', None) or str(error)[:80]}"] += 1
            else:
                self.ended["answered"] += 1
                self.jobs.add((response.model_extra or {})["synerdiff"]["job_id"])
                self.seconds.append(time.monotonic() - began_s)


async def load(gateways: Gateways, in_flight: int, minutes: float, kill_every_s: float) -> Calls:
    """So many calls at once, while gateways are killed."""
    calls = Calls()
    async with forwarding(gateways.shuffled) as port, contextlib.AsyncExitStack() as open_clients:
        clients = [
            await open_clients.enter_async_context(_client(port)) for _ in range(0, in_flight, _CALLS_OF_A_CLIENT)
        ]
        killing = asyncio.create_task(gateways.kill_now_and_then(kill_every_s))
        until_s = time.monotonic() + 60 * minutes
        await asyncio.gather(*(calls.make(clients[at // _CALLS_OF_A_CLIENT], until_s) for at in range(in_flight)))
        killing.cancel()
    return calls


def _client(port: int) -> openai.AsyncOpenAI:
    """OpenAI's own client with its defaults, but for a bound on its connections."""
    http = openai.DefaultAsyncHttpxClient(limits=httpx2.Limits(max_connections=None))
    return openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="x", http_client=http)


def _is_ready(port: int) -> bool:
    with contextlib.suppress(httpx2.TransportError):
        return bool(httpx2.get(f"http://127.0.0.1:{port}/readyz").status_code == 200)
    return False


def measure(
    in_flight: int = 2000, minutes: float = 5.0, kill_every_s: float = 30.0, domains: int = 1, tick_ms: float = 20.0
) -> dict[str, object]:
    with simulated_service(domains, tick_ms, slots=64) as service:
        with Gateways(service.address, (free_port(), free_port())) as gateways:
            calls = uvloop.run(load(gateways, in_flight, minutes, kill_every_s))
        time.sleep(_ENDS_TOLD_WITHIN_S)
        metrics = httpx2.get(f"http://127.0.0.1:{service.metrics_port}/metrics").text
        accepted, finished = (int(sum(map(float, each.findall(metrics)))) for each in (_ACCEPTED, _FINISHED))
    made, answered = calls.ended.total(), calls.ended["answered"]
    say(f"{made} calls over {gateways.kills} kills (simulated workers): {answered} answered")
    return {
        "calls": made,
        "kills": gateways.kills,
        "ended": dict(calls.ended),
        "seconds_p50_p99_max": [round(percentile(calls.seconds, p), 1) for p in (50, 99, 100)],
        "jobs_that_answered": len(calls.jobs),
        "jobs_accepted": accepted,  # an abandoned one is made anew for a call that comes back
        "jobs_finished": finished,
        "finished_twice": max(0, finished - made),
    }


if __name__ == "__main__":
    run(measure, well=lambda found: found["ended"] == {"answered": found["calls"]} and not found["finished_twice"])
