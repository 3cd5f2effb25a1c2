"""The output of `synerdiff bench`: the load under way, tables and a JSON file afterwards, and a picture.

The picture has latencies, throughput over time, and rows and thresholds where they are known.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic_core import to_json
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from synerdiff.client.load.sending import Answer, Load, Window
from synerdiff.client.load.summary import Ratio, Summary, summarise
from synerdiff_cli.bench_run import Listener, Measured, Target, requests_of
from synerdiff_cli.console import err, plain_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_RATIO_HEADINGS = {"images_per_s": "images/s", "mean_s": "mean", "p50_s": "P50", "p99_s": "P99"}
_BINS = 80
_LEAST_BIN_S = 0.5


class BenchDisplay(Progress, Listener):
    """`with BenchDisplay(rounds) as display`, the run's listener. Where stderr is no terminal, a line per window."""

    def __init__(self, rounds: int) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        failed = TextColumn("[red]{task.fields[failed]}[/]")
        super().__init__(*columns, failed, console=err, disable=not err.is_terminal, transient=True)
        self._rounds = rounds
        self._task: TaskID | None = None
        self._failed = 0

    def begins(self, target: Target, number: int, load: Load) -> None:
        """Start a bar for the window."""
        if self._task is not None:
            self.remove_task(self._task)
        title = f"{target.name}, {'warming up' if number < 0 else f'round {number + 1} of {self._rounds}'}"
        self._failed = 0
        self._task = self.add_task(title, total=requests_of(load), failed="")

    def answered(self, answer: Answer) -> None:
        """Advance the window's bar by one request."""
        assert self._task is not None
        self._failed += bool(answer.error)
        self.update(self._task, advance=1, failed=f"{self._failed} failed" if self._failed else "")

    def ended(self, target: Target, number: int, window: Window) -> None:
        """Print a line where there is no bar."""
        if not err.is_terminal:
            done = summarise([window])
            failed = f", failed: {errors_of(done)}" if done.errors else ""
            err.print(
                f"{target.name}, round {number + 1} of {self._rounds}: {done.images} images, "
                f"{done.images_per_s:.2f} images/s, mean {_number(done.mean_s, 2)} s{failed}",
                markup=False,
            )


def errors_of(summary: Summary) -> str:
    """The errors by code, as readable text; empty where there is none."""
    return ", ".join(f"{count} {code}" for code, count in sorted(summary.errors.items()))


def summary_table(summaries: Mapping[str, Summary]) -> Table:
    """A row per server; latencies in s."""
    table = plain_table("server", "images/s", "mean s", "P50", "P90", "P99", "max", "skipped", "failed")
    for name, s in summaries.items():
        times = (_number(value, 3) for value in (s.mean_s, s.p50_s, s.p90_s, s.p99_s, s.max_s))
        failed = str(sum(s.errors.values()))
        table.add_row(name, f"{s.images_per_s:.2f}", *times, f"{s.skipped_share:.0%}", failed)
    return table


def ratio_table(base: str, ratios: Mapping[str, Mapping[str, Ratio]]) -> Table:
    """The other servers over the first: medians of the rounds, with the quartiles."""
    table = plain_table(f"over {base}", *_RATIO_HEADINGS.values())
    for name, of in ratios.items():
        table.add_row(name, *(_ratio(of[value]) for value in _RATIO_HEADINGS))
    return table


def _ratio(of: Ratio) -> str:
    lower, upper = _number(of.lower_quartile, 2), _number(of.upper_quartile, 2)
    return f"{_number(of.median, 2)} ({lower}-{upper})"


def _number(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else "-"


def slowness(summaries: Sequence[Summary]) -> str:
    """A warning where the client itself was late by more than a tenth of the mean latency; empty where it was not."""
    late = max((s.late_s for s in summaries if s.late_s > 0.1 * s.mean_s), default=0.0)
    return f"this client sent requests up to {late:.2f} s late: part of the latencies is its own" if late else ""


def write_results(
    path: Path,
    about: Mapping[str, Any],
    measured: Mapping[str, Sequence[Measured]],
    ratios: Mapping[str, Mapping[str, Ratio]],
) -> None:
    """Write everything to a file; raises OSError. Missing numbers are null."""
    servers = {
        name: {"summary": summarise([one.window for one in windows]), "rounds": list(map(_window_fields, windows))}
        for name, windows in measured.items()
    }
    whole = {**about, "servers": servers, "ratios": ratios}
    path.write_bytes(to_json(whole, indent=1, inf_nan_mode="null") + b"\n")


def _window_fields(one: Measured) -> dict[str, Any]:
    return {
        "began_unix_s": one.window.began_unix_s,
        "seconds": one.window.seconds,
        "summary": summarise([one.window]),
        "answers": list(map(_answer_fields, one.window.answers)),
        "unet_rows": one.unet_rows,
        "thresholds": one.thresholds,
    }


def _answer_fields(answer: Answer) -> dict[str, Any]:
    """An answer without its pictures."""
    fields = asdict(answer)
    del fields["pictures"]
    return {name: round(value, 6) if isinstance(value, float) else value for name, value in fields.items()}


def plot_bench(measured: Mapping[str, Sequence[Measured]], path: Path) -> None:
    """Draw every server's windows into a file. Raises OSError where it cannot be written."""
    from matplotlib.figure import Figure

    traced = {name: windows for name, windows in measured.items() if any(one.unet_rows for one in windows)}
    figure = Figure(figsize=(11, 5.6 + 2.0 * len(traced)), layout="constrained")
    axes = list(figure.subplots(2 + len(traced), 1, height_ratios=[1.4, 1.4, *(1.0 for _ in traced)]))
    draw_latencies(
        axes[0],
        {name: [a.latency_s for one in windows for a in one.window.served] for name, windows in measured.items()},
    )
    began_s = min(one.window.began_unix_s for windows in measured.values() for one in windows)
    _draw_throughput(axes[1], measured, began_s)
    for place, (name, windows) in zip(axes[2:], traced.items(), strict=True):
        _draw_trace(place, name, windows, began_s)
        place.sharex(axes[1])
    axes[-1].set_xlabel("seconds")
    figure.savefig(path, dpi=110)


def draw_latencies(axes: "Axes", latencies_s: Mapping[str, Sequence[float]]) -> None:
    """Draw the share of the requests that were answered within a time, a line per server."""
    for name, values in latencies_s.items():
        ordered = sorted(values)
        shares = [(number + 1) / len(ordered) for number in range(len(ordered))]
        axes.step([0.0, *ordered], [0.0, *shares], where="post", label=name)
    axes.set_xlabel("latency from when due, s")
    axes.set_ylabel("share answered")
    axes.set_ylim(0, 1.02)
    axes.set_xlim(left=0)
    axes.legend(fontsize=8)


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
