"""A scheduler's status of its pool."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable, Sequence

import grpc

from synerdiff.rpc import open_channel
from synerdiff.v1 import operations_pb2, operations_pb2_grpc

Status = operations_pb2.GetStatusResponse


async def status_of(address: str) -> Status | None:
    """The status; None where no scheduler answers."""
    async with open_channel(address) as channel:
        with contextlib.suppress(grpc.aio.AioRpcError):
            stub = operations_pb2_grpc.OperationsStub(channel)
            status: Status = await stub.GetStatus(operations_pb2.GetStatusRequest(), timeout=10)
            return status
    return None


async def until(address: str, holds: Callable[[Status], bool], within_s: float = 600.0) -> Status:
    """The status once it is so. Raises TimeoutError."""
    async with asyncio.timeout(within_s):
        while True:
            status = await status_of(address)
            if status and holds(status):
                return status
            await asyncio.sleep(0.1)


async def leaders_status(addresses: Iterable[str]) -> Status | None:
    """The pool as its leader sees it; None where no scheduler answers that leads."""
    for address in addresses:
        status = await status_of(address)
        if status and status.leader:
            return status
    return None


async def attached_again(addresses: Sequence[str], dead_s: float = 0.5) -> None:
    """Return once the leader has a worker of each kind; it gets `dead_s` seconds to notice a death first."""
    await asyncio.sleep(dead_s)
    kinds: set[str] = set()
    while kinds != {"unet", "vae"}:
        await asyncio.sleep(0.1)
        status = await leaders_status(addresses)
        kinds = {worker.kind for worker in status.workers if worker.attached} if status else set()


async def slots_used(addresses: Sequence[str], within_s: float = 30.0) -> int:
    """Slots that hold a task by the leader's count, once it is 0 or time is up; -1 where no worker is attached."""
    give_up_at, used = time.monotonic() + within_s, -1
    while used != 0 and time.monotonic() < give_up_at:
        await asyncio.sleep(0.1)
        status = await leaders_status(addresses)
        unets = [worker for worker in status.workers if worker.kind == "unet"] if status else []
        attached = bool(unets) and all(worker.attached for worker in unets)
        used = sum(worker.slots_used for worker in unets) if attached else -1
    return used
