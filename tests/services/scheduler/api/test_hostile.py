"""Hostile bytes on the public port: refused, memory flat, the service alive."""

import asyncio
import random
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import psutil
import pytest
from redis.asyncio import Redis

from synerdiff.client import AsyncClient
from synerdiff.redis_process import RedisProcess
from synerdiff.rpc import MIB, open_channel
from synerdiff.v1 import images_pb2, images_pb2_grpc
from tests.services.scheduler.harness import announce
from tests.waiting import HANG_S

pytestmark = pytest.mark.alone

ROOT = Path(__file__).parents[4]


@pytest.fixture
async def process(redis: Redis, redis_server: RedisProcess) -> AsyncIterator[tuple[str, psutil.Process]]:
    await announce(redis, "unet")
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.services.scheduler.harness", redis_server.url),
        stdout=asyncio.subprocess.PIPE,
        cwd=ROOT,
    )
    assert child.stdout is not None
    address = (await child.stdout.readline()).decode().strip()
    assert address, "the process did not start"
    async with AsyncClient(address) as client:
        await client.models()
    yield address, psutil.Process(child.pid)
    child.kill()
    await child.wait()


async def test_huge_messages_are_refused_with_memory_flat(redis: Redis, process: tuple[str, psutil.Process]) -> None:
    address, server = process
    keys = sorted(await redis.keys("*"))
    before = peak_rss(server)
    message_bytes = 100 * MIB
    huge = images_pb2.GenerateRequest(prompt="x" * message_bytes)
    async with open_channel(address, max_message_bytes=200 * MIB) as channel:
        stub = images_pb2_grpc.ImageGenerationStub(channel)
        for _ in range(3):
            assert await stub.Submit(huge).code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert peak_rss(server) - before < message_bytes / 2, "a message was held"
    await assert_well(address)
    assert sorted(await redis.keys("*")) == keys


async def test_garbage_on_the_port_is_refused_with_memory_flat(process: tuple[str, psutil.Process]) -> None:
    address, server = process
    host, _, port = address.rpartition(":")
    before = peak_rss(server)
    generator, sent_bytes = random.Random(7), 0
    preambles = [b"", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00"]
    for i in range(200):
        garbage = preambles[i % 4] + generator.randbytes(generator.choice([10, 1000, 3 * MIB]))
        sent_bytes += len(garbage)
        with socket.create_connection((host, int(port)), timeout=HANG_S) as connection:
            try:
                connection.sendall(garbage)
            except OSError:  # hung up on us midway
                continue
    assert peak_rss(server) - before < sent_bytes / 4, "garbage was kept"
    await assert_well(address)


async def test_text_that_is_no_utf_8_is_refused_by_the_field(process: tuple[str, psutil.Process]) -> None:
    address, _ = process
    async with open_channel(address) as channel:
        for method, stream in (("Submit", False), ("Generate", True)):
            make = channel.unary_stream if stream else channel.unary_unary
            call = make(f"/synerdiff.v1.ImageGeneration/{method}")(bytes.fromhex("1a0461fffe62"), timeout=HANG_S)
            assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert await call.details() == "prompt: byte 0xff at index 1 of 4 is not UTF-8"


async def assert_well(address: str) -> None:
    async with AsyncClient(address) as client:
        assert [model.card.name for model in await client.models()] == ["emoji"]


def peak_rss(process: psutil.Process) -> int:
    """The most memory that a process ever had resident, in bytes: not even for a moment may a message be held."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))
