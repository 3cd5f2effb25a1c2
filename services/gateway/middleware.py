"""Around every request: its id, its line in the log, its place in the metrics, and bounds on its size and its time."""

import time
import uuid
from collections.abc import Mapping, MutableMapping
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.gateway import metrics
from services.gateway.errors import ApiError, too_many
from synerdiff.telemetry import get_logger

log = get_logger("http")

# Probes and scrapes come every few seconds, and carry no information.
_QUIET = frozenset({"/healthz", "/readyz", "/metrics"})
_FULL = too_many("too many open requests", 1.0, "too_many_requests")
_HUNG_UP = 499  # as nginx has it: the client went before it was answered


class Observed:
    """An ASGI application whose requests are counted, timed and logged."""

    def __init__(self, app: ASGIApp, max_open_requests: int) -> None:
        self._app = app
        self._max_open = max_open_requests
        self._open = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = _Request(scope, send)
        app = self._app if self._open < self._max_open else _FULL.response()
        self._open += 1
        metrics.OPEN_REQUESTS.inc()
        try:
            await app(scope, receive, request.send)
        except Exception as error:
            await request.failed(error, receive)
        finally:
            self._open -= 1
            metrics.OPEN_REQUESTS.dec()
            request.ended()


class _Request:
    """One request, as seen from outside."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self._scope: MutableMapping[str, Any] = scope
        self._send = send
        self._status = _HUNG_UP
        self._began_s = time.perf_counter()
        # The Idempotency-Key where there is one, as the schedulers' logs call the request.
        key = next((value for name, value in scope["headers"] if name == b"idempotency-key"), b"")
        self._id = key.decode("latin-1") or uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = self._id

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            MutableHeaders(scope=message)["x-request-id"] = self._id
        await self._send(message)

    async def failed(self, error: Exception, receive: Receive) -> None:
        """Answer with an internal error; an answer that has begun is cut instead."""
        error_id = uuid.uuid4().hex
        log.error("request failed", path=self._scope["path"][:256], error_id=error_id, exc_info=error)
        if self._status == _HUNG_UP:
            message = f"internal error; the gateway's log has it under error_id {error_id}"
            answer = ApiError(500, message, "server_error", None, "internal_error").response()
            await answer(self._scope, receive, self.send)

    def ended(self) -> None:
        seconds = time.perf_counter() - self._began_s
        # The path as declared: a path that a client makes up must not name a series.
        route = getattr(self._scope.get("route"), "path", "") or "other"
        metrics.REQUESTS.labels(route, self._status).inc()
        metrics.REQUEST_SECONDS.labels(route).observe(seconds)
        if route not in _QUIET:
            method, path = self._scope["method"], self._scope["path"][:256]
            fields = {"status": self._status, "duration_ms": round(seconds * 1e3, 1), "request_id": self._id}
            log.info("answered", method=method, path=path, **fields)


class BoundedBodies:
    """An ASGI application whose request bodies are bounded by `bounds` of their path, or by `bound`, in bytes.

    Starlette's middleware of this kind answers with its own message.
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
        too_large = f"the body is longer than {bound} bytes"
        length = Headers(scope=scope).get("content-length", "")
        if length.isdigit() and int(length) > bound:
            await ApiError(413, too_large, code="body_too_large").response()(scope, receive, send)
            return
        got = 0

        async def bounded() -> Message:
            nonlocal got
            message = await receive()
            got += len(message.get("body", b""))
            if got > bound:
                raise HTTPException(413, too_large)
            return message

        await self._app(scope, bounded, send)
