"""Every policy, and synerdiff less each of its mechanisms, live at three loads: one run, same requests, same times.

    python -m bench.ablation --profile emoji-profile.json [--seconds 20] [--only synerdiff,continuous] [--name ablation]

Starts a deployment of the bundled model per configuration and sends it the same requests at the same times: at a low,
a medium and a saturating load, given as shares of the capacity that `continuous` shows in a burst at the start
(`--capacity` skips that). End-to-end latency counts from when a request was due, decode latency from its last step to
its image stored. `largest item` is the longest time of an item over its prediction, of the items that ran in step.
Prints a Markdown table and writes bench/results/NAME.json. A run takes about configurations x loads x 1.5 x `seconds`.
"""

import argparse
import asyncio
import statistics
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.reporting import markdown_table, save
from bench.serving import MIXED, Outcome, add_only, add_settings, deployment, equal_requests, serve
from synerdiff.client.load.arrivals import Arrival, bursts, poisson
from synerdiff.client.load.summary import percentile

CONFIGURATIONS: dict[str, dict[str, str]] = {
    "static": {"policy": "static"},
    "dynamic": {"policy": "dynamic"},
    "continuous": {"policy": "continuous"},
    "vae-first": {"policy": "vae-first"},
    "synerdiff": {"policy": "synerdiff"},
    "synerdiff less knee": {"policy": "synerdiff", "knee": "off"},
    "synerdiff less order": {"policy": "synerdiff", "order": "fifo"},
    "synerdiff less chunking": {"policy": "synerdiff", "chunking": "off"},
    "synerdiff less skip_cfg": {"policy": "synerdiff", "skip_cfg": "off"},
    "synerdiff less planning": {"policy": "synerdiff", "planning": "none"},
    "synerdiff less controller": {"policy": "synerdiff", "controller": "off"},
    "synerdiff in step": {"policy": "synerdiff", "in_step": "on"},
    "synerdiff running free": {"policy": "synerdiff", "in_step": "off"},
    "synerdiff planned one ahead": {"policy": "synerdiff", "plan_ahead": "1"},
}
LOADS = {"low": 0.3, "medium": 0.7, "saturating": 1.3}
CAPACITY_BURST = 48
HEADINGS = (
    "configuration",
    "load",
    "images/s",
    "end to end, mean s",
    "P99 s",
    "decode, mean ms",
    "P99 ms",
    "skipped",
    "largest item",
)


def workload(capacity: float, seconds: float, seed: int) -> dict[str, tuple[Arrival, ...]]:
    """The requests of each load, the same for the same arguments."""
    return {name: poisson(share * capacity, MIXED, seed, seconds=seconds) for name, share in LOADS.items()}


def summary(outcome: Outcome) -> dict[str, Any]:
    """The numbers of one configuration under one load."""
    ends = outcome.latencies_s
    decodes = [answer.decode_s * 1000 for answer in outcome.window.served]
    ratios = [run.ratio for run in outcome.items]
    return {
        "requests": len(ends),
        "errors": outcome.errors,
        "images_per_s": outcome.window.images_per_s,
        "end_to_end_mean_s": statistics.fmean(ends) if ends else None,
        "end_to_end_p99_s": percentile(ends, 99) if ends else None,
        "decode_mean_ms": statistics.fmean(decodes) if decodes else None,
        "decode_p99_ms": percentile(decodes, 99) if decodes else None,
        "skipped_share": outcome.skipped_share,
        "items_compared": len(ratios),
        "item_ratio_median": statistics.median(ratios) if ratios else None,
        "item_ratio_largest": max(ratios, default=None),
        "items_over_2x": sum(ratio > 2 for ratio in ratios),
    }


def table(results: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """The results as Markdown, a row per configuration and load."""
    rows = [
        (
            configuration,
            load,
            _number(r["images_per_s"], 2),
            _number(r["end_to_end_mean_s"], 2),
            _number(r["end_to_end_p99_s"], 2),
            _number(r["decode_mean_ms"], 0),
            _number(r["decode_p99_ms"], 0),
            f"{r['skipped_share']:.0%}",
            "-" if r["item_ratio_largest"] is None else f"{r['item_ratio_largest']:.2f}x",
        )
        for load in LOADS
        for configuration, loads in results.items()
        if (r := loads.get(load))
    ]
    return markdown_table(HEADINGS, rows)


async def warm_up(address: str) -> None:
    """Let every worker do each of its kinds of work, and the planner meet common counts."""
    for count in (1, 4, 12):
        await serve(address, bursts(count, equal_requests(6), seed=count))


async def measured_capacity(dtype: str) -> float:
    """Images per second of `continuous` on a burst of the workload's requests."""
    async with deployment({"policy": "continuous"}, dtype=dtype) as address:
        await warm_up(address)
        return (await serve(address, bursts(CAPACITY_BURST, MIXED, seed=0))).window.images_per_s


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run every chosen configuration under every load."""
    capacity = options.capacity or await measured_capacity(options.dtype)
    _say(f"capacity: {capacity:.2f} images/s")
    loads = workload(capacity, options.seconds, options.seed)
    results: dict[str, dict[str, Any]] = {}
    for configuration in options.only or CONFIGURATIONS:
        settings = dict(options.settings) | CONFIGURATIONS[configuration]
        async with deployment(settings, options.profile, options.dtype) as address:
            await warm_up(address)
            for load, arrivals in loads.items():
                began = time.monotonic()
                results.setdefault(configuration, {})[load] = summary(await serve(address, arrivals))
                _say(f"{configuration}, {load}: {len(arrivals)} requests in {time.monotonic() - began:.1f} s")
    return {
        "command": "python -m bench.ablation " + " ".join(sys.argv[1:]),
        "dtype": options.dtype,
        "settings": dict(options.settings),
        "seconds": options.seconds,
        "seed": options.seed,
        "capacity_images_per_s": capacity,
        "load_shares": LOADS,
        "configurations": {name: CONFIGURATIONS[name] for name in results},
        "results": results,
    }


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> int:
    """Parse the command line and measure. The exit status is 1 when a request failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", type=Path, help="profile file that every configuration plans by")
    parser.add_argument("--seconds", type=float, default=20.0, help="arrivals of each load")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--capacity", type=float, help="images/s that loads are shares of; default: measured")
    add_settings(parser)
    add_only(parser, CONFIGURATIONS)
    parser.add_argument("--name", default="ablation", help="of the file under bench/results")
    options = parser.parse_args()
    result = asyncio.run(measure(options))
    print(table(result["results"]))
    _say(f"written: {save(options.name, result)}")
    return int(any(r["errors"] for loads in result["results"].values() for r in loads.values()))


if __name__ == "__main__":
    sys.exit(main())
