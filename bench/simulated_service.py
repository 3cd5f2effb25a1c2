"""A real Redis and scheduler with simulated workers, as processes that end with a block."""

import asyncio
import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from bench.status import until
from synerdiff.redis_process import RedisProcess, free_port


@dataclass(frozen=True)
class SimulatedService:
    """What runs: the scheduler's address, metrics port and process, and that of the workers, which ends in totals."""

    address: str
    metrics_port: int
    scheduler: psutil.Process
    workers: "subprocess.Popen[str]"


@contextlib.contextmanager
def simulated_service(
    domains: int = 1, tick_ms: float = 20.0, *, slots: int = 32, decode_ms: float = 5.0
) -> Iterator[SimulatedService]:
    """Yields once the scheduler has attached a UNet and a VAE worker of each of so many domains."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as running:
        redis = RedisProcess(Path(folder))
        redis.start()
        running.callback(redis.stop)
        address, metrics_port = f"127.0.0.1:{free_port()}", free_port()
        own = ("--redis-url", redis.url)
        serving = (*own, "--listen", address, "--metrics-port", str(metrics_port), "--log-level", "error")
        scheduler = _started(running, "services.scheduler", *serving, "--no-profile-when-idle")
        numbers = {"domains": domains, "tick-ms": tick_ms, "slots": slots, "decode-ms": decode_ms}
        flags = (word for name, value in numbers.items() for word in (f"--{name}", str(value)))
        workers = _started(running, "bench.simulated_workers", *own, *flags, stdout=subprocess.PIPE, text=True)
        asyncio.run(until(address, lambda status: sum(each.attached for each in status.workers) == 2 * domains))
        yield SimulatedService(address, metrics_port, psutil.Process(scheduler.pid), workers)


def _started(running: contextlib.ExitStack, module: str, *flags: str, **options: Any) -> "subprocess.Popen[Any]":
    process = subprocess.Popen([sys.executable, "-m", module, *flags], **options)
    running.callback(process.wait, 30)
    running.callback(process.terminate)
    return process
