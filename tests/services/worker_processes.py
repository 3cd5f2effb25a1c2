"""Worker processes as they are started in production, and an arena behind gRPC as its owner serves it."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from synerdiff.latents.arena import Arena
from synerdiff.latents.service import LatentsArenaServicer
from synerdiff.registry import WorkerRecord, WorkerRegistry
from synerdiff.rpc import ServiceHost
from synerdiff.v1 import stages_pb2_grpc
from tests.waiting import HANG_S


@asynccontextmanager
async def worker_process(module: str, *flags: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """`python -m module`, killed at the end if it is still there."""
    command = (sys.executable, "-m", module, *flags, "--threads", "1")
    process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def announced(registry: WorkerRegistry, pool: str = "test") -> WorkerRecord:
    """The pool's only worker, once there is one."""
    async with asyncio.timeout(HANG_S):
        while not (workers := await registry.workers(pool)):
            await asyncio.sleep(0.05)
    return workers[0]


@asynccontextmanager
async def served_arena(arena: Arena, listen: str = "127.0.0.1:0") -> AsyncIterator[str]:
    """The arena's address; the arena is closed at the end."""
    host = ServiceHost()
    host.add("arena", stages_pb2_grpc.add_LatentsArenaServicer_to_server, LatentsArenaServicer(arena))
    try:
        yield await host.start(listen)
    finally:
        await host.drain(0)
        arena.close()
