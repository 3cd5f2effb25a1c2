"""The picture of one run: throughput of all when saturated, and latencies under the loads that tell most."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.peers.contenders import BATCHED, LOOP, ONE, OURS
from bench.peers.findings import contenders, values
from bench.peers.loads import BURST, POISSON, SATURATED
from synerdiff_cli.bench_plot import draw_latencies

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw(result: Mapping[str, Any], path: Path) -> None:
    from matplotlib.figure import Figure

    shown = [
        load for load in (*reversed(list(POISSON)), BURST) if any(load in one["loads"] for one in result["rounds"])
    ]
    figure = Figure(figsize=(15, 4.6), layout="constrained")
    axes = figure.subplots(1, 1 + len(shown), squeeze=False)[0]
    _draw_throughput(axes[0], result)
    for place, load in zip(axes[1:], shown, strict=True):
        latencies = {
            name: [each for one in result["rounds"] for each in _latencies(one, load, name)]
            for name in contenders(result, OURS, BATCHED, ONE)
        }
        draw_latencies(place, {name: each for name, each in latencies.items() if each})
        place.set_title(load, fontsize=10)
    figure.suptitle(f"{result['dtype']}, {result['machine']['cpu']}, {result['date']}", fontsize=10)
    figure.savefig(path, dpi=90)


def _draw_throughput(axes: "Axes", result: Mapping[str, Any]) -> None:
    """A bar at the median of each contender, a dot for every round."""
    names = contenders(result, ONE, BATCHED, LOOP, OURS)
    for place, name in enumerate(names):
        found = sorted(values(result, SATURATED, name, "images_per_s"))
        if found:
            axes.barh(place, found[len(found) // 2], color="C0" if name in contenders(result, OURS) else "#bbbbbb")
            axes.plot(found, [place] * len(found), "k.", markersize=4)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_xlabel("images per second, saturated")


def _latencies(one: Mapping[str, Any], load: str, name: str) -> list[float]:
    window = one["loads"].get(load, {}).get("results", {}).get(name)
    return list(window["latencies_s"]) if window else []
