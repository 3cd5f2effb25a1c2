"""One scheduler drives many simulated domains: how long do its workers stand idle?

    python -m bench.many_domains [--domains 16] [--tick-ms 20] [--seconds 20] [--steps 200]

A real scheduler process, a real Redis, workers that take `tick-ms` per tick over real gRPC. Every domain is kept full.
Prints JSON: the share of time the UNet workers waited for a plan while they held unfinished tasks.
"""

import asyncio
import json
import time

from bench.command import run
from bench.processes import simulated_service
from bench.simulated_workers import MODEL
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
