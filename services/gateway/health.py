"""/healthz, /readyz and /metrics: for those who run a gateway."""

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.responses import PlainTextResponse, Response

from services.gateway.gateway import gateway_of

router = APIRouter(tags=["health"], include_in_schema=False)


@router.get("/healthz")
async def healthz() -> Response:
    """200 while the process lives."""
    return PlainTextResponse("ok\n")


@router.get("/readyz")
async def readyz(request: Request) -> Response:
    """200 from the first answer of a scheduler until the process drains, else 503."""
    return PlainTextResponse("ok\n") if gateway_of(request).ready else PlainTextResponse("not ready\n", 503)


@router.get("/metrics")
async def metrics() -> Response:
    """What the process counts, for Prometheus."""
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)
