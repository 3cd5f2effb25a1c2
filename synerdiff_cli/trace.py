"""`synerdiff trace`: the last ticks of a running system, as a file for Perfetto and as a picture."""

import json
from pathlib import Path
from typing import Annotated

import grpc
import typer

from synerdiff.status import from_rpc_error
from synerdiff.v1 import operations_pb2, operations_pb2_grpc
from synerdiff_cli.console import EXIT_FAILED, EXIT_INVALID, err, errors_as_lines, fail, out
from synerdiff_cli.interruption import run
from synerdiff_cli.making import connected
from synerdiff_cli.server import DEFAULT_ADDRESS, Address, Server, TlsCa, server_at

_TIMEOUT_S = 60.0
_DEFAULT_FILE = Path("synerdiff-trace.json")
PICTURE_SUFFIXES = (".png", ".svg", ".pdf")


def trace(
    domain: Annotated[str, typer.Option(help="Only this domain. Default: all.")] = "",
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help=f"File to write. Default: {_DEFAULT_FILE}, or none with --plot."),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the last seconds as a picture: .png, .svg or .pdf.")] = None,
    seconds: Annotated[float, typer.Option(help="Seconds of the picture.", min=0.01)] = 4.0,
    address: Address = DEFAULT_ADDRESS,
    tls_ca: TlsCa = "",
) -> None:
    """Fetch the last ticks from the scheduler that leads, for https://ui.perfetto.dev or chrome://tracing."""
    if plot is not None and plot.suffix.lower() not in PICTURE_SUFFIXES:
        fail(f"--plot: {plot} has no suffix of a picture: one of {', '.join(PICTURE_SUFFIXES)}", EXIT_INVALID)
    for option, path in (("-o", output), ("--plot", plot)):
        if path is not None and not path.parent.is_dir():
            fail(f"{option}: there is no folder {path.parent}", EXIT_INVALID)
    with errors_as_lines():
        found = run(_trace(server_at(address, tls_ca), domain))
        if output is not None or plot is None:
            file = output or _DEFAULT_FILE
            file.write_bytes(found)
            out.print(str(file), markup=False)
        if plot is not None:
            _draw(found, plot, seconds)


def _draw(found: bytes, plot: Path, seconds: float) -> None:
    from synerdiff_cli.trace_picture import MissingMatplotlib, NothingToDraw, draw_trace

    try:
        draw_trace(json.loads(found)["traceEvents"], plot, seconds)
    except NothingToDraw:
        err.print("nothing to draw: no tick has run yet")
        raise typer.Exit(EXIT_FAILED) from None
    except MissingMatplotlib as error:
        fail(str(error), EXIT_FAILED)
    out.print(str(plot), markup=False)


async def _trace(server: Server, domain: str) -> bytes:
    async with connected(server), server.channel() as channel:
        stub = operations_pb2_grpc.OperationsStub(channel)
        try:
            request = operations_pb2.GetTraceRequest(domain=domain)
            reply = await stub.GetTrace(request, timeout=_TIMEOUT_S, metadata=server.metadata)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error
        return bytes(reply.trace_json)
