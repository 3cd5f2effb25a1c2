"""Served throughput with the default guidance budget against Skip-CFG off, turn by turn in one deployment.

    python -m bench.skip_throughput --profile emoji-profile.json [--requests 64] [--steps 20] [--rounds 4]

The profile has to hold a budget (`synerdiff profile --fidelity`). Each round sends the same requests twice, all at
once: with the server's default, and with Skip-CFG switched off by the request; which goes first alternates. Throughput
is images over the time from the first arrival to the last end. Prints JSON and writes bench/results/NAME.json.
"""

import argparse
import asyncio
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from bench.ablation import warm_up
from bench.reporting import save
from bench.serving import Outcome, add_settings, deployment, equal_requests, serve
from synerdiff.client.load.arrivals import bursts
from synerdiff.client.load.rounds import in_turns

MODES: dict[str, bool | None] = {"default": None, "off": False}


def summary(outcome: Outcome) -> dict[str, Any]:
    """One burst: images/s, and the share of steps that skipped guidance."""
    return {
        "images_per_s": outcome.window.images_per_s,
        "skipped_share": outcome.skipped_share,
        "errors": outcome.errors,
    }


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run the rounds."""
    async with deployment(dict(options.settings), options.profile, options.dtype) as address:

        async def burst(mode: str, number: int) -> dict[str, Any]:
            mix = equal_requests(options.steps, skip_cfg=MODES[mode])
            done = summary(await serve(address, bursts(options.requests, mix, seed=number)))
            print(f"round {number}, {mode}: {done}", file=sys.stderr, flush=True)
            return done

        await warm_up(address)
        rounds = await in_turns(list(MODES), options.rounds, burst)
    gains = [one["default"]["images_per_s"] / one["off"]["images_per_s"] for one in rounds]
    return {
        "command": "python -m bench.skip_throughput " + " ".join(sys.argv[1:]),
        "settings": dict(options.settings),
        "requests": options.requests,
        "steps": options.steps,
        "dtype": options.dtype,
        "median_gain": statistics.median(gains),
        "gains": gains,
        "skipped_share": statistics.fmean(one["default"]["skipped_share"] for one in rounds),
        "rounds": rounds,
    }


def main() -> int:
    """Parse the command line and measure. The exit status is 1 when a request failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", type=Path, help="profile file with a budget")
    add_settings(parser)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--name", default="skip-throughput", help="of the file under bench/results")
    options = parser.parse_args()
    result = asyncio.run(measure(options))
    print(json.dumps({key: result[key] for key in ("median_gain", "gains", "skipped_share")}, indent=1))
    print(f"written: {save(options.name, result)}", file=sys.stderr)
    return int(any(mode["errors"] for one in result["rounds"] for mode in one.values()))


if __name__ == "__main__":
    sys.exit(main())
