"""A server interceptor that wraps each method of its server once."""

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import Any

import grpc


class WrappingInterceptor(grpc.aio.ServerInterceptor, ABC):  # type: ignore[misc]
    """Puts `wrapped` in the place of every handler, and keeps it: a server's handlers stay the same."""

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
        """What answers "/package.Service/Method" instead of the handler."""
