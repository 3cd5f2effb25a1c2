"""Processes that a measurement starts, and a port whose connections lead to some of them."""

import asyncio
import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from bench.command import flags
from bench.status import until
from synerdiff.redis_process import RedisProcess, free_port

ROOT = Path(__file__).parents[1]
_STOP_WITHIN_S = 30.0
_CHUNK_BYTES = 1 << 16


@dataclass(frozen=True)
class SimulatedService:
    """A running service: the scheduler's address, metrics port and process, and the workers', which ends in totals."""

    address: str
    metrics_port: int
    scheduler: psutil.Process
    workers: "subprocess.Popen[bytes]"


@contextlib.contextmanager
def process(
    module: str,
    options: Mapping[str, object],
    *,
    version: Path = ROOT,
    log: Path | None = None,
    environment: Mapping[str, str] | None = None,
    stdout: int | None = None,
) -> Iterator["subprocess.Popen[bytes]"]:
    """`python -m MODULE` of a checkout, with flags of these names, which ends with the block.

    Its output goes to `log`, if given. Raises subprocess.TimeoutExpired where it does not end.
    """
    with contextlib.ExitStack() as files:
        out = files.enter_context(log.open("ab")) if log else None
        started = subprocess.Popen(
            [sys.executable, "-P", "-m", module, *flags(options)],
            env={**os.environ, "PYTHONPATH": str(version), **(environment or {})},
            cwd=version,
            stdout=stdout or out,
            stderr=out,
        )
    try:
        yield started
    finally:
        started.terminate()
        started.wait(_STOP_WITHIN_S)


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
        serving = {"redis_url": redis.url, "listen": address, "metrics_port": metrics_port, "log_level": "error"}
        scheduler = running.enter_context(process("services.scheduler", serving | {"no_profile_when_idle": True}))
        drawing = {"redis_url": redis.url, "domains": domains, "tick_ms": tick_ms, "slots": slots}
        drawing["decode_ms"] = decode_ms
        workers = running.enter_context(process("bench.simulated_workers", drawing, stdout=subprocess.PIPE))
        asyncio.run(until(address, lambda status: sum(each.attached for each in status.workers) == 2 * domains))
        yield SimulatedService(address, metrics_port, psutil.Process(scheduler.pid), workers)


@contextlib.asynccontextmanager
async def forwarding(
    targets: Callable[[], Iterable[int | tuple[str, int]]], listen: tuple[str, int] = ("127.0.0.1", 0)
) -> AsyncIterator[int]:
    """Yields the port. `targets`: ports of this host, or hosts and ports; asked for each connection, which goes to the
    first that takes it, or ends."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for target in targets():
            address = ("127.0.0.1", target) if isinstance(target, int) else target
            with contextlib.suppress(OSError):
                there, back = await asyncio.open_connection(*address)
                with contextlib.suppress(asyncio.CancelledError):  # connections end with the event loop at the latest
                    await asyncio.gather(_carry(reader, back), _carry(there, writer))
                return
        writer.close()

    server = await asyncio.start_server(connected, *listen, backlog=4096)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(_CHUNK_BYTES):
            writer.write(data)
            await writer.drain()
    writer.close()
