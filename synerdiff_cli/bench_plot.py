"""The results of `synerdiff bench` as a picture: latencies, throughput over time, rows and threshold where known."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from synerdiff_cli.bench_run import Measured

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BINS = 80
_LEAST_BIN_S = 0.5


def plot_bench(measured: Mapping[str, Sequence[Measured]], path: Path) -> None:
    """Draw every server's windows into a file. Raises OSError where it cannot be written."""
    from matplotlib.figure import Figure

    traced = {name: windows for name, windows in measured.items() if any(one.unet_rows for one in windows)}
    figure = Figure(figsize=(11, 5.6 + 2.0 * len(traced)), layout="constrained")
    axes = list(figure.subplots(2 + len(traced), 1, height_ratios=[1.4, 1.4, *(1.0 for _ in traced)]))
    draw_latencies(
        axes[0],
        {name: [latency for one in windows for latency in _latencies(one)] for name, windows in measured.items()},
    )
    began_s = min(one.window.began_unix_s for windows in measured.values() for one in windows)
    _draw_throughput(axes[1], measured, began_s)
    for place, (name, windows) in zip(axes[2:], traced.items(), strict=True):
        _draw_trace(place, name, windows, began_s)
        place.sharex(axes[1])
    axes[-1].set_xlabel("seconds")
    figure.savefig(path, dpi=110)


def draw_latencies(axes: "Axes", latencies_s: Mapping[str, Sequence[float]]) -> None:
    """Share of the requests that were answered within a time, a line per server."""
    for name, values in latencies_s.items():
        ordered = sorted(values)
        shares = [(number + 1) / len(ordered) for number in range(len(ordered))]
        axes.step([0.0, *ordered], [0.0, *shares], where="post", label=name)
    axes.set_xlabel("latency from when due, s")
    axes.set_ylabel("share answered")
    axes.set_ylim(0, 1.02)
    axes.set_xlim(left=0)
    axes.legend(fontsize=8)


def _latencies(one: Measured) -> list[float]:
    return [answer.latency_s for answer in one.window.served]


def _draw_throughput(axes: "Axes", measured: Mapping[str, Sequence[Measured]], began_s: float) -> None:
    """Images per second of each window, over the time of the whole run: windows lie one after the other."""
    last_s = max(_end_s(one) - began_s for windows in measured.values() for one in windows)
    bin_s = max(_LEAST_BIN_S, last_s / _BINS)
    for number, (name, windows) in enumerate(measured.items()):
        for place, one in enumerate(windows):
            start_s = one.window.began_unix_s - began_s
            counts = [0] * max(1, math.ceil((_end_s(one) - one.window.began_unix_s) / bin_s))
            for answer in one.window.served:
                counts[min(len(counts) - 1, int(answer.ended_s / bin_s))] += answer.images
            edges = [start_s + bin_s * k for k in range(len(counts) + 1)]
            label = name if place == 0 else None
            axes.stairs([count / bin_s for count in counts], edges, color=f"C{number}", label=label)
    axes.set_ylabel("images per second")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8)


def _draw_trace(axes: "Axes", name: str, windows: Sequence[Measured], began_s: float) -> None:
    right = axes.twinx()
    for one in windows:
        start_s = one.window.began_unix_s - began_s
        if one.unet_rows:
            times, rows = zip(*one.unet_rows, strict=True)
            axes.plot([start_s + at_s for at_s in times], rows, ".", color="tab:blue", markersize=2)
        if one.thresholds:
            times, values = zip(*one.thresholds, strict=True)
            right.step([start_s + at_s for at_s in times], values, where="post", color="tab:red", linewidth=1)
    axes.set_title(name, fontsize=9)
    axes.set_ylabel("UNet rows of a call", color="tab:blue")
    axes.set_ylim(0, 1.1 * max(rows for one in windows for _, rows in one.unet_rows))
    right.set_ylabel("threshold", color="tab:red")
    right.set_ylim(0, 1.05)


def _end_s(one: Measured) -> float:
    return one.window.began_unix_s + max((answer.ended_s for answer in one.window.answers), default=0.0)
