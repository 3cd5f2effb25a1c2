"""One scheduler drives many simulated domains: how long do its workers stand idle?

    python -m bench.many_domains [--domains 16] [--tick-ms 20] [--seconds 20] [--steps 200]

A real scheduler process, a real Redis, workers that take `tick-ms` per tick over real gRPC. Every domain is kept full.
Prints JSON: the share of time the UNet workers waited for a plan while they held unfinished tasks.
"""

import asyncio
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from bench.command import run
from bench.simulated_workers import MODEL
from bench.status import until
from synerdiff.redis_process import RedisProcess, free_port
from synerdiff.rpc import open_channel
from synerdiff.v1 import images_pb2, images_pb2_grpc


async def keep_full(address: str, tasks: int, steps: int, seconds: float) -> int:
    """Hold `tasks` jobs of `steps` steps in the system for `seconds`. Returns how many were finished."""
    finished = 0
    until = time.monotonic() + seconds
    async with open_channel(address) as channel:
        stub = images_pb2_grpc.ImageGenerationStub(channel)

        async def one_after_another(index: int) -> None:
            nonlocal finished
            # Staggered, as arrivals are: all at once would end all at once too.
            request = images_pb2.GenerateRequest(
                model=MODEL,
                prompt=f"{index}",
                num_inference_steps=max(1, steps - index % 8 * steps // 10),
                num_images=1,
            )
            while time.monotonic() < until:
                async for event in stub.Generate(request):
                    finished += event.HasField("finished")

        followers = [asyncio.create_task(one_after_another(index)) for index in range(tasks)]
        await asyncio.sleep(seconds)
        for follower in followers:
            follower.cancel()
        await asyncio.gather(*followers, return_exceptions=True)
    return finished


@contextlib.contextmanager
def processes(domains: int, tick_ms: float) -> Iterator[tuple[str, psutil.Process, "subprocess.Popen[str]"]]:
    """A Redis, a scheduler and simulated workers. Yields the scheduler's address and process, and the workers'."""
    with tempfile.TemporaryDirectory() as folder:
        redis = RedisProcess(Path(folder))
        redis.start()
        address = f"127.0.0.1:{free_port()}"
        python = [sys.executable, "-m"]
        scheduler = subprocess.Popen(
            [*python, "services.scheduler", "--redis-url", redis.url, "--listen", address, "--log-level", "warning"]
        )
        workers = subprocess.Popen(
            [
                *(*python, "bench.simulated_workers", "--redis-url", redis.url),
                *("--domains", str(domains), "--tick-ms", str(tick_ms)),
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            yield address, psutil.Process(scheduler.pid), workers
        finally:
            for process in (workers, scheduler):
                process.terminate()
                process.wait(30)
            redis.stop()


async def ready(address: str, domains: int = 1) -> None:
    """Return once the scheduler has attached both workers of so many domains."""
    await until(address, lambda status: sum(worker.attached for worker in status.workers) == 2 * domains)


def measure(domains: int = 16, tick_ms: float = 20.0, seconds: float = 20.0, steps: int = 200) -> dict[str, object]:
    with processes(domains, tick_ms) as (address, scheduler, workers):
        asyncio.run(ready(address, domains))
        before = scheduler.cpu_times()
        finished = asyncio.run(keep_full(address, domains * 12, steps, seconds))
        after = scheduler.cpu_times()
        memory_mb = scheduler.memory_info().rss / 1e6
        workers.terminate()
        output, _ = workers.communicate(timeout=30)
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
