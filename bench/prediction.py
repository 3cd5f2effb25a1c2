"""Predicted against measured item time on a live deployment, as corrections of the profile take hold.

    python -m bench.prediction --profile emoji-profile.json [--rate 2.0] [--settle 60] [--seconds 30]
        [--set in_step=on]

Sends Poisson arrivals for `settle` + `seconds` and compares every item that ran in step with what it was predicted to
take when it was planned. The error of an item is |measured / predicted - 1|. Prints JSON: median and p90 of the last
`seconds`, by kind of item, and of every ten seconds on the way; writes bench/results/NAME.json. With --address
HOST:PORT it starts and sends nothing, and only looks at a running scheduler's last ticks.
"""

import argparse
import asyncio
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.ablation import warm_up
from bench.reporting import save
from bench.serving import MIXED, ItemRun, add_settings, deployment, item_runs, serve
from synerdiff.client.load.arrivals import Arrival, poisson
from synerdiff.client.load.summary import percentile
from synerdiff.client.load.trace import trace_events
from synerdiff.rpc import open_channel

WINDOW_S = 10.0


def errors_of(runs: Iterable[ItemRun]) -> dict[str, Any]:
    """Median and p90 of the errors of items, their largest ratio, and how many there are."""
    runs = list(runs)
    errors = [abs(run.ratio - 1) for run in runs]
    return {
        "items": len(runs),
        "median_error": percentile(errors, 50) if runs else None,
        "p90_error": percentile(errors, 90) if runs else None,
        "median_ratio": percentile([run.ratio for run in runs], 50) if runs else None,
        "largest_ratio": max((run.ratio for run in runs), default=None),
    }


def by_kind(runs: Sequence[ItemRun]) -> dict[str, Any]:
    """The errors of all items and of each kind."""
    kinds = sorted({run.kind for run in runs})
    return {"all": errors_of(runs)} | {kind: errors_of(run for run in runs if run.kind == kind) for kind in kinds}


def windows(runs: Sequence[ItemRun], seconds: float) -> list[dict[str, Any]]:
    """The errors of every ten seconds, by when items ended."""
    starts = [k * WINDOW_S for k in range(int(seconds // WINDOW_S) + 1)]
    return [
        {"from_s": start} | errors_of(run for run in runs if start <= run.end_s < start + WINDOW_S) for start in starts
    ]


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Load a deployment of its own, in pieces short enough for the ring of ticks."""
    runs: list[ItemRun] = []
    failed: list[str] = []
    whole_s = options.settle + options.seconds
    arrivals = poisson(options.rate, MIXED, options.seed, seconds=whole_s)
    async with deployment(dict(options.settings), options.profile, options.dtype) as address:
        await warm_up(address)
        began_s, passed_s = asyncio.get_running_loop().time(), 0.0
        while passed_s < whole_s:
            piece = _piece(arrivals, passed_s, passed_s + WINDOW_S)
            if piece:
                outcome = await serve(address, piece)
                failed += outcome.errors
                runs += [ItemRun(run.kind, run.ratio, run.end_s + passed_s) for run in outcome.items]
            passed_s = max(passed_s + WINDOW_S, asyncio.get_running_loop().time() - began_s)
    last = [run for run in runs if run.end_s >= options.settle]
    return {
        "command": "python -m bench.prediction " + " ".join(sys.argv[1:]),
        "settings": dict(options.settings),
        "dtype": options.dtype,
        "rate_per_s": options.rate,
        "settled_after_s": options.settle,
        "errors": failed,
        "settled": by_kind(last),
        "windows": windows(runs, whole_s),
    }


def _piece(arrivals: Sequence[Arrival], start_s: float, end_s: float) -> list[Arrival]:
    """The arrivals of a window, with times from its start."""
    return [replace(arrival, at_s=arrival.at_s - start_s) for arrival in arrivals if start_s <= arrival.at_s < end_s]


async def look(address: str) -> dict[str, Any]:
    """The errors of a running scheduler's last ticks."""
    async with open_channel(address) as channel:
        return {"settled": by_kind(item_runs(await trace_events(channel), 0.0))}


def main() -> int:
    """Parse the command line and measure. The exit status is 1 when a request failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", type=Path, help="profile file that the domain plans by")
    parser.add_argument("--address", help="HOST:PORT of a running scheduler: only look at its last ticks")
    add_settings(parser)
    parser.add_argument("--rate", type=float, default=2.0, help="requests per second")
    parser.add_argument("--settle", type=float, default=60.0, help="seconds before items count")
    parser.add_argument("--seconds", type=float, default=30.0, help="seconds of items that count")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--name", default="prediction", help="of the file under bench/results")
    options = parser.parse_args()
    if options.address:
        print(json.dumps(asyncio.run(look(options.address)), indent=1))
        return 0
    result = asyncio.run(measure(options))
    print(json.dumps({"settled": result["settled"], "windows": result["windows"]}, indent=1))
    print(f"written: {save(options.name, result)}", file=sys.stderr)
    return int(bool(result["errors"]))


if __name__ == "__main__":
    sys.exit(main())
