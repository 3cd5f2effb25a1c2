"""`synerdiff trace`: the last ticks of a running system, as a file for Perfetto and as a picture."""

import json
from pathlib import Path
from typing import Annotated

import typer

from synerdiff.v1 import operations_pb2
from synerdiff_cli.console import EXIT_FAILED, err, errors_as_lines, out
from synerdiff_cli.interruption import run
from synerdiff_cli.output_files import check_folder, check_plot
from synerdiff_cli.server import DEFAULT_ADDRESS, Address, TlsCa, asked, server_at
from synerdiff_cli.trace_picture import NothingToDraw, draw_trace

_TIMEOUT_S = 60.0
_DEFAULT_FILE = Path("synerdiff-trace.json")


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
    check_folder("-o", output)
    check_plot(plot)
    with errors_as_lines():
        request = operations_pb2.GetTraceRequest(domain=domain)
        found = run(asked(server_at(address, tls_ca), "GetTrace", request, _TIMEOUT_S)).trace_json
        if output is not None or plot is None:
            file = output or _DEFAULT_FILE
            file.write_bytes(found)
            out.print(str(file), markup=False)
        if plot is not None:
            _draw(found, plot, seconds)


def _draw(found: bytes, plot: Path, seconds: float) -> None:
    try:
        draw_trace(json.loads(found)["traceEvents"], plot, seconds)
    except NothingToDraw:
        err.print("nothing to draw: no tick has run yet")
        raise typer.Exit(EXIT_FAILED) from None
    out.print(str(plot), markup=False)
