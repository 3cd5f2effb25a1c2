"""Predicted against measured item time on a live deployment, as corrections of the profile take hold.

    python -m bench.prediction --profile emoji-profile.json [--rate 2.0] [--settle 60] [--seconds 30]
        [--set in_step=on]

Sends Poisson arrivals for `settle` + `seconds` and compares the time of every item that ran in step with its prediction
in the plan. The error of an item is |measured / predicted - 1|. Prints JSON: median and p90 of the last
`seconds`, by kind of item, and of every ten seconds on the way; writes bench/results/NAME.json.
"""

import asyncio
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Annotated, Any

import typer

from bench.command import ProfileFile, Settings, run, save, say, settings_of
from bench.serving import MIXED, SETTINGS, ItemRun, deployment, serve
from synerdiff.client.load.arrivals import Arrival, poisson
from synerdiff.client.load.summary import percentile

WINDOW_S = 10.0


def errors_of(runs: Iterable[ItemRun]) -> dict[str, Any]:
    """Median and p90 of the errors of items, their largest ratio, and how many there are."""
    ratios = [run.ratio for run in runs]
    errors = [abs(ratio - 1) for ratio in ratios]
    return {
        "items": len(ratios),
        "median_error": percentile(errors, 50),
        "p90_error": percentile(errors, 90),
        "median_ratio": percentile(ratios, 50),
        "largest_ratio": max(ratios, default=math.nan),
    }


def by_kind(runs: Sequence[ItemRun]) -> dict[str, Any]:
    kinds = sorted({run.kind for run in runs})
    return {"all": errors_of(runs)} | {kind: errors_of(run for run in runs if run.kind == kind) for kind in kinds}


def windows(runs: Sequence[ItemRun], seconds: float) -> list[dict[str, Any]]:
    """The errors of every ten seconds, by when items ended."""
    starts = [k * WINDOW_S for k in range(int(seconds // WINDOW_S) + 1)]
    return [
        {"from_s": start} | errors_of(run for run in runs if start <= run.end_s < start + WINDOW_S) for start in starts
    ]


async def measure(
    profile: ProfileFile = None,
    settings: Settings = None,
    rate: Annotated[float, typer.Option(help="Requests per second.")] = 2.0,
    settle: Annotated[float, typer.Option(help="Seconds before items count.")] = 60.0,
    seconds: Annotated[float, typer.Option(help="Seconds of items that count.")] = 30.0,
    seed: int = 1,
    dtype: str = "float32",
    name: str = "prediction",
) -> dict[str, Any]:
    """Load a deployment of its own, in pieces short enough for the ring of ticks."""
    runs: list[ItemRun] = []
    failed: list[str] = []
    common, whole_s = settings_of(settings, SETTINGS), settle + seconds
    arrivals = poisson(rate, MIXED, seed, seconds=whole_s)
    async with deployment(common, profile, dtype) as own:
        began_s, passed_s = asyncio.get_running_loop().time(), 0.0
        while passed_s < whole_s:
            if piece := _piece(arrivals, passed_s, passed_s + WINDOW_S):
                outcome = await serve(own, piece)
                failed += outcome.errors
                runs += [ItemRun(run.kind, run.ratio, run.end_s + passed_s) for run in outcome.items]
            passed_s = max(passed_s + WINDOW_S, asyncio.get_running_loop().time() - began_s)
    about = {"settings": common, "dtype": dtype, "rate_per_s": rate, "settled_after_s": settle, "errors": failed}
    last = by_kind([run for run in runs if run.end_s >= settle])
    result = {**about, "settled": last, "windows": windows(runs, whole_s)}
    say(f"written: {save(name, result)}")
    return result


def _piece(arrivals: Sequence[Arrival], start_s: float, end_s: float) -> list[Arrival]:
    return [replace(arrival, at_s=arrival.at_s - start_s) for arrival in arrivals if start_s <= arrival.at_s < end_s]


if __name__ == "__main__":
    run(measure)
