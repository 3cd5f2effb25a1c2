"""Served throughput with the default guidance budget against Skip-CFG off, turn by turn in one deployment.

    python -m bench.skip_throughput --profile emoji-profile.json [--requests 64] [--steps 20] [--rounds 4]

The profile has to hold a budget (`synerdiff profile --fidelity`). Each round sends the same requests twice, all at
once: with the server's default, and with Skip-CFG switched off by the request; which goes first alternates. Throughput
is images over the time from the first arrival to the last end. Prints JSON and writes bench/results/NAME.json.
"""

import statistics
from typing import Any

from bench.command import ProfileFile, Settings, as_json, run, say, settings_of
from bench.reporting import save
from bench.serving import SETTINGS, deployment, equal_requests, serve, warm_up
from synerdiff.client.load.arrivals import bursts
from synerdiff.client.load.rounds import in_turns

MODES: dict[str, bool | None] = {"default": None, "off": False}
SHOWN = ("median_gain", "gains", "skipped_share")


async def measure(
    profile: ProfileFile = None,
    settings: Settings = None,
    requests: int = 64,
    steps: int = 20,
    rounds: int = 4,
    dtype: str = "float32",
    name: str = "skip-throughput",
) -> dict[str, Any]:
    common = settings_of(settings, SETTINGS)
    async with deployment(common, profile, dtype) as address:

        async def burst(mode: str, number: int) -> dict[str, Any]:
            mix = equal_requests(steps, skip_cfg=MODES[mode])
            outcome = await serve(address, bursts(requests, mix, seed=number))
            done = {
                "images_per_s": outcome.window.images_per_s,
                "skipped_share": outcome.skipped_share,
                "errors": outcome.errors,
            }
            say(f"round {number}, {mode}: {done}")
            return done

        await warm_up(address)
        done = await in_turns(list(MODES), rounds, burst)
    gains = [one["default"]["images_per_s"] / one["off"]["images_per_s"] for one in done]
    result = {
        "settings": common,
        "requests": requests,
        "steps": steps,
        "dtype": dtype,
        "median_gain": statistics.median(gains),
        "gains": gains,
        "skipped_share": statistics.fmean(one["default"]["skipped_share"] for one in done),
        "rounds": done,
    }
    say(f"written: {save(name, result)}")
    return result


if __name__ == "__main__":
    run(measure, show=lambda result: as_json({key: result[key] for key in SHOWN}))
