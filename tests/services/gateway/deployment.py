"""A gateway process before a scheduler, real or canned."""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
import psutil

from synerdiff.redis_process import free_port
from tests.waiting import HANG_S, wait_until

ROOT = Path(__file__).parents[3]
PATH = "/v1/images/generations"


@dataclass(frozen=True)
class Door:
    """A gateway that serves. `url`: http://host:port."""

    process: "subprocess.Popen[bytes]"
    url: str
    log: Path

    def get(self, path: str) -> httpx2.Response:
        return httpx2.get(self.url + path, timeout=HANG_S)

    def post(self, path: str, **options: object) -> httpx2.Response:
        return httpx2.post(self.url + path, timeout=HANG_S, **options)  # type: ignore[arg-type]

    def rss_bytes(self) -> int:
        return int(psutil.Process(self.process.pid).memory_info().rss)

    def lines(self) -> list[dict[str, object]]:
        """What it has logged, in whole lines."""
        return [json.loads(line) for line in self.log.read_text().rpartition("\n")[0].splitlines()]


@contextlib.contextmanager
def running_gateway(scheduler: str, folder: Path, *flags: str, ready: bool = True, **variables: str) -> Iterator[Door]:
    """A gateway that calls `scheduler`, until the block ends; waits for it to be ready, if it is to become so."""
    address, log = f"127.0.0.1:{free_port()}", folder / "gateway.log"
    command = [sys.executable, "-m", "services.gateway", "--listen", address, "--scheduler", scheduler, *flags]
    with log.open("wb") as stderr:
        process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **variables}, stderr=stderr)
    door = Door(process, f"http://{address}", log)
    try:
        wait_until(lambda: _answers(door, "/readyz" if ready else "/healthz"), "a gateway")
        yield door
    finally:
        process.terminate()
        process.wait(HANG_S)


@contextlib.contextmanager
def simulated_schedulers(
    redis_url: str, *flags: str, tick_ms: float = 5.0, max_steps: int = 2000, slots: int = 32
) -> Iterator[str]:
    """A scheduler with `flags` and a pair of simulated workers. Yields its address."""
    address = f"127.0.0.1:{free_port()}"
    python = [sys.executable, "-m"]
    scheduler = [*python, "services.scheduler", "--redis-url", redis_url, "--listen", address, "--log-level", "warning"]
    workers = [*python, "bench.simulated_workers", "--redis-url", redis_url, "--tick-ms", str(tick_ms)]
    workers += ["--max-steps", str(max_steps), "--decode-ms", "1", "--slots", str(slots)]
    processes = [
        subprocess.Popen([*scheduler, "--no-profile-when-idle", "--policy", "continuous", *flags], cwd=ROOT),
        subprocess.Popen(workers, cwd=ROOT, stdout=subprocess.DEVNULL),
    ]
    try:
        yield address
    finally:
        for process in reversed(processes):
            process.terminate()
            process.wait(HANG_S)


async def asking(
    door: Door, body: dict[str, object], key: str = ""
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection that has asked for pictures and read nothing. `key`: an Idempotency-Key."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(door.url.rpartition(":")[2]))
    data = json.dumps(body).encode()
    head = f"POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n"
    writer.write(f"{head}{f'idempotency-key: {key}' if key else 'accept: */*'}\r\n\r\n".encode() + data)
    return reader, writer


def _answers(door: Door, path: str) -> bool:
    assert door.process.poll() is None, door.log.read_text()
    with contextlib.suppress(httpx2.TransportError):
        return bool(door.get(path).status_code == 200)
    return False
