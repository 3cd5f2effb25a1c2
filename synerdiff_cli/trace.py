"""`synerdiff trace`: the last ticks of a running system, as a file for Perfetto and as a picture of the last seconds.

The picture has a lane per worker, items coloured by their size, and the threshold below. It needs matplotlib, which the
extra `local` brings.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from synerdiff.v1 import operations_pb2
from synerdiff_cli.console import CommandError, check_folder, check_plot, errors_as_lines, out, run
from synerdiff_cli.server import DEFAULT_ADDRESS, Address, TlsCa, asked, server_at

Event = dict[str, Any]
_TIMEOUT_S = 60.0
_DEFAULT_FILE = Path("synerdiff-trace.json")
_COLOURS = {"unet": "Blues", "vae": "Oranges"}
_LABEL_ROOM = 0.012  # of the picture's width: narrower items go without a number


class NothingToDraw(CommandError):
    """The trace has no item."""


@dataclass(frozen=True)
class Picture:
    """The drawn part of a trace. Times in seconds from the left edge of the picture, which is `seconds` wide.

    `lanes`: names of workers by (pid, tid), top first. `items`: the slices that can be seen. `counters`: of the first
    domain, (time, value) by name.
    """

    start_us: float
    seconds: float
    lanes: dict[tuple[int, int], str]
    items: tuple[Event, ...]
    counters: dict[str, list[tuple[float, float]]]

    def at(self, ts_us: float) -> float:
        """Where a time of the trace is."""
        return (ts_us - self.start_us) / 1e6


def picture(events: Sequence[Event], seconds: float) -> Picture:
    """The last `seconds` of a trace. Raises NothingToDraw where it has no item."""
    slices = [event for event in events if event["ph"] == "X"]
    if not slices:
        raise NothingToDraw("nothing to draw: no tick has run yet")
    end_us = max(event["ts"] + event["dur"] for event in slices)
    start_us = max(end_us - seconds * 1e6, min(event["ts"] for event in slices))
    seen = tuple(event for event in slices if event["ts"] + event["dur"] > start_us)
    lanes = {
        (event["pid"], event["tid"]): event["args"]["name"]
        for event in sorted(events, key=lambda event: (event["pid"], event.get("tid", 0)))
        if event["ph"] == "M" and event["name"] == "thread_name"
    }
    used = {(event["pid"], event["tid"]) for event in seen}
    drawn = {lane: name for lane, name in lanes.items() if lane in used}
    first_pid = next(iter(drawn))[0]
    counters = _counters((e for e in events if e["ph"] == "C" and e["pid"] == first_pid), start_us)
    return Picture(start_us, (end_us - start_us) / 1e6, drawn, seen, counters)


def _counters(events: Iterable[Event], start_us: float) -> dict[str, list[tuple[float, float]]]:
    """The values of each counter from the left edge on, where it begins with the last one before."""
    counters: dict[str, list[tuple[float, float]]] = {}
    for event in sorted(events, key=lambda event: float(event["ts"])):
        points = counters.setdefault(event["name"], [])
        point = (max(0.0, (event["ts"] - start_us) / 1e6), float(next(iter(event["args"].values()))))
        if points and points[-1][0] == point[0] == 0.0:
            points[-1] = point
        else:
            points.append(point)
    return counters


def draw_trace(events: Sequence[Event], path: Path, seconds: float) -> None:
    """Draw the last `seconds` of a trace to `path`. Raises NothingToDraw or OSError."""
    from matplotlib.figure import Figure

    shown = picture(events, seconds)
    figure = Figure(figsize=(14, 3.2 + 0.9 * len(shown.lanes)), layout="constrained")
    lanes, counters = figure.subplots(2, 1, sharex=True, height_ratios=[len(shown.lanes), 1.4])
    _draw_lanes(lanes, shown)
    _draw_counters(counters, shown)
    figure.savefig(path, dpi=120)


def _draw_lanes(axes: Any, shown: Picture) -> None:
    from matplotlib import colormaps

    heights = {lane: len(shown.lanes) - 1 - number for number, lane in enumerate(shown.lanes)}
    largest = {kind: max((_size(e) for e in shown.items if e["cat"] == kind), default=1.0) for kind in _COLOURS}
    for event in shown.items:
        bottom, span = heights[event["pid"], event["tid"]], (shown.at(event["ts"]), event["dur"] / 1e6)
        if event["cat"] == "wait":
            axes.broken_barh([span], (bottom + 0.35, 0.1), facecolor="#bbbbbb")
            continue
        share = 0.15 + 0.7 * _size(event) / max(largest[event["cat"]], 1e-9)
        skips = event["args"].get("skips", 0) if event["cat"] == "unet" else 0
        style = {"facecolor": colormaps[_COLOURS[event["cat"]]](share), "edgecolor": "#444444", "linewidth": 0.4}
        axes.broken_barh([span], (bottom, 0.8), hatch="//" if skips else None, **style)
        if span[1] > _LABEL_ROOM * shown.seconds and span[0] >= 0:
            number = f"{_size(event):.3g}"
            place, ink = (span[0] + span[1] / 2, bottom + 0.4), "white" if share > 0.6 else "black"
            axes.text(*place, number, color=ink, ha="center", va="center", fontsize=7)
    axes.set_yticks([height + 0.4 for height in heights.values()], list(shown.lanes.values()))
    axes.set_xlim(0, shown.seconds)
    axes.set_title(
        "items by UNet rows (blue) and decodes (orange); hatched: guidance skipped; grey: waiting", fontsize=9
    )


def _draw_counters(axes: Any, shown: Picture) -> None:
    for name, colour in (("waiting tasks", "tab:blue"), ("pending decodes", "tab:orange")):
        points = shown.counters.get(name, [])
        if points:
            _draw_steps(axes, points, shown.seconds, color=colour, linewidth=1, label=name)
    axes.set_xlabel("seconds")
    axes.set_ylabel("count")
    axes.set_ylim(bottom=0)
    thresholds = shown.counters.get("threshold")
    if thresholds:
        right = axes.twinx()
        _draw_steps(right, thresholds, shown.seconds, color="tab:red", linewidth=1.5)
        right.set_ylim(0, 1.05)
        right.set_ylabel("threshold", color="tab:red")
    if shown.counters.keys() - {"threshold"}:
        axes.legend(loc="upper right", fontsize=8, framealpha=0.6)


def _draw_steps(axes: Any, points: Sequence[tuple[float, float]], until_s: float, **style: Any) -> None:
    """A value that holds from each point to the next, and from the last to the right edge."""
    times, values = zip(*points, (until_s, points[-1][1]), strict=True)
    axes.step(times, values, where="post", **style)


def _size(event: Event) -> float:
    args = event["args"]
    return float(args["rows"] if event["cat"] == "unet" else args.get("decodes", args.get("ran_images", 0)))


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
            draw_trace(json.loads(found)["traceEvents"], plot, seconds)
            out.print(str(plot), markup=False)
