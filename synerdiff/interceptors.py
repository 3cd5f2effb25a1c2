"""Server interceptors: one wraps each method of its server once, the other turns raised errors into statuses.

Bytes that are no message of a method are the caller's mistake: INVALID_ARGUMENT, where gRPC itself answers UNKNOWN.
"""

import asyncio
import contextlib
import inspect
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, NoReturn

import grpc
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet

from synerdiff.errors import FieldViolation, InvalidRequest, SynerDiffError
from synerdiff.status import abort
from synerdiff.telemetry import get_logger

_LENGTH_DELIMITED = 2  # the wire type of strings, bytes and messages

# Raises SynerDiffError for a forbidden call, by its context and "/package.Service/Method".
Check = Callable[[Any, str], None]

_Take = Callable[[AsyncIterator[Any]], Awaitable[Any]]


class WrappingInterceptor(grpc.aio.ServerInterceptor, ABC):  # type: ignore[misc]
    """Puts `wrapped` in the place of every handler, and caches it, because a server's handlers never change."""

    def __init__(self) -> None:
        self._wrapped: dict[str, Any] = {}  # by method

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: grpc.HandlerCallDetails
    ) -> Any:
        """The continuation's handler, wrapped."""
        method = handler_call_details.method
        if method not in self._wrapped:
            handler = await continuation(handler_call_details)
            if handler is None:
                return None
            self._wrapped[method] = self.wrapped(handler, method)
        return self._wrapped[method]

    @abstractmethod
    def wrapped(self, handler: Any, method: str) -> Any:
        """The handler of "/package.Service/Method" that replaces `handler`."""


def refusal(deserialize: Callable[[bytes], Any], data: bytes) -> InvalidRequest:
    """Why `data` is refused by `deserialize`, a message class's FromString."""
    descriptor = getattr(getattr(deserialize, "__self__", None), "DESCRIPTOR", None)
    violations = tuple(_bad_texts(descriptor, data)) if descriptor is not None else ()
    if violations:
        return InvalidRequest(*violations)
    name = descriptor.name if descriptor is not None else "message"
    return InvalidRequest(FieldViolation("request", f"{len(data)} bytes that are no serialized {name}"))


def _bad_texts(descriptor: Any, data: bytes) -> Iterator[FieldViolation]:
    """The string fields whose bytes are not UTF-8. Protobuf reads unknown fields without that check."""
    message = Empty()
    try:
        message.ParseFromString(data)
    except DecodeError:
        return
    unknowns = UnknownFieldSet(message)
    for unknown in (unknowns[at] for at in range(len(unknowns))):
        field = descriptor.fields_by_number.get(unknown.field_number)
        if field is None or field.type != FieldDescriptor.TYPE_STRING or unknown.wire_type != _LENGTH_DELIMITED:
            continue
        try:
            unknown.data.decode()
        except UnicodeDecodeError as error:
            wrong = f"byte {unknown.data[error.start]:#04x} at index {error.start} of {len(unknown.data)}"
            yield FieldViolation(field.name, f"{wrong} is not UTF-8")


_log = get_logger("rpc")


def let_all_in(context: Any, method: str) -> None:
    """The Check of a server without authentication."""


class ErrorInterceptor(WrappingInterceptor):
    """Wraps every method of a server; cancellation passes through. `check` comes before a call's first message."""

    def __init__(self, check: Check = let_all_in) -> None:
        super().__init__()
        self._check = check

    def wrapped(self, handler: Any, method: str) -> Any:
        """The handler, with its behaviour wrapped."""
        return _wrapped(handler, method, self._check)


def _wrapped(handler: Any, method: str, check: Check) -> Any:
    """The handler, taking its requests as a stream: gRPC never ends a unary call that comes without its request."""
    replies = "stream" if handler.response_streaming else "unary"
    behaviour = getattr(handler, f"{'stream' if handler.request_streaming else 'unary'}_{replies}")
    wrap = _wrap_generator if inspect.isasyncgenfunction(behaviour) else _wrap_coroutine
    return getattr(grpc, f"stream_{replies}_rpc_method_handler")(
        wrap(behaviour, method, check, _all if handler.request_streaming else _first),
        _forgiving(handler.request_deserializer),
        handler.response_serializer,
    )


def _forgiving(deserialize: Callable[[bytes], Any] | None) -> Callable[[bytes], Any] | None:
    """A deserializer that returns the refusal of malformed bytes, which gRPC could not report."""
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
        raise asyncio.CancelledError from error  # the client has left: no one would receive the error
    if isinstance(error, SynerDiffError):
        await abort(context, error)
    if isinstance(error, NotImplementedError):  # a method of the contract that this servicer does not have
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, f"{method} is not served here")
    error_id = uuid.uuid4().hex
    _log.error("call failed", method=method, error_id=error_id, exc_info=error)
    await abort(context, SynerDiffError(f"internal error; the server's log has it under error_id {error_id}"))
