"""Mixed requests from many clients at once, and whether every picture is the one its seed gives alone.

    python -m bench.load [--requests 200] [--clients 16] [--kill unet,vae,scheduler,redis] [--kill-every-s 10]

Starts everything as `synerdiff up` does (real Redis, scheduler, UNet worker, VAE worker), sends requests of mixed
samplers, steps, guidance scales, sizes, formats and counts, compares each picture with the one diffusers' own pipeline
makes of the same settings alone, and looks at the end whether every slot is free. `--kill` sends SIGKILL (or with
`--signal TERM` SIGTERM) to those processes in turn while the load runs; the supervisor starts them again. Prints JSON.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import random
import signal
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np

from synerdiff.cards import Sampler
from synerdiff.client import AsyncClient
from synerdiff.client.results import GenerateResult
from synerdiff.rpc import open_channel
from synerdiff.v1 import operations_pb2, operations_pb2_grpc
from synerdiff_cli.deployment import BUNDLED_MODEL, LocalOptions, ModelSource
from synerdiff_cli.running import Running, running
from tests.reference import reference_image

SAMPLERS = [sampler for sampler in Sampler if sampler not in (Sampler.DDPM, Sampler.LCM)]


@dataclass(frozen=True)
class LoadRequest:
    """One request of the load."""

    prompt: str
    negative_prompt: str
    seed: int
    num_inference_steps: int
    guidance_scale: float
    sampler: Sampler
    width: int
    height: int
    num_images: int


def mixed_requests(count: int, seed: int) -> list[LoadRequest]:
    """Requests as a crowd would send them, the same for the same seed."""
    draw = random.Random(seed)
    subjects = (BUNDLED_MODEL.parent / "core.txt").read_text().replace("\n", "").strip("|").split("|")
    sizes = [(128, 128)] * 6 + [(128, 160), (96, 128)]
    requests = []
    for _ in range(count):
        width, height = draw.choice(sizes)
        requests.append(
            LoadRequest(
                prompt=f"a {draw.choice(subjects)}",
                negative_prompt=draw.choice(["", "", "blue"]),
                seed=draw.randrange(2**32),
                num_inference_steps=draw.randint(4, 12),
                guidance_scale=draw.choice([1.0, 2.5, 4.0, 4.0, 7.5]),
                sampler=draw.choice(SAMPLERS),
                width=width,
                height=height,
                num_images=draw.choice([1, 1, 1, 2]),
            )
        )
    return requests


def largest_difference(request: LoadRequest, result: GenerateResult) -> int:
    """Levels of 255 between the served pictures and those made alone, the worst pixel of all."""
    worst = 0
    for image in result.images:
        expected = reference_image(
            BUNDLED_MODEL,
            prompt=request.prompt,
            negative_prompt=request.negative_prompt,
            seed=request.seed + image.index,
            steps=request.num_inference_steps,
            guidance_scale=request.guidance_scale,
            sampler=request.sampler,
            width=request.width,
            height=request.height,
        )
        served = np.asarray(image.pil.convert("RGB")).astype(int)
        worst = max(worst, int(np.abs(served - expected.astype(int)).max()))
    return worst


async def send_all(
    address: str, requests: list[LoadRequest], clients: int
) -> tuple[list[tuple[LoadRequest, GenerateResult]], list[str], list[float]]:
    """Send every request from `clients` concurrent clients. Returns answers, errors and latencies in s."""
    todo = iter(requests)
    answers: list[tuple[LoadRequest, GenerateResult]] = []
    errors: list[str] = []
    latencies: list[float] = []

    async def client_loop() -> None:
        async with AsyncClient(address, patience_s=120.0) as client:
            for request in todo:
                began = time.monotonic()
                options: dict[str, Any] = asdict(request)
                try:
                    answers.append((request, await client.generate(options.pop("prompt"), skip_cfg=False, **options)))
                except Exception as error:  # every way to fail is counted; none is expected
                    errors.append(f"{type(error).__name__}: {error}")
                latencies.append(time.monotonic() - began)

    await asyncio.gather(*(client_loop() for _ in range(clients)))
    return answers, errors, latencies


async def kill_in_turn(
    deployed: Running, kinds: list[str], every_s: float, sign: signal.Signals, kills: list[str]
) -> None:
    """Signal a process of each kind in turn, until cancelled; no kinds, no signals."""
    for kind in itertools.cycle(kinds):
        await asyncio.sleep(every_s)
        pids = {name: pid for name, pid in deployed.supervisor.pids().items() if name.startswith(kind)}
        for name, pid in list(pids.items())[:1]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, sign)
                kills.append(name)


async def slots_used(addresses: tuple[str, ...]) -> int:
    """Slots that hold a task, as the leader counts them, once what ends has ended (15 s at most)."""
    used = -1
    for _ in range(150):
        for address in addresses:
            async with open_channel(address) as channel:
                stub = operations_pb2_grpc.OperationsStub(channel)
                status = await stub.GetStatus(operations_pb2.GetStatusRequest())
            unets = [worker for worker in status.workers if worker.kind == "unet"]
            if status.leader and unets and all(worker.attached for worker in unets):
                used = sum(worker.slots_used for worker in unets)
        if used == 0:
            return 0
        await asyncio.sleep(0.1)
    return used


async def measure(options: argparse.Namespace) -> dict[str, object]:
    """Run the load once."""
    requests = mixed_requests(options.requests, options.seed)
    kinds = [kind for kind in options.kill.split(",") if kind]
    kills: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        local = LocalOptions(
            Path(folder),
            (ModelSource("emoji", BUNDLED_MODEL),),
            dtype=options.dtype,
            schedulers=options.schedulers,
            unet_workers=options.unet_workers,
        )
        async with running(local) as deployed:
            sign = signal.Signals[f"SIG{options.signal}"]
            killing = asyncio.create_task(kill_in_turn(deployed, kinds, options.kill_every_s, sign, kills))
            began = time.monotonic()
            address = deployed.deployment.addresses[-1]
            answers, errors, latencies = await send_all(address, requests, options.clients)
            took_s = time.monotonic() - began
            killing.cancel()
            leaked = await slots_used(deployed.deployment.addresses)
        if options.keep_logs:
            options.keep_logs.mkdir(parents=True, exist_ok=True)
            for log in (Path(folder) / "logs").iterdir():
                (options.keep_logs / log.name).write_bytes(log.read_bytes())
    differences = [largest_difference(request, result) for request, result in answers]
    latencies.sort()
    return {
        "requests": len(requests),
        "clients": options.clients,
        "answered": len(answers),
        "errors": errors,
        "pictures": sum(len(result.images) for _, result in answers),
        "largest_difference_levels": max(differences, default=None),
        "pictures_over_2_levels": sum(difference > 2 for difference in differences),
        "slots_used_after": leaked,
        "killed": kills,
        "seconds": round(took_s, 1),
        "latency_s": {
            f"p{p}": round(latencies[min(len(latencies) - 1, len(latencies) * p // 100)], 2) for p in (50, 99)
        },
    }


def main() -> int:
    """Parse the command line, measure, and say by the exit status whether all is well."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--schedulers", type=int, default=1)
    parser.add_argument("--unet-workers", type=int, default=1)
    parser.add_argument("--kill", default="", help="comma-separated: unet, vae, scheduler, redis")
    parser.add_argument("--signal", choices=("KILL", "TERM"), default="KILL")
    parser.add_argument("--kill-every-s", type=float, default=10.0)
    parser.add_argument("--keep-logs", type=Path, help="folder that the processes' logs are copied to")
    result = asyncio.run(measure(parser.parse_args()))
    print(json.dumps(result, indent=2))
    well = not result["errors"] and result["slots_used_after"] == 0 and result["pictures_over_2_levels"] == 0
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
