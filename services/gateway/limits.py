"""How much a stranger may send: a body past its bound is refused, from its length alone where that is told."""

from collections.abc import Mapping

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.gateway.errors import INVALID, ApiError


class BoundedBodies:
    """An ASGI application that gets no more than `bounds` of its path says, or `bound`, in bytes.

    Starlette has one of these, which answers in words of its own.
    """

    def __init__(self, app: ASGIApp, bound: int, bounds: Mapping[str, int]) -> None:
        self._app = app
        self._bound = bound
        self._bounds = bounds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        bound = self._bounds.get(scope["path"], self._bound)
        length = Headers(scope=scope).get("content-length", "")
        if length.isdigit() and int(length) > bound:
            error = ApiError(413, _too_large(bound), INVALID, None, "body_too_large")
            await error.response()(scope, receive, send)
            return
        await self._app(scope, _bounded(receive, bound), send)


def _bounded(receive: Receive, bound: int) -> Receive:
    got = 0

    async def bounded() -> Message:
        nonlocal got
        message = await receive()
        got += len(message.get("body", b""))
        if got > bound:
            raise HTTPException(413, _too_large(bound))
        return message

    return bounded


def _too_large(bound: int) -> str:
    return f"the body is longer than {bound} bytes"
