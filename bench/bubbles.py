"""Served UNet steps per second against a bare loop of the same batches in one process, turn by turn in one run.

    python -m bench.bubbles [--tasks 8] [--steps 60] [--rounds 5]

No VAE worker runs, so nothing is decoded. A round is: `tasks` jobs through Redis, scheduler and a real UNet worker over
gRPC, timed from the first to the last step that all of them share, as the worker's own trace has it, gaps included;
then the same tasks stepped by the same `Denoiser` in a loop here, with the same number of threads. Prints JSON with the
ratio of each round; the served system is idle while the bare loop runs. `gap_share` is the part of the served time in
which the worker had no step under way: it does not depend on how steady the machine is.
"""

import asyncio
import os
import statistics
import tempfile
import time
from contextlib import aclosing
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch

from bench.command import run
from services.unet_worker.denoiser import Denoiser
from services.unet_worker.preparation import TaskPreparer
from synerdiff.cards import Sampler
from synerdiff.client import AsyncClient, Progress
from synerdiff.client.load.trace import trace_events
from synerdiff.models.loading import load_unet_side
from synerdiff.requests import TaskSpec
from synerdiff.rpc import open_channel
from synerdiff_cli.deployment import BUNDLED_MODEL, LocalOptions, ModelSource, plan_deployment
from synerdiff_cli.supervisor import Supervisor

GUIDANCE_SCALE = 4.0


def bare_steps_per_s(denoiser: Denoiser, preparer: TaskPreparer, tasks: int, steps: int) -> float:
    """Batched UNet calls per second of a loop that does nothing else."""
    specs = [
        TaskSpec(f"bare/{k}", f"a cat {k}", "", 128, 128, steps, GUIDANCE_SCALE, k, Sampler.DDIM, 0)
        for k in range(tasks)
    ]
    batch = [prepared.task for prepared in preparer.prepare(specs)]
    began = time.perf_counter()
    for _ in range(steps):
        denoiser.step(batch)
    return steps / (time.perf_counter() - began)


async def served_steps_per_s(address: str, tasks: int, steps: int) -> tuple[float, float]:
    """Batched UNet calls per second of the served system while all tasks ran, and the share of gaps between them."""
    began_unix_s = time.time()
    async with AsyncClient(address) as client, open_channel(address) as channel:
        jobs = [
            await client.submit(
                f"a cat {k}",
                seed=k,
                num_inference_steps=steps,
                guidance_scale=GUIDANCE_SCALE,
                sampler=Sampler.DDIM,
            )
            for k in range(tasks)
        ]
        for job in jobs:
            async with aclosing(client.watch(job.job_id)) as events:
                async for event in events:
                    if isinstance(event, Progress) and event.step == event.num_inference_steps:
                        break
        trace = await trace_events(channel, began_unix_s)
        for job in jobs:
            await job.cancel()
    full = [event for event in trace if event["ph"] == "X" and event["args"].get("rows") == 2 * tasks]
    seconds = (full[-1]["ts"] + full[-1]["dur"] - full[0]["ts"]) / 1e6
    gaps = 1 - sum(event["dur"] for event in full) / 1e6 / seconds
    return len(full) / seconds, gaps


async def measure(tasks: int = 8, steps: int = 60, rounds: int = 5) -> dict[str, object]:
    threads = len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    unet_side = load_unet_side(BUNDLED_MODEL, torch.float32)
    denoiser, preparer = Denoiser(unet_side), TaskPreparer(unet_side)
    served, bare, gaps = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        options = LocalOptions(Path(folder), (ModelSource("emoji", BUNDLED_MODEL),), vae_workers=0, dtype="float32")
        deployment = plan_deployment(options)
        async with Supervisor(deployment.children) as supervisor:
            await supervisor.start()
            await asyncio.sleep(2.0)
            for _ in range(rounds + 1):
                steps_per_s, gap_share = await served_steps_per_s(deployment.addresses[0], tasks, steps)
                served.append(steps_per_s)
                gaps.append(gap_share)
                bare.append(await asyncio.to_thread(bare_steps_per_s, denoiser, preparer, tasks, steps))
    ratios = [s / b for s, b in zip(served[1:], bare[1:], strict=True)]  # the first round warms both up
    return {
        "tasks": tasks,
        "steps": steps,
        "threads": threads,
        "served_steps_per_s": [round(s, 2) for s in served[1:]],
        "bare_steps_per_s": [round(b, 2) for b in bare[1:]],
        "ratios": [round(ratio, 4) for ratio in ratios],
        "median_ratio": round(statistics.median(ratios), 4),
        "median_gap_share": round(statistics.median(gaps[1:]), 5),
    }


if __name__ == "__main__":
    run(measure)
