"""A simulated worker as a pod: `python -m deploy.rehearsal.simulated unet|vae [--tick-ms 20] [--decode-ms 5]`.

Stands where a real worker stands, with the same settings, ports, probes and drain, and computes nothing: a tick takes
as long as it is told to. Each claims a device of its own.
"""

import argparse
import asyncio
import contextlib
import uuid

from bench.simulated_workers import SimulatedUnet, SimulatedVae, SimulatedWorker
from synerdiff.redis_client import connect
from synerdiff.registry import WorkerRegistry
from synerdiff.settings import load
from synerdiff.stopping import cancel_and_wait, stop_signal
from synerdiff.telemetry import configure_logging
from synerdiff.worker_settings import WorkerSettings

_SLOTS = 32


def main() -> None:
    """Parse the command line and serve until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("unet", "vae"))
    parser.add_argument("--tick-ms", type=float, default=20.0)
    parser.add_argument("--decode-ms", type=float, default=5.0)
    options = parser.parse_args()
    configure_logging(f"simulated-{options.kind}")
    asyncio.run(_serve(options, load(WorkerSettings, [])))


async def _serve(options: argparse.Namespace, settings: WorkerSettings) -> None:
    stop = stop_signal()
    name = f"simulated-{options.kind}-{uuid.uuid4().hex[:8]}"
    servicer: SimulatedUnet | SimulatedVae
    if options.kind == "unet":
        servicer = SimulatedUnet(name, options.tick_ms / 1e3, _SLOTS)
    else:
        servicer = SimulatedVae(name, options.decode_ms / 1e3)
    worker = SimulatedWorker(
        servicer, f"device-of-{name}", settings.pool, settings.listen, settings.health_listen, settings.advertise
    )
    async with connect(settings.redis_url) as redis:
        await worker.start(WorkerRegistry(redis))
        await stop.wait()
        await cancel_and_wait(worker.announcing)
        await worker.host.set_ready(False)
        if isinstance(servicer, SimulatedUnet):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(_until_empty(servicer), settings.drain_grace_s)
        await worker.host.drain(1.0)


async def _until_empty(unet: SimulatedUnet) -> None:
    while unet.counting.residents:  # noqa: ASYNC110 - it counts, and tells nobody
        await asyncio.sleep(0.05)


if __name__ == "__main__":
    main()
