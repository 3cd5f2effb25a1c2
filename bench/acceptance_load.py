"""Submits as fast as a client can send them: requests encoded beforehand, over a few connections, for many callers."""

import asyncio
import itertools
import resource
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import grpc
import uvloop

from bench.simulated_workers import CARD
from synerdiff.v1 import images_pb2

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

    def of(self, clients: int) -> "Load":
        """The part of one of so many clients."""
        return replace(self, in_flight=self.in_flight // clients, per_s=self.per_s / clients)

    def __str__(self) -> str:
        number = f"{self.per_s:g} a second" if self.per_s else f"{self.in_flight} in flight"
        return number if self.method == SUBMIT else f"empty, {number}"


@dataclass(frozen=True)
class Sent:
    """What a load came to: ms of each call that was accepted, the others by code, CPU seconds of the client."""

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
    send_all = _open_loop if load.per_s else _closed_loop
    try:
        await send_all(client, load, WARM_S)
        began, cpu_s = time.monotonic(), _cpu_s()
        answers = await send_all(client, load, seconds)
        took_s, cpu_s = time.monotonic() - began, _cpu_s() - cpu_s
    finally:
        await client.close()
    refused = Counter(code for code, _ in answers if code != "OK")
    return Sent([1e3 * latency for code, latency in answers if code == "OK"], dict(refused), took_s, cpu_s)


async def _closed_loop(client: Client, load: Load, seconds: float) -> list[tuple[str, float]]:
    answers: list[tuple[str, float]] = []
    until = time.monotonic() + seconds

    async def one_caller() -> None:
        while (began := time.monotonic()) < until:
            answers.append((await client.call(), time.monotonic() - began))

    await asyncio.gather(*(one_caller() for _ in range(load.in_flight)))
    return answers


async def _open_loop(client: Client, load: Load, seconds: float) -> list[tuple[str, float]]:
    """Latencies from when a call was due."""
    began = time.monotonic()

    async def one_call(due: float) -> tuple[str, float]:
        return await client.call(), time.monotonic() - due

    calls = []
    for number in range(round(load.per_s * seconds)):
        due = began + number / load.per_s
        if (early_s := due - time.monotonic()) > 0:
            await asyncio.sleep(early_s)
        calls.append(asyncio.create_task(one_call(due)))
    return await asyncio.gather(*calls)


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
