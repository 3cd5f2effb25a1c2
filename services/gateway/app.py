"""The HTTP application: its routes, probes and metrics, and the answers to all errors in them."""

import contextlib
from collections.abc import AsyncIterator
from importlib import metadata
from pathlib import Path

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse, Response
from starlette.staticfiles import StaticFiles

from services.gateway import models, pages_api
from services.gateway.errors import INVALID, ApiError, api_error, invalid_body
from services.gateway.following import HungUp
from services.gateway.gateway import gateway_of, open_gateway
from services.gateway.images import routes as images
from services.gateway.middleware import BoundedBodies, Observed
from services.gateway.settings import GatewaySettings
from synerdiff.errors import SynerDiffError

PAGES = Path(__file__).with_name("pages")

# Two prompts of 8 KiB, written as JSON escapes, and the other fields.
MAX_BODY_BYTES = 256 << 10

_CODES = {404: "not_found", 405: "method_not_allowed", 413: "body_too_large"}


health = APIRouter(tags=["health"], include_in_schema=False)


@health.get("/healthz")
async def healthz() -> Response:
    """200 while the process lives."""
    return PlainTextResponse("ok\n")


@health.get("/readyz")
async def readyz(request: Request) -> Response:
    """200 from the first answer of a scheduler until the process drains, else 503."""
    return PlainTextResponse("ok\n") if gateway_of(request).ready else PlainTextResponse("not ready\n", 503)


@health.get("/metrics")
async def metrics() -> Response:
    """The process's metrics, for Prometheus."""
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)


def create_app(settings: GatewaySettings) -> FastAPI:
    """The application of one gateway; it connects when it is started."""

    @contextlib.asynccontextmanager
    async def connected(app: FastAPI) -> AsyncIterator[None]:
        async with open_gateway(settings) as gateway:
            app.state.gateway = gateway
            yield

    app = FastAPI(
        title="SynerDiff",
        summary="The OpenAI images API, served by SynerDiff",
        version=metadata.version("synerdiff"),
        lifespan=connected,
        docs_url=None,
        redoc_url=None,
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    for router in (images.router, models.router, pages_api.router, health):
        app.include_router(router)
    app.mount("/", StaticFiles(directory=PAGES, html=True), name="pages")
    app.add_middleware(BoundedBodies, bound=MAX_BODY_BYTES, bounds={images.EDITS: images.MAX_EDIT_BYTES})
    app.add_middleware(Observed, max_open_requests=settings.max_open_requests)
    _answer_errors(app)
    return app


def _answer_errors(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    async def refused(request: Request, error: ApiError) -> Response:
        return error.response()

    @app.exception_handler(SynerDiffError)
    async def failed(request: Request, error: SynerDiffError) -> Response:
        return api_error(error).response()

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return invalid_body(error.errors()).response()

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        code = _CODES.get(error.status_code, "bad_request")
        return ApiError(error.status_code, str(error.detail), INVALID, None, code, error.headers).response()

    @app.exception_handler(HungUp)
    @app.exception_handler(ClientDisconnect)
    async def hung_up(request: Request, error: Exception) -> Response:
        return Response(status_code=499)
