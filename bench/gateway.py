"""The gateway's costs: latency added to a request, CPU, memory, and streams at once.

    python -m bench.gateway [--rate 50] [--seconds 15] [--rounds 4] [--requests 10000] [--clients 200]

A real Redis, scheduler and gateway; workers that draw nothing and take a fixed time a step (simulated). The same
requests at the same rate, over gRPC and over HTTP in turns; then many in a row; then many streams at once. Prints a
table to stderr and JSON to stdout.
"""

import asyncio
import contextlib
import json
import statistics
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Annotated

import psutil
import typer
import uvloop

from bench.acceptance import at_rate, used_s
from bench.command import markdown_table, run, say
from bench.gateway_kills import Gateways
from bench.processes import simulated_service
from bench.simulated_workers import MODEL
from synerdiff.client import AsyncClient
from synerdiff.client.load.summary import percentile
from synerdiff.redis_process import free_port

PATH = "/v1/images/generations"
_WARM_UP = 200
_AT_ONCE = 64
# Progress events, and previews with them, come twice a second.
_STREAMED_STEPS = 400


@dataclass
class HttpClient:
    """Keep-alive connections to one gateway, as many as are in use at once. As small a client as possible."""

    port: int
    idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = field(default_factory=list)

    async def post(self, body: object) -> None:
        """Read the answer whole. Raises AssertionError for one that is not OK."""
        async with self._asked(body) as (reader, headers):
            await reader.readexactly(int(headers["content-length"]))

    async def stream(self, body: object) -> tuple[float, int, list[str]]:
        """(seconds to the first event, bytes, names of the events) of an answer that is a stream of events."""
        began, first_s, read, names = time.perf_counter(), 0.0, 0, []
        async with self._asked(body) as (reader, _):
            while size := int(await reader.readline(), 16):
                chunk = await reader.readexactly(size + 2)
                first_s = first_s or time.perf_counter() - began
                read += size
                if chunk.startswith(b"event: "):
                    names.append(chunk.split(b"\n", 1)[0][7:].decode())
            await reader.readline()
        return first_s, read, names

    def _alive(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        """A connection that the server has not closed; None: there is none."""
        while self.idle:
            reader, writer = self.idle.pop()
            if not reader.at_eof():
                return reader, writer
        return None

    def close(self) -> None:
        for _, writer in self.idle:
            writer.close()

    @contextlib.asynccontextmanager
    async def _asked(self, body: object) -> AsyncIterator[tuple[asyncio.StreamReader, dict[str, str]]]:
        """The body of the answer, yet to be read, and its headers."""
        data = json.dumps(body).encode()
        reader, writer = self._alive() or await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 22)
        head = f"POST {PATH} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
        writer.write(f"{head}content-length: {len(data)}\r\n\r\n".encode() + data)
        status, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        assert status.split()[1] == "200", await reader.read(2000)
        yield reader, dict(line.lower().split(": ", 1) for line in lines if line)
        self.idle.append((reader, writer))


@dataclass(frozen=True)
class Bench:
    """The measured system: addresses, and the gateway's process."""

    scheduler: str
    port: int
    gateway: psutil.Process

    def cpu_s(self) -> float:
        return used_s(self.gateway)

    def rss_mb(self) -> float:
        return float(self.gateway.memory_info().rss / 1e6)


@contextlib.contextmanager
def processes(tick_ms: float, domains: int) -> Iterator[Bench]:
    port = free_port()
    with (
        simulated_service(domains, tick_ms, slots=128, decode_ms=1.0) as service,
        Gateways(service.address, (port,)) as gateways,
    ):
        yield Bench(service.address, port, psutil.Process(gateways.processes[port].pid))


async def added(bench: Bench, rate: float, seconds: float, rounds: int, steps: int) -> dict[str, object]:
    """Latency over gRPC and over HTTP in turns, and the share of a core that the gateway takes."""
    http = HttpClient(bench.port)
    async with AsyncClient(bench.scheduler) as client:

        async def over_grpc() -> None:
            await client.generate("a car", model=MODEL, num_inference_steps=steps)

        async def over_http() -> None:
            await http.post({"prompt": "a car", "num_inference_steps": steps})

        for send in (over_grpc, over_http):
            await at_rate(send, rate, 2.0)
        sides: dict[str, list[list[tuple[None, float]]]] = {"grpc": [], "http": []}
        shares = []
        for _ in range(rounds):
            sides["grpc"].append(await at_rate(over_grpc, rate, seconds))
            began, cpu_s = time.perf_counter(), bench.cpu_s()
            sides["http"].append(await at_rate(over_http, rate, seconds))
            shares.append((bench.cpu_s() - cpu_s) / (time.perf_counter() - began))
    http.close()
    p50 = {side: [statistics.median(ms for _, ms in answers) for answers in of] for side, of in sides.items()}
    p99 = {side: [percentile((ms for _, ms in answers), 99) for answers in of] for side, of in sides.items()}
    differences = [http_ms - grpc_ms for http_ms, grpc_ms in zip(p50["http"], p50["grpc"], strict=True)]
    return {
        "requests_per_s": rate,
        "steps": steps,
        "grpc_p50_ms": _rounded(p50["grpc"]),
        "http_p50_ms": _rounded(p50["http"]),
        "grpc_p99_ms": _rounded(p99["grpc"]),
        "http_p99_ms": _rounded(p99["http"]),
        "added_p50_ms": round(statistics.median(differences), 2),
        "gateway_cores": _rounded(shares, 4),
        "gateway_cores_median": round(statistics.median(shares), 4),
    }


async def in_a_row(bench: Bench, requests: int) -> dict[str, object]:
    """Memory over many short requests, 64 at once; the first ones, which fill pools and caches, are not counted."""
    http = HttpClient(bench.port)
    left = requests + _WARM_UP * 5

    async def worker() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await http.post({"prompt": "a car", "num_inference_steps": 1})

    workers = [asyncio.create_task(worker()) for _ in range(_AT_ONCE)]
    rss_mb = []
    while left > requests:  # noqa: ASYNC110 - it counts, and tells nobody
        await asyncio.sleep(0.05)
    began = time.perf_counter()
    for tenth in range(9, -1, -1):
        rss_mb.append(bench.rss_mb())
        while left > requests * tenth // 10:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    await asyncio.gather(*workers)
    http.close()
    rss_mb.append(bench.rss_mb())
    seconds = time.perf_counter() - began
    return {"requests": requests, "requests_per_s": round(requests / seconds, 1), "rss_mb": _rounded(rss_mb, 1)}


async def streams(bench: Bench, clients: int, steps: int) -> dict[str, object]:
    """Clients that stream at once, with two previews each."""
    http = HttpClient(bench.port)
    body = {"prompt": "a car", "stream": True, "partial_images": 2, "num_inference_steps": steps}
    began = time.perf_counter()
    found = await asyncio.gather(*(http.stream(body) for _ in range(clients)))
    seconds = time.perf_counter() - began
    http.close()
    return {
        "clients": clients,
        "seconds": round(seconds, 2),
        "completed": sum("image_generation.completed" in names for _, _, names in found),
        "partial_images": sum(names.count("image_generation.partial_image") for _, _, names in found),
        "first_event_p50_s": round(statistics.median(first_s for first_s, _, _ in found), 3),
        "mb": round(sum(size for _, size, _ in found) / 1e6, 1),
        "rss_mb": round(bench.rss_mb(), 1),
    }


def table(found: dict[str, dict[str, object]]) -> str:
    rows = [(f"{part}: {name}", value) for part, values in found.items() for name, value in values.items()]
    return markdown_table(("what", "found (simulated workers)"), rows)


def _rounded(values: list[float], digits: int = 2) -> list[float]:
    return [round(value, digits) for value in values]


def measure(
    rate: Annotated[float, typer.Option(help="Requests a second.")] = 50.0,
    seconds: float = 15.0,
    rounds: int = 4,
    steps: int = 20,
    tick_ms: float = 5.0,
    domains: int = 1,
    requests: int = 10_000,
    clients: int = 200,
) -> dict[str, dict[str, object]]:
    """Measure the parts that are not 0. `clients`: that stream at once."""
    found: dict[str, dict[str, object]] = {}
    with processes(tick_ms, domains) as bench:
        if rounds:
            found["added"] = uvloop.run(added(bench, rate, seconds, rounds, steps))
        if requests:
            found["memory"] = uvloop.run(in_a_row(bench, requests))
        if clients:
            found["streams"] = uvloop.run(streams(bench, clients, _STREAMED_STEPS))
    say(table(found))
    return found


if __name__ == "__main__":
    run(measure)
