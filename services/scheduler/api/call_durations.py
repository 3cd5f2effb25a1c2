"""How long calls of the public and the operators' API take, by method and status code."""

import asyncio
import contextlib
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import grpc
from prometheus_client import Histogram

from synerdiff.interceptors import WrappingInterceptor
from synerdiff.status import code_name

_PACKAGE = "/synerdiff.v1."  # not health and reflection, which probes ask all day

_seconds = Histogram(
    "synerdiff_rpc_seconds",
    "First message of a gRPC call to its status; streams take as long as they are followed",
    ["method", "code"],
    buckets=(0.002, 0.005, 0.01, 0.025, 0.1, 0.25, 1.0, 2.5, 10.0, 30.0, 60.0, 300.0),
)


class CallDurations(WrappingInterceptor):
    """To stand before the interceptors that turn errors into status codes. A client that leaves is CANCELLED."""

    def wrapped(self, handler: Any, method: str) -> Any:
        """The handler, timed."""
        if not method.startswith(_PACKAGE):
            return handler
        requests = "stream" if handler.request_streaming else "unary"
        kind = f"{requests}_{'stream' if handler.response_streaming else 'unary'}"
        behaviour = getattr(handler, kind)
        timed = _timed_generator if inspect.isasyncgenfunction(behaviour) else _timed_coroutine
        return getattr(grpc, f"{kind}_rpc_method_handler")(
            timed(behaviour, method.removeprefix(_PACKAGE)), handler.request_deserializer, handler.response_serializer
        )


def _timed_coroutine(behaviour: Callable[[Any, Any], Awaitable[Any]], method: str) -> Any:
    async def call(request: Any, context: Any) -> Any:
        with _timed(method, context):
            return await behaviour(request, context)

    return call


def _timed_generator(behaviour: Callable[[Any, Any], AsyncIterator[Any]], method: str) -> Any:
    async def call(request: Any, context: Any) -> AsyncIterator[Any]:
        with _timed(method, context):
            async with contextlib.aclosing(behaviour(request, context)) as replies:  # type: ignore[type-var]
                async for reply in replies:
                    yield reply

    return call


@contextlib.contextmanager
def _timed(method: str, context: Any) -> Iterator[None]:
    """Observe the time of the block, under the status code of the call."""
    began_s, code = time.perf_counter(), "OK"
    try:
        yield
    except BaseException as error:
        answered = context.code()
        left = isinstance(error, asyncio.CancelledError | GeneratorExit)
        code = "CANCELLED" if left else code_name(getattr(answered, "value", (answered,))[0])
        raise
    finally:
        _seconds.labels(method, code).observe(time.perf_counter() - began_s)
