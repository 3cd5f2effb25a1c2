"""Mixed requests from many clients at once, and whether every picture is the one its seed gives alone.

    python -m bench.load [--requests 200] [--clients 16] [--kill unet,vae,scheduler,redis] [--kill-every-s 10]
    python -m bench.load --kill unet+vae [--kill-jitter-s 4]   # both at once, as after a fault under CUDA MPS

Starts everything as `synerdiff up` does (real Redis, scheduler, UNet worker, VAE worker), sends requests of mixed
samplers, steps, guidance scales, sizes, formats and counts, compares each picture with the one diffusers' own pipeline
makes of the same settings alone, and looks at the end whether every slot is free. `--kill` sends SIGKILL (or with
`--signal TERM` SIGTERM) to those processes in turn while the load runs, `unet+vae` to both at the same instant; the
supervisor starts them again. Prints JSON.
"""

import asyncio
import contextlib
import itertools
import os
import random
import signal
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from bench.command import run, some_of
from bench.mixed_requests import MixedRequest, mixed_requests
from bench.pictures import Picture, levels, pixels
from bench.serving import deployed
from bench.status import attached_again, slots_used
from synerdiff.client import AsyncClient
from synerdiff.client.load.sending import Answer, ClosedLoop, Window, send
from synerdiff.client.load.summary import percentile
from synerdiff_cli.deployment import BUNDLED_MODEL
from synerdiff_cli.local import Running
from tests.reference import reference_image

KINDS = ("unet", "vae", "scheduler", "redis")


def largest_differences(requests: Sequence[MixedRequest], answers: Iterable[Answer]) -> list[int]:
    """Levels of 255 between the pictures of each answer and those made alone, the worst pixel of all."""
    return [
        max(
            (levels(pixels(image), alone(requests[answer.number], image.index)) for image in answer.pictures), default=0
        )
        for answer in answers
    ]


def alone(request: MixedRequest, index: int = 0, **dtype: Any) -> Picture:
    """A request's picture of that index, as diffusers' own pipeline makes it of the bundled model."""
    return reference_image(
        BUNDLED_MODEL,
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        seed=request.seed + index,
        steps=request.num_inference_steps,
        guidance_scale=request.guidance_scale,
        sampler=request.sampler,
        width=request.width,
        height=request.height,
        **dtype,
    )


async def send_all(address: str, requests: Sequence[MixedRequest], clients: int) -> Window:
    """Send every request from `clients` concurrent clients, and keep the pictures."""
    async with AsyncClient(address, patience_s=120.0) as client:
        return await send(client, ClosedLoop(requests, clients), keep_pictures=True)


@dataclass(frozen=True)
class Killing:
    """The kills during a load: an entry of `turns` `every_s` seconds and up to `jitter_s` more after the last.

    The seconds begin when the workers are attached again. An entry is a tuple of kinds, whose processes are signalled
    at the same instant. No turns, no signals.
    """

    turns: tuple[tuple[str, ...], ...]
    every_s: float
    jitter_s: float = 0.0
    sign: signal.Signals = signal.SIGKILL
    seed: int = 0


async def kill_in_turn(deployed: Running, killing: Killing, kills: list[str]) -> None:
    """Send the signals until cancelled; `kills` gets the names of those that got one."""
    draw = random.Random(killing.seed)
    for kinds in itertools.cycle(killing.turns):
        await asyncio.sleep(killing.every_s + draw.uniform(0, killing.jitter_s))
        if victims := kill_together(deployed, kinds, killing.sign):
            kills.append("+".join(victims))
            await attached_again(deployed.deployment.addresses)


def kill_together(deployed: Running, kinds: Sequence[str], sign: signal.Signals = signal.SIGKILL) -> list[str]:
    """Signal one process of each kind, nothing in between. Returns their names; those just dead are left out."""
    pids = deployed.supervisor.pids()
    victims = [next((name for name in pids if name.startswith(kind)), "") for kind in kinds]
    signalled = []
    for name in filter(None, victims):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pids[name], sign)
            signalled.append(name)
    return signalled


async def measure(
    requests: int = 200,
    clients: int = 16,
    seed: int = 1,
    dtype: str = "float32",
    schedulers: int = 1,
    unet_workers: int = 1,
    kill: Annotated[str, typer.Option(help=f"By comma: {', '.join(KINDS)}; a+b: both at once.")] = "",
    sign: Annotated[str, typer.Option("--signal", help="KILL or TERM.")] = "KILL",
    kill_every_s: float = 10.0,
    kill_jitter_s: Annotated[float, typer.Option(help="Up to so much later, at random.")] = 0.0,
) -> dict[str, object]:
    killing = Killing(turns_of(kill), kill_every_s, kill_jitter_s, signal.Signals[f"SIG{sign}"], seed)
    mixed, kills = mixed_requests(requests, seed), list[str]()
    async with deployed(
        {}, dtype=dtype, idle_profile=False, schedulers=schedulers, unet_workers=unet_workers
    ) as system:
        addresses = system.deployment.addresses
        killer = asyncio.create_task(kill_in_turn(system, killing, kills))
        window = await send_all(addresses[-1], mixed, clients)
        killer.cancel()
        leaked = await slots_used(addresses)
    return judged(mixed, window) | {"clients": clients, "slots_used_after": leaked, "killed": kills}


def judged(requests: Sequence[MixedRequest], window: Window) -> dict[str, Any]:
    """The results of requests whose pictures were kept."""
    differences = largest_differences(requests, window.served)
    latencies = [answer.latency_s for answer in window.answers]
    return {
        "requests": len(requests),
        "answered": len(window.served),
        "errors": [f"{answer.error}: {answer.message}" for answer in window.answers if answer.error],
        "pictures": sum(answer.images for answer in window.served),
        "largest_difference_levels": max(differences, default=None),
        "pictures_over_2_levels": sum(difference > 2 for difference in differences),
        "seconds": round(window.seconds, 1),
        "latency_s": {f"p{p}": round(percentile(latencies, p), 2) for p in (50, 99)},
    }


def turns_of(kill: str) -> tuple[tuple[str, ...], ...]:
    """The processes that `--kill` names, turn by turn. Raises typer.BadParameter."""
    turns = tuple(tuple(turn.split("+")) for turn in kill.split(",") if turn)
    some_of(",".join(kind for turn in turns for kind in turn), KINDS, "--kill")
    return turns


def well(found: Mapping[str, object]) -> bool:
    """Whether all were answered, with the right pictures, and nothing is held any more."""
    return not (found["errors"] or found["slots_used_after"] or found["pictures_over_2_levels"])


if __name__ == "__main__":
    run(measure, well=well)
