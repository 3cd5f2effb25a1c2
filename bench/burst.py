"""A burst of equal requests under several policies: mean end-to-end latency, throughput, and the threshold over time.

    python -m bench.burst --profile emoji-profile.json [--requests 64] [--steps 20] [--rounds 2]

Sends the same burst to `synerdiff`, to `synerdiff` in the order of processor sharing and without skipping guidance, and
to `continuous` capped at the knee, `rounds` times each in turn, with a deployment of its own each time. A trickle of
requests before and after the burst shows the threshold's values around it. Prints the ratios of means as
JSON and writes bench/results/NAME.json.
"""

import itertools
import statistics
from typing import Any

from bench.command import Only, ProfileFile, Settings, as_json, run, save, say, settings_of, some_of
from bench.serving import MIXED, SETTINGS, Outcome, deployment, equal_requests, serve
from synerdiff.client.load.arrivals import bursts, poisson

CONFIGURATIONS: dict[str, dict[str, str]] = {
    "synerdiff": {"policy": "synerdiff"},
    "processor sharing": {"policy": "synerdiff", "order": "sharing"},
    "without skipping": {"policy": "synerdiff", "skip_cfg": "off"},
    "continuous at the knee": {"policy": "continuous", "knee": "on"},
}
TRICKLE_S = 15.0
TRICKLE_PER_S = 0.7


def summary(before: Outcome, outcome: Outcome, after: Outcome) -> dict[str, Any]:
    """One burst: latencies in s, throughput in images/s, and the threshold in the trickles before and after it."""
    values = [value for _, value in outcome.thresholds]
    return outcome.summary() | {
        "errors": [*before.errors, *outcome.errors, *after.errors],
        "threshold_before": before.thresholds[-1][1] if before.thresholds else None,
        "threshold_highest": max(values, default=None),
        "threshold_after": after.thresholds[-1][1] if after.thresholds else None,
        "threshold_switches": sum(a != b for a, b in itertools.pairwise(values)),
    }


async def measure(
    profile: ProfileFile = None,
    requests: int = 64,
    steps: int = 20,
    rounds: int = 2,
    dtype: str = "float32",
    settings: Settings = None,
    only: Only = "",
    name: str = "burst",
) -> dict[str, Any]:
    done: dict[str, list[dict[str, Any]]] = {each: [] for each in some_of(only, CONFIGURATIONS, "--only")}
    common = settings_of(settings, SETTINGS)
    for number, (policy, listed) in itertools.product(range(rounds), done.items()):
        async with deployment(CONFIGURATIONS[policy] | common, profile, dtype) as address:
            trickle = poisson(TRICKLE_PER_S, MIXED, number, seconds=TRICKLE_S)
            before = await serve(address, trickle)
            outcome = await serve(address, bursts(requests, equal_requests(steps), seed=number))
            listed.append(summary(before, outcome, await serve(address, trickle)))
            say(f"{policy}: {listed[-1]}")
    about = {"requests": requests, "steps": steps, "dtype": dtype, "settings": common}
    result = {**about, "ratios": ratios(done), "rounds": done}
    say(f"written: {save(name, result)}")
    return result


def ratios(rounds: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, float]]:
    """synerdiff's mean end-to-end latency and throughput over each other policy's, medians over the rounds."""

    def median(name: str, value: str) -> float:
        return statistics.median(float(one[value]) for one in rounds[name])

    values = ("end_to_end_mean_s", "images_per_s")
    others = [name for name in rounds if name != "synerdiff"] if "synerdiff" in rounds else []
    return {name: {value: median("synerdiff", value) / median(name, value) for value in values} for name in others}


if __name__ == "__main__":
    run(measure, show=lambda result: as_json(result["ratios"]))
