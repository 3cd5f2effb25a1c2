"""The public API against everything that is no request: messages made from the protos, bytes, frames, odd calls.

    python -m bench.fuzz [--minutes 10] [--seed 1]

A real scheduler process, a real Redis, simulated workers. Every unary call must be answered within ANSWER_S, none with
INTERNAL or UNKNOWN; the scheduler's memory must stay flat; and a good request must be served at the end. Prints JSON;
exit status 1 where something of that does not hold, with the bytes that do it again.
"""

import asyncio
import contextlib
import math
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
import psutil
from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from bench.command import run
from bench.processes import simulated_service
from bench.simulated_workers import MODEL
from synerdiff.client import AsyncClient
from synerdiff.errors import SynerDiffError
from synerdiff.rpc import open_channel
from synerdiff.v1 import images_pb2, operations_pb2

ANSWER_S = 30.0  # longer than any answer takes on a busy machine
STREAM_S = 0.3  # how long a stream is read: it refuses a bad call at once
CALLERS = 8
NEVER = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN}
LOOKS = 20  # at its memory
CLIENTS_OWN = "Internal error from Core"  # grpc.aio's word for a write of its own that met the end of the call
WARM_UP_SHARE = 0.2  # of the time: pools and caches are filled by then
MOST_GROWTH_SHARE = 0.25  # of the memory after that: 1 kB kept of each call would pass it within minutes
MOST_FAULTS = 20

METHODS: tuple[MethodDescriptor, ...] = tuple(
    method
    for file in (module.DESCRIPTOR for module in (images_pb2, operations_pb2, health_pb2, reflection_pb2))
    for service in file.services_by_name.values()
    for method in service.methods
)

_INTEGERS = (0, 1, 2, 63, 64, 65, 127, 128, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1, -1, -(2**31))
_FLOATS = (0.0, -0.0, 0.5, 1.0, 7.5, 100.0, 101.0, -1.0, math.nan, math.inf, -math.inf, 1e-45, 3e38)
_TEXTS = (
    "",
    "a",
    "\0",
    "a\nb",
    "\u202e",
    "\ud7ff",
    "🍕" * 100,
    "%s%n{}",
    "x" * 129,
    "x" * 8193,
    "x" * 70_000,
    "../../etc",
)
_RANGES = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
    FieldDescriptor.CPPTYPE_ENUM: (-(2**31), 2**31 - 1),
}


@dataclass
class Fuzzer:
    """Draws calls, makes them, and keeps the answers. `known`: texts that mean something to the server."""

    draw: random.Random
    channel: grpc.aio.Channel
    address: str
    known: list[str] = field(default_factory=lambda: [MODEL, "default", "simulated"])
    codes: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    worst_answer_s: float = 0.0

    async def run(self, until_s: float) -> None:
        """Make one call after the other until then, or until there are enough faults."""
        ways = [(self._message, 6), (self._mutated, 6), (self._bytes, 2), (self._odd, 2), (self._frames, 1)]
        while time.monotonic() < until_s and len(self.faults) < MOST_FAULTS:
            (way,) = self.draw.choices([way for way, _ in ways], [weight for _, weight in ways])
            await way()

    # ---- ways to call

    async def _message(self) -> None:
        method = self.draw.choice(METHODS)
        await self._call(method, self._drawn(method.input_type).SerializeToString())

    async def _mutated(self) -> None:
        method = self.draw.choice(METHODS)
        data = bytearray(self._drawn(method.input_type).SerializeToString())
        for _ in range(self.draw.randint(1, 4)):
            at = self.draw.randint(0, len(data))
            match self.draw.randrange(4):
                case 0:
                    data[at:at] = self.draw.randbytes(self.draw.randint(1, 8))
                case 1:
                    del data[at : at + self.draw.randint(1, 8)]
                case 2 if at < len(data):
                    data[at] ^= 1 << self.draw.randrange(8)
                case _:
                    del data[at:]
        await self._call(method, bytes(data))

    async def _bytes(self) -> None:
        await self._call(self.draw.choice(METHODS), self.draw.randbytes(self.draw.choice((0, 1, 2, 10, 100, 5000))))

    async def _odd(self) -> None:
        """Calls that no generated stub makes."""
        method = self.draw.choice(METHODS)
        name, data = _path(method), self._drawn(method.input_type).SerializeToString()
        match self.draw.randrange(5):
            case 0:
                await self._answer("unknown method", self.channel.unary_unary(f"{name}{self.draw.randint(0, 9)}")(data))
            case 1:
                await self._call(method, times=0)
            case 2:
                await self._call(method, data, times=2)
            case 3:
                headers = (("x-fuzz", "v" * self.draw.choice((1, 1000, 7000))), ("traceparent", self._text()[:50]))
                printable = tuple((key, "".join(c for c in value if " " <= c <= "~")) for key, value in headers)
                await self._call(method, data, metadata=printable)
            case _:
                call = self.channel.unary_stream(name)(data)
                await asyncio.sleep(self.draw.random() * 0.02)
                call.cancel()

    async def _frames(self) -> None:
        """A connection of its own, with bytes that may be HTTP/2 frames, closed after a moment."""
        host, _, port = self.address.rpartition(":")
        frames = b"".join(self._frame() for _ in range(self.draw.randint(1, 20)))
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection(host, int(port))
            writer.write(self.draw.choice((b"", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")) + frames)
            await writer.drain()
            await asyncio.sleep(self.draw.random() * 0.05)
            writer.close()
        self.codes["(frames)"] += 1

    def _frame(self) -> bytes:
        payload = self.draw.randbytes(self.draw.choice((0, 4, 8, 100)))
        kind, flags, stream = self.draw.randrange(12), self.draw.randrange(256), self.draw.randrange(6)
        return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload

    # ---- messages

    def _drawn(self, descriptor: Descriptor) -> Message:
        message = message_factory.GetMessageClass(descriptor)()
        if descriptor.name == "GenerateRequest" and self.draw.random() < 0.3:
            message.MergeFrom(images_pb2.GenerateRequest(model=MODEL, prompt="x", num_inference_steps=2))
        for wanted in descriptor.fields:
            if self.draw.random() < 1.5 / max(3, len(descriptor.fields)):
                self._set(message, wanted)
        return message

    def _set(self, message: Message, wanted: FieldDescriptor) -> None:
        count = self.draw.randint(1, 5) if wanted.is_repeated else 1
        if wanted.message_type is not None:
            for _ in range(count):
                held = getattr(message, wanted.name)
                (held.add() if wanted.is_repeated else held).MergeFrom(self._drawn(wanted.message_type))
        elif wanted.is_repeated:
            getattr(message, wanted.name).extend(self._value(wanted) for _ in range(count))
        else:
            setattr(message, wanted.name, self._value(wanted))

    def _value(self, wanted: FieldDescriptor) -> Any:
        if wanted.cpp_type == FieldDescriptor.CPPTYPE_STRING:
            return self._text() if wanted.type == FieldDescriptor.TYPE_STRING else self.draw.randbytes(20)
        if wanted.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
            return self.draw.random() < 0.5
        if wanted.cpp_type in _RANGES:
            lowest, highest = _RANGES[wanted.cpp_type]
            return min(max(self.draw.choice((*_INTEGERS, self.draw.randint(0, 70))), lowest), highest)
        return self.draw.choice(_FLOATS)

    def _text(self) -> str:
        return self.draw.choice(self.known) if self.draw.random() < 0.5 else self.draw.choice(_TEXTS)

    # ---- answers

    async def _call(self, method: MethodDescriptor, data: bytes = b"", *, times: int = 1, **options: Any) -> None:
        """Call a method with a message, or with none or several of it, which no generated stub sends."""
        what = f"{_path(method)} {times} times {data[:200].hex()}"
        messages = iter((data,) * times)
        if not method.server_streaming:
            call = self.channel.stream_unary(_path(method))(messages, timeout=ANSWER_S, **options)
            await self._answer(what, call, method)
            return
        stream = self.channel.stream_stream(_path(method))(messages, **options)
        with contextlib.suppress(TimeoutError, grpc.aio.AioRpcError, asyncio.CancelledError):
            async with asyncio.timeout(STREAM_S if times else ANSWER_S):
                async for event in stream:
                    if method.output_type.name == "GenerateEvent":
                        self._learn(images_pb2.GenerateEvent, event)
        if stream.done():
            self._judge(what, await stream.code(), await stream.details())
        elif not times:
            self._judge(what, grpc.StatusCode.DEADLINE_EXCEEDED, "no answer", hangs=True)
        stream.cancel()

    async def _answer(self, what: str, call: Any, method: MethodDescriptor | None = None) -> None:
        began_s = time.monotonic()
        code, details = grpc.StatusCode.OK, ""
        try:
            answer = await asyncio.wait_for(call, ANSWER_S)
            if method is not None and method.output_type.name == "Job":
                self._learn(images_pb2.Job, answer)
        except TimeoutError:
            code, details = grpc.StatusCode.DEADLINE_EXCEEDED, "no answer"
        except grpc.aio.AioRpcError as error:
            code, details = error.code(), error.details() or ""
        self.worst_answer_s = max(self.worst_answer_s, time.monotonic() - began_s)
        hangs = code is grpc.StatusCode.DEADLINE_EXCEEDED
        self._judge(what, code, details, hangs=hangs)

    def _judge(self, what: str, code: grpc.StatusCode, details: str | None, *, hangs: bool = False) -> None:
        if details == CLIENTS_OWN:
            self.codes["(the client's own)"] += 1
            return
        self.codes[code.name] += 1
        if hangs or code in NEVER:
            self.faults.append(f"{what}: {code.name} {details}")

    def _learn(self, kind: Callable[[], Any], data: bytes) -> None:
        """Keep the ids of existing jobs, so that calls are not only about unknown ones."""
        told = kind()
        with contextlib.suppress(Exception):
            told.ParseFromString(data)
        if told.job_id and told.job_id not in self.known:
            self.known = [*self.known[:3], *self.known[-20:], told.job_id]


def _path(method: MethodDescriptor) -> str:
    return f"/{method.containing_service.full_name}/{method.name}"


async def fuzz(address: str, scheduler: psutil.Process, seconds: float, seed: int) -> dict[str, object]:
    """Fuzz the scheduler for so long. Returns the results, with `faults` empty where all is well."""
    began_s = time.monotonic()
    async with open_channel(address) as channel:
        fuzzers = [Fuzzer(random.Random(f"{seed}/{n}"), channel, address) for n in range(CALLERS)]
        running = asyncio.gather(*(fuzzer.run(began_s + seconds) for fuzzer in fuzzers))
        rss_bytes = [scheduler.memory_info().rss]
        for _ in range(LOOKS):
            await asyncio.sleep(seconds / LOOKS)
            rss_bytes.append(scheduler.memory_info().rss)
        await running
    warm_bytes, end_bytes = rss_bytes[round(LOOKS * WARM_UP_SHARE)], rss_bytes[-1]
    faults = [fault for fuzzer in fuzzers for fault in fuzzer.faults]
    if end_bytes - warm_bytes > MOST_GROWTH_SHARE * warm_bytes:
        faults.append(f"the scheduler's memory grew from {warm_bytes / 1e6:.0f} to {end_bytes / 1e6:.0f} MB")
    faults += await _is_well(address)
    codes = sum((fuzzer.codes for fuzzer in fuzzers), Counter[str]())
    return {
        "seconds": round(time.monotonic() - began_s, 1),
        "seed": seed,
        "calls": codes.total(),
        "codes": dict(codes.most_common()),
        "worst_answer_s": round(max(fuzzer.worst_answer_s for fuzzer in fuzzers), 3),
        "rss_mb": [round(size / 1e6, 1) for size in rss_bytes],
        "faults": faults,
    }


async def _is_well(address: str) -> list[str]:
    """Nothing, or why a good and urgent request is not served."""
    try:
        async with AsyncClient(address) as client:
            made = await client.generate("x", model=MODEL, num_inference_steps=2, priority="high", timeout=60)
            return [] if len(made.images) == 1 else ["a good request came back without its image"]
    except SynerDiffError as error:
        return [f"a good request is not served: {error}"]


def measure(minutes: float = 10.0, seed: int = 1) -> dict[str, object]:
    with simulated_service(tick_ms=2.0) as service:
        return asyncio.run(fuzz(service.address, service.scheduler, minutes * 60, seed))


if __name__ == "__main__":
    run(measure, well=lambda found: not found["faults"])
