"""The server interceptor that lets servicers simply raise: SynerDiffError becomes its status, all else INTERNAL.

Bytes that are no message of a method are the caller's mistake: INVALID_ARGUMENT, where gRPC itself answers UNKNOWN.
"""

import asyncio
import contextlib
import inspect
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NoReturn

import grpc
from google.protobuf.message import DecodeError

from synerdiff.errors import FieldViolation, InvalidRequest, SynerDiffError
from synerdiff.malformed import refusal
from synerdiff.rpc_handlers import WrappingInterceptor
from synerdiff.status import abort
from synerdiff.telemetry import get_logger

_log = get_logger("rpc")


# Raises SynerDiffError for a call that may not be made: asked with its context and "/package.Service/Method".
Check = Callable[[Any, str], None]


def let_all_in(context: Any, method: str) -> None:
    """The Check of a server that asks nobody who they are."""


class ErrorInterceptor(WrappingInterceptor):
    """Wraps every method of a server. Cancellation passes through untouched.

    `check` comes before a call's first message is read.
    """

    def __init__(self, check: Check = let_all_in) -> None:
        super().__init__()
        self._check = check

    def wrapped(self, handler: Any, method: str) -> Any:
        """The handler, with its behaviour wrapped."""
        return _wrapped(handler, method, self._check)


def _wrapped(handler: Any, method: str, check: Check) -> Any:
    """The handler, taking its requests as a stream: gRPC never ends a call of one request that comes without any."""
    replies = "stream" if handler.response_streaming else "unary"
    behaviour = getattr(handler, f"{'stream' if handler.request_streaming else 'unary'}_{replies}")
    wrap = _wrap_generator if inspect.isasyncgenfunction(behaviour) else _wrap_coroutine
    return getattr(grpc, f"stream_{replies}_rpc_method_handler")(
        wrap(behaviour, method, check, _all if handler.request_streaming else _first),
        _forgiving(handler.request_deserializer),
        handler.response_serializer,
    )


def _forgiving(deserialize: Callable[[bytes], Any] | None) -> Callable[[bytes], Any] | None:
    """A deserializer that hands on why bytes are no message, for gRPC has no word for that."""
    if deserialize is None:
        return None

    def deserialized(data: bytes) -> Any:
        try:
            return deserialize(data)
        except DecodeError:
            return refusal(deserialize, data)

    return deserialized


def _well_formed(request: Any) -> Any:
    if isinstance(request, InvalidRequest):
        raise request
    return request


async def _first(requests: AsyncIterator[Any]) -> Any:
    async for request in requests:
        return _well_formed(request)
    raise InvalidRequest(FieldViolation("request", "the call ended without a message"))


async def _all(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async def well_formed() -> AsyncIterator[Any]:
        async for request in requests:
            yield _well_formed(request)

    return well_formed()


_Take = Callable[[AsyncIterator[Any]], Awaitable[Any]]


def _wrap_coroutine(behaviour: Callable[[Any, Any], Awaitable[Any]], method: str, check: Check, take: _Take) -> Any:
    async def call(requests: AsyncIterator[Any], context: Any) -> Any:
        try:
            check(context, method)
            return await behaviour(await take(requests), context)
        except Exception as error:
            await _answer(context, method, error)

    return call


def _wrap_generator(behaviour: Callable[[Any, Any], AsyncIterator[Any]], method: str, check: Check, take: _Take) -> Any:
    async def call(requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        try:
            check(context, method)
            async with contextlib.aclosing(behaviour(await take(requests), context)) as replies:  # type: ignore[type-var]
                async for reply in replies:
                    yield reply
        except Exception as error:
            await _answer(context, method, error)

    return call


async def _answer(context: Any, method: str, error: Exception) -> NoReturn:
    if isinstance(error, grpc.aio.AbortError):
        raise error
    if context.cancelled() or isinstance(error, grpc.aio.InternalError):  # a broken connection
        raise asyncio.CancelledError from error  # the client has left: whatever went wrong, nobody is there to be told
    if isinstance(error, SynerDiffError):
        await abort(context, error)
    if isinstance(error, NotImplementedError):  # a method of the contract that this servicer does not have
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, f"{method} is not served here")
    error_id = uuid.uuid4().hex
    _log.error("call failed", method=method, error_id=error_id, exc_info=error)
    await abort(context, SynerDiffError(f"internal error; the server's log has it under error_id {error_id}"))
