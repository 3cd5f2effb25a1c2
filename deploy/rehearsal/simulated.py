"""A simulated worker as a pod: `python -m deploy.rehearsal.simulated unet|vae [--tick-ms 20] [--decode-ms 5]`.

It replaces a real worker, with the same settings, ports, probes and drain, and computes nothing: a tick takes the time
that its option says. Each claims a device of its own.
"""

import asyncio
import contextlib
import uuid
from typing import Literal

from bench.command import run
from bench.simulated_workers import SimulatedUnet, SimulatedVae, SimulatedWorker
from synerdiff.redis_client import connect
from synerdiff.registry import WorkerRegistry
from synerdiff.settings import load
from synerdiff.stopping import cancel_and_wait, stop_signal
from synerdiff.telemetry import configure_logging
from synerdiff.worker_settings import WorkerSettings

_SLOTS = 32


async def serve(kind: Literal["unet", "vae"], tick_ms: float = 20.0, decode_ms: float = 5.0) -> None:
    """Serve until SIGTERM."""
    configure_logging(f"simulated-{kind}")
    settings = load(WorkerSettings, [])
    stop = stop_signal()
    name = f"simulated-{kind}-{uuid.uuid4().hex[:8]}"
    unet, vae = SimulatedUnet(name, tick_ms / 1e3, _SLOTS), SimulatedVae(name, decode_ms / 1e3)
    servicer = unet if kind == "unet" else vae
    worker = SimulatedWorker(
        servicer, f"device-of-{name}", settings.pool, settings.listen, settings.health_listen, settings.advertise
    )
    async with connect(settings.redis_url) as redis:
        await worker.start(WorkerRegistry(redis))
        await stop.wait()
        await cancel_and_wait(worker.announcing)
        await worker.host.set_ready(False)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(_until_empty(unet), settings.drain_grace_s)
        await worker.host.drain(1.0)


async def _until_empty(unet: SimulatedUnet) -> None:
    while unet.counting.residents:  # noqa: ASYNC110 - it counts, and tells nobody
        await asyncio.sleep(0.05)


if __name__ == "__main__":
    run(serve)
