"""How many Submits a second are accepted durably, how long each takes, and whose CPU time it costs.

    python -m bench.acceptance [--schedulers 1,2] [--loads 1,64,256,500/s,empty:64] [--scheduler-cpu 0.2]

A Redis with the product's own durability (an fsync before every answer), schedulers with API keys and quotas, and a
model whose workers are stopped: jobs are accepted and wait. A load is calls in flight, each caller's next one sent once
one is answered, or requests a second sent on time whatever is answered. The client sends requests that are encoded
beforehand; it runs on the same machine, so its CPU time is listed apart. --scheduler-cpu limits a scheduler to a share
of one core, by control groups of version 1 and as root: it models many schedulers on a larger machine.
"""

import asyncio
import contextlib
import functools
import itertools
import os
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import grpc
import psutil
import uvloop

from bench.command import machine, markdown_table, run
from bench.processes import process
from bench.simulated_workers import CARD
from services.scheduler.api.callers_file import CallersFile, key_hash, new_key
from services.scheduler.api.gate import Gate
from synerdiff.client.load.summary import percentile
from synerdiff.redis_client import connect
from synerdiff.redis_process import RedisProcess, free_port
from synerdiff.registry import WorkerRecord, WorkerRegistry
from synerdiff.rpc import READINESS, open_channel, serving
from synerdiff.v1 import images_pb2

T = TypeVar("T")
SUBMIT = "/synerdiff.v1.ImageGeneration/Submit"
EMPTY = "/grpc.health.v1.Health/Check"
CHANNELS = 2  # to each scheduler
WARM_S = 1.0
GIVE_UP_S = 60.0


@dataclass(frozen=True)
class Load:
    """`in_flight` calls at any time, or `per_s` sent a second, of one method."""

    in_flight: int = 0
    per_s: float = 0.0
    method: str = SUBMIT

    @classmethod
    def parse(cls, text: str) -> "Load":
        what, _, number = text.strip().rpartition(":")
        method = EMPTY if what else SUBMIT
        number, slash, _ = number.partition("/s")
        return cls(per_s=float(number), method=method) if slash else cls(in_flight=int(number), method=method)

    def __str__(self) -> str:
        number = f"{self.per_s:g} a second" if self.per_s else f"{self.in_flight} in flight"
        return number if self.method == SUBMIT else f"empty, {number}"


@dataclass(frozen=True)
class Sent:
    """The result of a load: ms of each call that was accepted, the others by code, CPU seconds of the client."""

    latencies_ms: list[float]
    refused: dict[str, int]
    seconds: float
    cpu_s: float


class Client:
    """Calls of many callers over a few connections, with requests encoded beforehand."""

    def __init__(self, addresses: Sequence[str], keys: Sequence[str], method: str) -> None:
        # Channels of one target and the same options share a connection.
        apart = [("grpc.use_local_subchannel_pool", 1)]
        self._channels = [
            grpc.aio.insecure_channel(address, options=apart) for address in addresses for _ in range(CHANNELS)
        ]
        calls = [channel.unary_unary(method) for channel in self._channels]  # bytes in, bytes out
        metadata = [(("authorization", f"Bearer {key}"),) for key in keys]
        requests = _requests() if method == SUBMIT else itertools.repeat(b"")
        self._turns = zip(itertools.cycle(calls), itertools.cycle(metadata), requests, strict=False)

    async def call(self) -> str:
        """One call. Returns its status code's name."""
        call, metadata, request = next(self._turns)
        try:
            await call(request, metadata=metadata, timeout=GIVE_UP_S)
        except grpc.aio.AioRpcError as error:
            return str(error.code().name)
        return "OK"

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close()


def _requests() -> Iterator[bytes]:
    """Requests that differ in request_id alone, without end."""
    known = images_pb2.GenerateRequest(model=CARD.name, prompt="a slice of pizza on a wooden table", seed=7)
    known.guidance_scale, known.num_inference_steps = 7.5, 20
    rest = known.SerializeToString()
    while True:
        yield images_pb2.GenerateRequest(request_id=uuid.uuid4().hex).SerializeToString() + rest


def send(addresses: Sequence[str], keys: Sequence[str], load: Load, seconds: float) -> Sent:
    """Send a load from this process, with a moment to warm up before it counts."""
    return uvloop.run(_send(addresses, keys, load, seconds))


async def _send(addresses: Sequence[str], keys: Sequence[str], load: Load, seconds: float) -> Sent:
    client = Client(addresses, keys, load.method)
    loop = functools.partial(in_flight, client.call, load.in_flight)
    if load.per_s:
        loop = functools.partial(at_rate, client.call, load.per_s)
    try:
        await loop(WARM_S)
        began, cpu_s = time.monotonic(), time.process_time()
        answers = await loop(seconds)
        took_s, cpu_s = time.monotonic() - began, time.process_time() - cpu_s
    finally:
        await client.close()
    refused = Counter(code for code, _ in answers if code != "OK")
    return Sent([latency_ms for code, latency_ms in answers if code == "OK"], dict(refused), took_s, cpu_s)


async def in_flight(call: Callable[[], Awaitable[T]], callers: int, seconds: float) -> list[tuple[T, float]]:
    """So many callers' calls, each one's next sent once one is answered: each answer, and the ms that it took."""
    answers: list[tuple[T, float]] = []
    until = time.monotonic() + seconds

    async def one_caller() -> None:
        while (began := time.monotonic()) < until:
            answers.append((await call(), 1e3 * (time.monotonic() - began)))

    await asyncio.gather(*(one_caller() for _ in range(callers)))
    return answers


async def at_rate(call: Callable[[], Awaitable[T]], per_s: float, seconds: float) -> list[tuple[T, float]]:
    """Calls that are sent at a constant rate, whatever is answered: each answer, and the ms since it was due."""
    began = time.monotonic()

    async def one_call(due: float) -> tuple[T, float]:
        return await call(), 1e3 * (time.monotonic() - due)

    calls = []
    for number in range(round(per_s * seconds)):
        due = began + number / per_s
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        calls.append(asyncio.create_task(one_call(due)))
    return await asyncio.gather(*calls)


CALLERS = 8
UNBOUND = 10**9
# Every bound is set and checked, and none is reached.
QUOTAS = f"* waiting_jobs={UNBOUND} waiting_images={UNBOUND} open_jobs={UNBOUND} open_images={UNBOUND}"
RATE = "requests_per_s=999999"
GROUPS = Path("/sys/fs/cgroup/cpu")
PERIOD_US = 10_000


@dataclass(frozen=True)
class System:
    """The measured system, by its processes."""

    addresses: list[str]
    schedulers: list[psutil.Process]
    redis: psutil.Process

    def cpu_s(self) -> tuple[float, float, float]:
        """CPU seconds of the schedulers, of Redis, and of the whole machine, the time that its host took included."""
        whole = psutil.cpu_times()
        return sum(map(used_s, self.schedulers)), used_s(self.redis), sum(whole) - whole.idle - whole.iowait


def used_s(process: psutil.Process) -> float:
    used = process.cpu_times()
    return float(used.user + used.system)


@contextlib.asynccontextmanager
async def system(folder: Path, schedulers: int, callers: Path, scheduler_cpu: float) -> AsyncIterator[System]:
    """A Redis that knows a model, and schedulers that serve it to `callers`."""
    with contextlib.ExitStack() as running:
        redis = RedisProcess(folder)  # an empty one: it does not come to rewrite its file
        redis.start()
        running.callback(_let_go)
        running.callback(redis.stop)
        async with connect(redis.url) as client:
            # In another pool than the schedulers lead: no scheduler looks for this worker.
            worker = WorkerRecord("stopped", "unet", "127.0.0.1:1", CARD, "elsewhere", "none", "boot", 1, weights="w")
            await WorkerRegistry(client).announce(worker, ttl_s=3600)
            pid = (await client.info("server"))["process_id"]
        addresses = [f"127.0.0.1:{free_port()}" for _ in range(schedulers)]
        pids = []
        for number, address in enumerate(addresses):
            options = {"redis_url": redis.url, "listen": address, "callers_file": callers, "max_waiting": UNBOUND}
            own = {"SYNERDIFF_HEALTH_LISTEN": "", "SYNERDIFF_INSTANCE_ID": address}
            log = folder / f"scheduler-{number}.log"
            pids.append(running.enter_context(process("services.scheduler", options, log=log, environment=own)).pid)
        for number, address in enumerate(addresses):
            await _until_ready(address)
            _hold(pids[number], number, scheduler_cpu)
        yield System(addresses, list(map(psutil.Process, pids)), psutil.Process(pid))


def _hold(pid: int, number: int, cores: float) -> None:
    """Hold a process to a share of one core; 0: to none."""
    if cores:
        group = GROUPS / f"acceptance-{os.getpid()}-{number}"
        group.mkdir(exist_ok=True)
        (group / "cpu.cfs_period_us").write_text(str(PERIOD_US))
        (group / "cpu.cfs_quota_us").write_text(str(round(cores * PERIOD_US)))
        (group / "cgroup.procs").write_text(str(pid))


def _let_go() -> None:
    """Remove the groups of processes that have ended."""
    for group in GROUPS.glob(f"acceptance-{os.getpid()}-*"):
        group.rmdir()


async def _until_ready(address: str) -> None:
    async with asyncio.timeout(GIVE_UP_S):
        while True:
            async with open_channel(address) as channel:
                if await serving(channel, READINESS):
                    return
            await asyncio.sleep(0.05)


def gate_check_us(callers: Path, keys: Sequence[str], calls: int = 20_000) -> float:
    """Microseconds in which the gate finds the caller of a key and accepts the call."""
    gate = Gate(CallersFile(callers))

    metadata = [(("user-agent", "grpc-python-asyncio"), ("authorization", f"Bearer {key}")) for key in keys]
    contexts = [SimpleNamespace(invocation_metadata=functools.partial(tuple, each)) for each in metadata]
    began_ns = time.perf_counter_ns()
    for number in range(calls):
        gate(contexts[number % len(contexts)], SUBMIT)
    return (time.perf_counter_ns() - began_ns) / 1e3 / calls


def fsync_ms(folder: Path, times: int = 200) -> float:
    """Median milliseconds in which this disk takes 2 KB more of a file, as of one job."""
    took = []
    with (folder / "fsync").open("wb", buffering=0) as file:
        for _ in range(times):
            file.write(bytes(2048))
            began = time.perf_counter()
            os.fdatasync(file.fileno())
            took.append(1e3 * (time.perf_counter() - began))
    return sorted(took)[times // 2]


def row(schedulers: int, load: Load, sent: Sent, spent: Sequence[float]) -> dict[str, Any]:
    """`spent`: CPU seconds of the schedulers, of Redis and of the machine, with the client's moment of warming up."""
    latencies, seconds = sent.latencies_ms, sent.seconds
    thousands, client_s = len(latencies) / 1000, sent.cpu_s
    warmed = (seconds + WARM_S) / seconds
    others_s = spent[2] - spent[1] - spent[0] - client_s * warmed
    return {
        "schedulers": schedulers,
        "load": str(load),
        "answered a second": round(len(latencies) / seconds),
        "p50 ms": round(percentile(latencies, 50), 1),
        "p99 ms": round(percentile(latencies, 99), 1),
        "CPU s per 1,000: client": round(client_s / thousands, 2),
        "of schedulers": round(spent[0] / warmed / thousands, 2),
        "of Redis": round(spent[1] / warmed / thousands, 2),
        "cores of others": round(others_s / (seconds + WARM_S), 2),
        "errors": sent.refused,
    }


async def loaded(
    measured: System, keys: Sequence[str], load: Load, seconds: float, pool: ProcessPoolExecutor
) -> dict[str, Any]:
    """The row of a load that a process of the pool sends."""
    loop, before = asyncio.get_running_loop(), measured.cpu_s()
    sent = await loop.run_in_executor(pool, send, measured.addresses, keys, load, seconds)
    spent = [after - earlier for after, earlier in zip(measured.cpu_s(), before, strict=True)]
    return row(len(measured.addresses), load, sent, spent)


async def measure(
    schedulers: str = "1,2",
    loads: str = "1,64,256,500/s,empty:64",
    seconds: float = 6.0,
    scheduler_cpu: float = 0.0,
) -> dict[str, Any]:
    """Measure every load on each number of schedulers, started anew."""
    keys, rows = [new_key() for _ in range(CALLERS)], []
    with (
        tempfile.TemporaryDirectory() as name,
        ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool,
    ):
        folder, callers = Path(name), Path(name) / "callers"
        lines = [f"caller-{number} {key_hash(key)} {RATE}" for number, key in enumerate(keys)]
        callers.write_text("\n".join([QUOTAS, *lines]))
        for number, (count, load) in enumerate(itertools.product(schedulers.split(","), loads.split(","))):
            async with system(folder / str(number), int(count), callers, scheduler_cpu) as measured:
                rows.append(await loaded(measured, keys, Load.parse(load), seconds, pool))
        beside = {"gate_check_us": round(gate_check_us(callers, keys), 1), "fsync_ms": round(fsync_ms(folder), 2)}
    return {"machine": machine(), **beside, "rows": rows}


def show(result: dict[str, Any]) -> str:
    """The rows as a table for documents, with the other measurements."""
    headings = [name for name in result["rows"][0] if name != "errors"]
    lines = [[each[name] for name in headings] for each in result["rows"]]
    about = f"gate {result['gate_check_us']} us, fsync {result['fsync_ms']} ms, {result['machine']}"
    errors = [f"{each['load']}: {each['errors']}" for each in result["rows"] if each["errors"]]
    return "\n".join([about, markdown_table(headings, lines), *errors])


if __name__ == "__main__":
    run(measure, show=show)
