"""A local deployment from its start to its end, as a context."""

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from typing import Self

import grpc
import redis.exceptions
from rich.markup import escape
from rich.status import Status

from synerdiff.redis_client import EvictingRedis, check_keeps_all, connect
from synerdiff.rpc import open_channel
from synerdiff.v1 import images_pb2, images_pb2_grpc
from synerdiff_cli.console import err
from synerdiff_cli.deployment import Deployment, LocalOptions, OptionError, plan_deployment
from synerdiff_cli.supervisor import ChildSpec, ChildState, Supervisor


class StartupDisplay:
    """`with StartupDisplay(children) as display`, and `display.change` as the supervisor's listener."""

    def __init__(self, children: Iterable[ChildSpec]) -> None:
        self._children = {child.name: child for child in children}
        self._states = dict.fromkeys(self._children, ChildState.STOPPED)
        self._began = time.monotonic()
        self._status: Status | None = None

    def __enter__(self) -> Self:
        if err.is_terminal:
            self._status = err.status(self._line())
            self._status.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def close(self) -> None:
        """End the live line; further changes are told in lines of their own."""
        if self._status is not None:
            self._status.stop()
            self._status = None

    def change(self, name: str, state: ChildState) -> None:
        """Show that the child `name` is in `state` now."""
        if state is ChildState.RESTARTING:
            err.print(f"[yellow]{name} died and is started again[/]; its log is {self._children[name].log}")
        elif state is ChildState.READY and self._status is None:
            err.print(f"{name} is ready after {time.monotonic() - self._began:.1f} s")
        self._states[name] = state
        if self._status is not None:
            self._status.update(self._line())

    def refuse(self, model: str, reason: str) -> None:
        """Show that a model is left out."""
        err.print(f"[red]{escape(model)} is not served[/]: {escape(reason)}", soft_wrap=True)
        if self._status is not None:
            self._status.update(self._line())

    def _line(self) -> str:
        waiting = [name for name, state in self._states.items() if state is not ChildState.READY]
        count, ready = len(self._states), len(self._states) - len(waiting)
        if not waiting:
            return f"All {count} processes are ready; waiting until the scheduler has found the workers"
        return f"Starting {count} processes, {ready} ready; waiting for {', '.join(waiting)}"


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
