"""A burst of equal requests under several policies: mean end-to-end latency, throughput, and the threshold's way.

    python -m bench.burst --profile emoji-profile.json [--requests 64] [--steps 20] [--rounds 2]

Sends the same burst to `synerdiff`, to `synerdiff` in the order of processor sharing, and to `continuous` capped at the
knee, `rounds` times each in turn, with a deployment of its own each time. A trickle of requests before and after the
burst shows where the threshold comes from and goes back to. Prints the ratios of means as JSON and writes
bench/results/NAME.json.
"""

import argparse
import asyncio
import itertools
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from bench.ablation import warm_up
from bench.reporting import save
from bench.serving import MIXED, Outcome, add_only, add_settings, deployment, equal_requests, serve
from synerdiff.client.load.arrivals import bursts, poisson

CONFIGURATIONS: dict[str, dict[str, str]] = {
    "synerdiff": {"policy": "synerdiff"},
    "processor sharing": {"policy": "synerdiff", "order": "sharing"},
    "continuous at the knee": {"policy": "continuous", "knee": "on"},
}
TRICKLE_S = 15.0
TRICKLE_PER_S = 0.7


def summary(before: Outcome, outcome: Outcome, after: Outcome) -> dict[str, Any]:
    """One burst: latencies in s, throughput in images/s, and the threshold in the trickles before and after it."""
    ends = outcome.latencies_s
    values = [value for _, value in outcome.thresholds]
    return {
        "requests": len(ends),
        "errors": [*before.errors, *outcome.errors, *after.errors],
        "end_to_end_mean_s": statistics.fmean(ends),
        "end_to_end_last_s": max(ends),
        "images_per_s": outcome.window.images_per_s,
        "decode_mean_ms": statistics.fmean(answer.decode_s * 1000 for answer in outcome.window.served),
        "threshold_before": before.thresholds[-1][1] if before.thresholds else None,
        "threshold_highest": max(values, default=None),
        "threshold_after": after.thresholds[-1][1] if after.thresholds else None,
        "threshold_switches": sum(a != b for a, b in itertools.pairwise(values)),
        "item_ratio_largest": max((run.ratio for run in outcome.items), default=None),
    }


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run the bursts in turn."""
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in options.only or CONFIGURATIONS}
    for number in range(options.rounds):
        for name, done in rounds.items():
            async with deployment(
                CONFIGURATIONS[name] | dict(options.settings), options.profile, options.dtype
            ) as address:
                await warm_up(address)
                trickle = poisson(TRICKLE_PER_S, MIXED, number, seconds=TRICKLE_S)
                before = await serve(address, trickle)
                outcome = await serve(address, bursts(options.requests, equal_requests(options.steps), seed=number))
                after = await serve(address, trickle)
                done.append(summary(before, outcome, after))
                print(f"{name}: {done[-1]}", file=sys.stderr, flush=True)
    return {
        "command": "python -m bench.burst " + " ".join(sys.argv[1:]),
        "requests": options.requests,
        "steps": options.steps,
        "dtype": options.dtype,
        "settings": dict(options.settings),
        "ratios": ratios(rounds),
        "rounds": rounds,
    }


def ratios(rounds: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, float]]:
    """synerdiff's mean end-to-end latency and throughput over each other policy's, medians over the rounds."""

    def median(name: str, value: str) -> float:
        return statistics.median(float(one[value]) for one in rounds[name])

    values = ("end_to_end_mean_s", "images_per_s")
    others = [name for name in rounds if name != "synerdiff"] if "synerdiff" in rounds else []
    return {name: {value: median("synerdiff", value) / median(name, value) for value in values} for name in others}


def main() -> int:
    """Parse the command line and measure. The exit status is 1 when a request failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", type=Path, help="profile file that every configuration plans by")
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--dtype", default="float32")
    add_settings(parser)
    add_only(parser, CONFIGURATIONS)
    parser.add_argument("--name", default="burst", help="of the file under bench/results")
    options = parser.parse_args()
    result = asyncio.run(measure(options))
    print(json.dumps(result["ratios"], indent=1))
    print(f"written: {save(options.name, result)}", file=sys.stderr)
    return int(any(one["errors"] for done in result["rounds"].values() for one in done))


if __name__ == "__main__":
    sys.exit(main())
