"""One scheduler drives many simulated domains: how long do its workers stand idle?

    python -m bench.many_domains [--domains 16] [--tick-ms 20] [--seconds 20] [--steps 200]

A real scheduler process, a real Redis, workers that take `tick-ms` per tick over real gRPC. Every domain is kept full.
Prints JSON: the share of time the UNet workers waited for a plan while they held unfinished tasks.
"""

import argparse
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

from bench.simulated_workers import MODEL
from synerdiff.redis_process import RedisProcess, free_port
from synerdiff.rpc import open_channel, serving
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


async def ready(address: str) -> None:
    """Return once the scheduler serves and has had time to attach its workers."""
    async with open_channel(address) as channel:
        while not await serving(channel):  # noqa: ASYNC110 - health is asked for, not told
            await asyncio.sleep(0.1)
    await asyncio.sleep(2.0)


def measure(domains: int, tick_ms: float, seconds: float, steps: int) -> dict[str, object]:
    """Run the whole of it once."""
    with processes(domains, tick_ms) as (address, scheduler, workers):
        asyncio.run(ready(address))
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


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--domains", type=int, default=16)
    parser.add_argument("--tick-ms", type=float, default=20.0)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()
    print(json.dumps(measure(options.domains, options.tick_ms, options.seconds, options.steps), indent=2))


if __name__ == "__main__":
    main()
