"""A local deployment from its start to its end, as a context."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass

import grpc
import redis.exceptions

from synerdiff.redis_client import EvictingRedis, check_keeps_all, connect
from synerdiff.rpc import open_channel
from synerdiff.v1 import images_pb2, images_pb2_grpc
from synerdiff_cli.deployment import Deployment, LocalOptions, OptionError, plan_deployment
from synerdiff_cli.startup_display import StartupDisplay
from synerdiff_cli.supervisor import Supervisor


class RedisUnreachable(RuntimeError):
    """Nothing that answers like a Redis is at the URL given."""


@dataclass(frozen=True)
class Running:
    """A deployment that takes requests. Work through `supervisor.guard`, so that it ends when a process gives up."""

    deployment: Deployment
    supervisor: Supervisor


@contextlib.asynccontextmanager
async def running(options: LocalOptions) -> AsyncIterator[Running]:
    """Start everything; inside the block it takes requests for every model; after it all processes are gone.

    Raises OptionError, RedisStartError, RedisUnreachable, or ChildGaveUp when a process keeps dying.
    """
    _check_port_is_free("--listen", options.listen)
    _check_port_is_free("--gateway", options.gateway)
    if options.redis_url:
        await check_redis(options.redis_url)
    deployment = plan_deployment(options)
    with StartupDisplay(deployment.children) as display:
        async with Supervisor(deployment.children, on_change=display.change, on_refused=display.refuse) as supervisor:
            await supervisor.start()
            names = {model.name for model in options.models}
            await supervisor.guard(_models_are_available(deployment.addresses[0], names, supervisor.left_out))
            display.close()
            yield Running(deployment, supervisor)


def _check_port_is_free(flag: str, listen: str) -> None:
    host, _, port = listen.rpartition(":")
    if not port.isdecimal() or port == "0":
        return
    with socket.socket(socket.AF_INET6 if host.startswith("[") else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host.strip("[]"), int(port)))
        except (OSError, OverflowError) as error:
            raise OptionError(
                f"{flag}: cannot listen on {listen} ({error.strerror if isinstance(error, OSError) else error})"
            ) from error


async def check_redis(url: str) -> None:
    """Raise OptionError for an invalid URL or a Redis that evicts; RedisUnreachable where none answers."""
    try:
        async with connect(url) as client:
            await client.ping()
            await check_keeps_all(client)
    except EvictingRedis as error:
        raise OptionError(f"--redis-url: {error}") from error
    except ValueError as error:
        raise OptionError(f"--redis-url: {url!r} is no Redis URL ({error})") from error
    except redis.exceptions.RedisError as error:
        raise RedisUnreachable(f"--redis-url: no Redis answers at {url} ({error})") from error


async def _models_are_available(address: str, names: set[str], left_out: set[str]) -> None:
    """Return once the scheduler knows a worker of each kind for every model not in `left_out`, which may grow."""
    async with open_channel(address) as channel:
        stub = images_pb2_grpc.ImageGenerationStub(channel)
        available: set[str] = set()
        while not names - left_out <= available:
            with contextlib.suppress(grpc.aio.AioRpcError):
                reply = await stub.ListModels(images_pb2.ListModelsRequest(), timeout=2)
                available = {card.name for card in reply.models if card.available}
            await asyncio.sleep(0.1)
