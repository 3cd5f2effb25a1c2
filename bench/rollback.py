"""Schedulers of another version and back, under load: new, old, new. Do all jobs end with their own pictures?

    git worktree add /tmp/old v0.1.0
    python -m bench.rollback --old /tmp/old [--requests 120] [--rate 2] [--stay-s 15]

A real Redis, a UNet and a VAE worker of this version with the bundled model, and one scheduler that serves and leads.
While requests arrive, another of the version in `--old` starts beside it and takes over, and then one of this version
again, as a rollout and its rollback do. Every picture is compared with the one that diffusers' own pipeline makes of
the same settings. Prints JSON.
"""

import asyncio
import contextlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, cast

import typer

from bench.command import run, say
from bench.load import judged
from bench.mixed_requests import mixed_requests
from bench.processes import ROOT, process
from bench.status import Status, slots_used, until
from synerdiff.client import AsyncClient
from synerdiff.client.load.arrivals import Arrival
from synerdiff.client.load.sending import OpenLoop, send
from synerdiff.redis_process import RedisProcess, free_port
from synerdiff.stopping import cancel_and_wait
from synerdiff_cli.deployment import BUNDLED_MODEL
from tests.rounding import A_LEVEL

TAKES_OVER_WITHIN_S = 60.0


async def roll(
    redis_url: str, addresses: tuple[str, str], versions: Sequence[Path], stay_s: float, logs: Path, led: list[str]
) -> None:
    """Let one version after the other lead for `stay_s` seconds, and the last until cancelled.

    Each serves before its predecessor is stopped. `led` gets those that did. Raises TimeoutError where one does not.
    """
    with contextlib.ExitStack() as before:
        for number, version in enumerate(versions):
            address = addresses[number % 2]
            options = {"redis_url": redis_url, "listen": address, "no_profile_when_idle": True}
            scheduler = contextlib.ExitStack()
            log = logs / f"scheduler-{number}.log"
            scheduler.enter_context(process("services.scheduler", options, version=version, log=log))
            await until(address, lambda status: True, TAKES_OVER_WITHIN_S)
            await asyncio.to_thread(before.close)
            before.callback(scheduler.close)
            await until(address, leads, TAKES_OVER_WITHIN_S)
            say(f"a scheduler of {version} leads")
            led.append(str(version))
            await asyncio.sleep(stay_s)
        await asyncio.Event().wait()


def leads(status: Status) -> bool:
    """Whether it leads with both workers."""
    return status.leader and len(status.workers) == 2 and all(worker.attached for worker in status.workers)


async def measure(
    old: Annotated[Path, typer.Option(help="A checkout of the other version.", exists=True, file_okay=False)],
    requests: int = 120,
    rate: Annotated[float, typer.Option(help="Requests a second.")] = 2.0,
    stay_s: Annotated[float, typer.Option(help="How long each version leads.")] = 15.0,
    seed: int = 1,
) -> dict[str, object]:
    mixed = mixed_requests(requests, seed)
    addresses = (f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}")
    with tempfile.TemporaryDirectory() as folder:
        redis = RedisProcess(Path(folder))
        redis.start()
        with contextlib.ExitStack() as running:
            running.callback(redis.stop)
            for kind in ("unet", "vae"):
                options = {"redis_url": redis.url, "listen": f"127.0.0.1:{free_port()}", "model_name": "emoji"}
                options |= {"model": str(BUNDLED_MODEL), "dtype": "float32", "compile": "off", "threads": "1"}
                log = Path(folder) / f"{kind}.log"
                running.enter_context(process(f"services.{kind}_worker", options, log=log))
            versions = [ROOT, old.resolve(), ROOT]
            led: list[str] = []
            rolling = asyncio.create_task(roll(redis.url, addresses, versions, stay_s, Path(folder), led))
            await until(addresses[0], leads)
            arrivals = tuple(Arrival(number / rate, request) for number, request in enumerate(mixed))
            async with AsyncClient(f"ipv4:{addresses[0]},{addresses[1]}", patience_s=60.0) as client:
                window = await send(client, OpenLoop(arrivals), keep_pictures=True)
            leaked = await slots_used(addresses)
            if rolling.done():
                rolling.result()
            await cancel_and_wait(rolling)
    return judged(mixed, window) | {"led": led, "slots_used_after": leaked}


def well(found: dict[str, object]) -> bool:
    """Whether all were answered, with the right pictures, and nothing is held any more."""
    led = cast(list[str], found["led"])
    whole = len(led) == 3 and not found["errors"] and not found["slots_used_after"]
    return whole and found["largest_difference_levels"] in (0, A_LEVEL)


if __name__ == "__main__":
    run(measure, well=well)
