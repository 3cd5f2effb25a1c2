"""The life of a gateway process: serve HTTP, be ready once a scheduler has answered, drain on SIGTERM."""

import asyncio
import contextlib
import gc
import math
import socket
from collections.abc import Iterator, Sequence

import uvicorn
import uvloop
from fastapi import FastAPI

from services.gateway.app import create_app
from services.gateway.gateway import Gateway
from services.gateway.settings import GatewaySettings
from synerdiff.errors import SynerDiffError
from synerdiff.settings import load
from synerdiff.stopping import cancel_and_wait, first_of, stop_signal
from synerdiff.telemetry import configure_logging, get_logger, serve_metrics

log = get_logger("process")

_ASK_EVERY_S = 0.2
_BACKLOG = 2048
# Longer than load balancers keep a connection: closing one while a request is on its way is an error there.
_KEEP_ALIVE_S = 75


def main(argv: Sequence[str] | None = None) -> int:
    """Run a gateway until SIGTERM or SIGINT. Returns the exit status: 1 when its port cannot be had."""
    settings = load(GatewaySettings, argv)
    configure_logging("gateway", settings.log_level)
    serve_metrics("gateway", settings.metrics_port)
    return uvloop.run(serve(settings))


async def serve(settings: GatewaySettings) -> int:
    """Serve until a signal asks for the end. Returns the exit status."""
    stop = stop_signal()
    try:
        listening = _listen(settings.listen)
    except OSError as error:
        log.critical("cannot start", reason=f"cannot listen on {settings.listen!r}: {error.strerror}")
        return 1
    app = create_app(settings)
    server = _Server(app, settings)
    serving = asyncio.create_task(server.serve([listening]), name="http")
    try:
        await first_of(server.up.wait(), asyncio.wait({serving}))
        _spare_collections()
        log.info("serving", address=_address(listening), scheduler=settings.scheduler)
        asking = asyncio.create_task(_ready_once_answered(app.state.gateway))
        try:
            await stop.wait()
        finally:
            await cancel_and_wait(asking)
        log.info("draining")
        app.state.gateway.ready = False
        server.should_exit = True
        await serving
    finally:
        await cancel_and_wait(serving)
    return 0


async def _ready_once_answered(gateway: Gateway) -> None:
    told: set[object] = set()
    while not gateway.ready:
        try:
            await gateway.catalogue.models(gateway.client)
            gateway.ready = True
            log.info("ready")
        except SynerDiffError as error:
            if error.code not in told:
                log.warning("not ready", reason=str(error))
            told.add(error.code)
            await asyncio.sleep(_ASK_EVERY_S)


def _spare_collections() -> None:
    """Requests make many short-lived values and few cycles; collections skip the objects loaded before."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)


def _listen(listen: str) -> socket.socket:
    """A bound socket. Raises OSError."""
    host, _, port = listen.rpartition(":")
    family = socket.AF_INET6 if host.startswith("[") else socket.AF_INET
    return socket.create_server((host.strip("[]"), int(port)), family=family, backlog=_BACKLOG)


def _address(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class _Server(uvicorn.Server):
    """A server that leaves signals to the process, and says when it is up."""

    def __init__(self, app: FastAPI, settings: GatewaySettings) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http="httptools",
                ws="none",
                lifespan="on",
                log_config=None,
                log_level="critical",  # its messages are not in our log's format
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=_KEEP_ALIVE_S,
                timeout_graceful_shutdown=math.ceil(settings.drain_grace_s),
                ssl_certfile=settings.https_certificate,
                ssl_keyfile=settings.https_key,
            )
        )
        self.up = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept connections."""
        await super().startup(sockets)
        self.up.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield
