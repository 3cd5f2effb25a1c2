"""`synerdiff bench`: a load on one or several servers, latencies counted from when each request was due."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from synerdiff.client.load.requests import LoadRequest, Mix
from synerdiff.client.load.summary import Ratio, Summary, summarise, window_ratios
from synerdiff.client.options import generate_request
from synerdiff.errors import FieldViolation, InvalidRequest
from synerdiff_cli.bench_display import (
    BenchDisplay,
    errors_of,
    plot_bench,
    ratio_table,
    slowness,
    summary_table,
    write_results,
)
from synerdiff_cli.bench_run import Measured, Plan, Shape, Target, mix_of, run_bench
from synerdiff_cli.console import EXIT_FAILED, check_folder, check_plot, err, errors_as_lines, out, run
from synerdiff_cli.server import DEFAULT_ADDRESS, TlsCa, server_at

_ROUNDS_OF_SEVERAL = 3


# Options of `bench` that take more than a line.
_Rounds = Annotated[int | None, typer.Option(min=1, help=f"Default: 1; with several addresses {_ROUNDS_OF_SEVERAL}.")]
_Times = Annotated[Path | None, typer.Option(help="Arrivals, one a line: seconds, or JSON with at_s, prompt, steps.")]
_Prompts = Annotated[
    Path | None, typer.Option(help="Prompts to draw from, one a line. Default: what the bundled model knows.")
]
_Addresses = Annotated[
    list[str] | None,
    typer.Option(
        help="HOST:PORT of a server, or NAME=HOST:PORT; several get the same requests, in turns.",
        envvar="SYNERDIFF_ADDRESS",
        metavar="HOST:PORT",
    ),
]


def bench(
    concurrency: Annotated[int | None, typer.Option(min=1, help="So many clients, one request each at a time.")] = None,
    rate: Annotated[float | None, typer.Option(help="Poisson arrivals, requests per second.")] = None,
    burst: Annotated[int | None, typer.Option(min=1, help="So many requests at once.")] = None,
    every_s: Annotated[float | None, typer.Option(min=0.01, help="The next burst after so many seconds.")] = None,
    times: _Times = None,
    requests: Annotated[int | None, typer.Option(min=1, help="Requests of a round. Default: 100.")] = None,
    seconds: Annotated[float | None, typer.Option(min=0.1, help="Send for so long in a round.")] = None,
    rounds: _Rounds = None,
    warm_up: Annotated[int, typer.Option(min=0, help="Requests to each server before, all at once, not counted.")] = 8,
    seed: Annotated[int, typer.Option(help="The same seed gives the same requests at the same times.")] = 0,
    steps: Annotated[int | None, typer.Option(help="Denoising steps. Default: the model's.", min=1)] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="Default: the model's.")] = None,
    sampler: Annotated[str, typer.Option(help="Default: the model's.")] = "",
    width: Annotated[int | None, typer.Option(help="Pixels.", min=1)] = None,
    height: Annotated[int | None, typer.Option(help="Pixels.", min=1)] = None,
    no_skip_cfg: Annotated[bool, typer.Option("--no-skip-cfg", help="Guidance on every step.")] = False,
    model: Annotated[str, typer.Option(help="The model's name. Default: the server's.")] = "",
    prompts: _Prompts = None,
    num_prompts: Annotated[int | None, typer.Option(min=1, help="Draw from the first so many prompts only.")] = None,
    address: _Addresses = None,
    tls_ca: TlsCa = "",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write every answer there, as JSON.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw latencies and throughput: .png, .svg or .pdf.")] = None,
) -> None:
    """Send a load and say how it was answered. Without --rate, --burst or --times: from 8 clients.

    Latency counts from when a request was due. With several addresses the servers take turns, and the ratios are of
    rounds. The exit code is 1 where a request failed.
    """
    check_folder("--json", json_file)
    check_plot(plot)
    with errors_as_lines():
        like = LoadRequest("", 0, steps, guidance_scale, sampler or None, width, height, model=model or None)
        like = replace(like, skip_cfg=False if no_skip_cfg else None)
        shape = Shape(concurrency, rate, burst, every_s, times, requests, seconds)
        targets = _targets(address or [DEFAULT_ADDRESS], tls_ca)
        plan = _plan(shape, like, mix_of(like, prompts, num_prompts), targets, rounds, warm_up, seed)
        plan = replace(plan, traced=json_file is not None or plot is not None)
        with BenchDisplay(plan.rounds) as display:
            measured = run(run_bench(plan, display))
        summaries = _tell(measured)
        if json_file is not None:
            about = {"load": shape, "requests_like": like, "seed": seed, "warm_up": warm_up}
            write_results(json_file, _about(about, targets), measured, _ratios(measured))
        if plot is not None:
            plot_bench(measured, plot)
    raise typer.Exit(EXIT_FAILED if any(summary.errors for summary in summaries.values()) else 0)


def _plan(
    shape: Shape, like: LoadRequest, mix: Mix, targets: tuple[Target, ...], rounds: int | None, warm_up: int, seed: int
) -> Plan:
    """The run, without traces. Raises InvalidRequest for an impossible request, before anything is sent."""
    generate_request("", like.options())
    shape.load(mix, seed)
    number = rounds or (1 if len(targets) == 1 else _ROUNDS_OF_SEVERAL)
    return Plan(targets, number, warm_up, mix, lambda number: shape.load(mix, seed + number), traced=False)


def _tell(measured: Mapping[str, Sequence[Measured]]) -> dict[str, Summary]:
    summaries = {name: summarise([one.window for one in windows]) for name, windows in measured.items()}
    out.print(summary_table(summaries))
    if ratios := _ratios(measured):
        out.print()
        out.print(ratio_table(next(iter(measured)), ratios))
    for name, summary in summaries.items():
        if summary.errors:
            err.print(f"{name}, failed: {errors_of(summary)}", markup=False)
    if warning := slowness(list(summaries.values())):
        err.print(f"[yellow]warning:[/] {warning}")
    return summaries


def _ratios(measured: Mapping[str, Sequence[Measured]]) -> dict[str, dict[str, Ratio]]:
    (_, base), *others = measured.items()
    return {name: window_ratios([a.window for a in own], [b.window for b in base]) for name, own in others}


def _about(load: dict[str, Any], targets: Sequence[Target]) -> dict[str, Any]:
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["synerdiff", *sys.argv[1:]]),
        "addresses": {target.name: target.server.address for target in targets},
        **load,
    }


def _targets(addresses: Sequence[str], tls_ca: str) -> tuple[Target, ...]:
    """The servers by name, each its address where none was given. Raises InvalidRequest for a name that comes twice."""
    targets = []
    for given in addresses:
        name, _, named = given.rpartition("=")
        targets.append(Target(name or named, server_at(named, tls_ca)))
    names = [target.name for target in targets]
    for name in names:
        if names.count(name) > 1:
            raise InvalidRequest(FieldViolation("--address", f"{name!r} comes twice; name them apart: NAME=HOST:PORT"))
    return tuple(targets)
