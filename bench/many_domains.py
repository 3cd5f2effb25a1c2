"""One scheduler drives many simulated domains: how long do its workers stand idle?

    python -m bench.many_domains [--domains 16] [--tick-ms 20] [--seconds 20] [--steps 200]

A real scheduler process, a real Redis, workers that take `tick-ms` per tick over real gRPC. Every domain is kept full.
Prints JSON: the share of time the UNet workers waited for a plan while they held unfinished tasks.
"""

import asyncio
import contextlib
import itertools
import json

from bench.command import run
from bench.processes import simulated_service
from bench.simulated_workers import MODEL
from synerdiff.client import AsyncClient
from synerdiff.client.load.requests import LoadRequest
from synerdiff.client.load.sending import Answer, ClosedLoop, send


async def keep_full(address: str, tasks: int, steps: int, seconds: float) -> int:
    """Hold `tasks` jobs of `steps` steps at most in the system for `seconds`. Returns how many were finished."""
    answers: list[Answer] = []
    # Staggered, as arrivals are: all at once would end all at once too.
    requests = (LoadRequest(str(k), k, max(1, steps - k % 8 * steps // 10), model=MODEL) for k in itertools.count())
    with contextlib.suppress(TimeoutError):
        async with AsyncClient(address) as client, asyncio.timeout(seconds):
            await send(client, ClosedLoop(requests, tasks), on_answer=answers.append)
    return sum(not answer.error for answer in answers)


def measure(domains: int = 16, tick_ms: float = 20.0, seconds: float = 20.0, steps: int = 200) -> dict[str, object]:
    with simulated_service(domains, tick_ms) as service:
        before = service.scheduler.cpu_times()
        finished = asyncio.run(keep_full(service.address, domains * 12, steps, seconds))
        after = service.scheduler.cpu_times()
        memory_mb = service.scheduler.memory_info().rss / 1e6
        service.workers.terminate()
        output, _ = service.workers.communicate(timeout=30)
    cpu_share = (after.user + after.system - before.user - before.system) / seconds
    totals: dict[str, object] = json.loads(output.splitlines()[-1])
    return totals | {
        "domains": domains,
        "tick_ms": tick_ms,
        "steps": steps,
        "jobs_finished": finished,
        "scheduler_cpu_share": round(cpu_share, 3),
        "scheduler_rss_mb": round(memory_mb, 1),
    }


if __name__ == "__main__":
    run(measure)
