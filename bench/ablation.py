"""Every policy, and synerdiff less each of its mechanisms, live at three loads: one run, same requests, same times.

    synerdiff profile --compile off --out emoji-profile.json
    python -m bench.ablation --profile emoji-profile.json [--seconds 20] [--only synerdiff,continuous] [--name ablation]

Starts a deployment of the bundled model per configuration and sends it the same requests at the same times: at a low,
a medium and a saturating load, given as shares of the capacity that `continuous` shows in a burst at the start
(`--capacity` skips that). Nothing is compiled here, nor may it be in the profile. End-to-end latency counts from when a
request was due, decode latency from its last step to its image stored. `largest item` is the longest time of an item
over its prediction, of the items that ran in step. Each configuration takes a minute, in which a machine may change its
speed: `bench.peers --ours NAME:policy=NAME,compile=off` alternates between a few.
Prints a Markdown table and writes bench/results/NAME.json. A run takes about configurations x loads x 1.5 x `seconds`.
"""

import time
from collections.abc import Mapping
from typing import Any

from bench.command import Only, ProfileFile, Settings, markdown_table, number, run, save, say, settings_of, some_of
from bench.serving import MIXED, SETTINGS, deployment, serve
from synerdiff.client.load.arrivals import Arrival, bursts, poisson

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
# Of the numbers of a load: their heading, and how they are printed.
COLUMNS = {
    "images_per_s": ("images/s", 2),
    "end_to_end_mean_s": ("end to end, mean s", 2),
    "end_to_end_p99_s": ("P99 s", 2),
    "decode_mean_ms": ("decode, mean ms", 0),
    "decode_p99_ms": ("P99 ms", 0),
}


def workload(capacity: float, seconds: float, seed: int) -> dict[str, tuple[Arrival, ...]]:
    """The requests of each load, the same for the same arguments."""
    return {name: poisson(share * capacity, MIXED, seed, seconds=seconds) for name, share in LOADS.items()}


def table(results: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """The results as Markdown, a row per configuration and load."""
    rows = []
    for load, configuration in ((load, configuration) for load in LOADS for configuration in results):
        if r := results[configuration].get(load):
            shown = (number(r[name], digits) for name, (_, digits) in COLUMNS.items())
            largest = number(r["item_ratio_largest"], 2, "x")
            rows.append((configuration, load, *shown, f"{r['skipped_share']:.0%}", largest))
    headings = (heading for heading, _ in COLUMNS.values())
    return markdown_table(("configuration", "load", *headings, "skipped", "largest item"), rows)


async def measured_capacity(dtype: str) -> float:
    """Images per second of `continuous` on a burst of the workload's requests."""
    async with deployment({"policy": "continuous"}, dtype=dtype) as address:
        return (await serve(address, bursts(CAPACITY_BURST, MIXED, seed=0))).window.images_per_s


async def measure(
    profile: ProfileFile = None,
    seconds: float = 20.0,
    seed: int = 1,
    dtype: str = "float32",
    capacity: float | None = None,
    settings: Settings = None,
    only: Only = "",
    name: str = "ablation",
) -> dict[str, Any]:
    chosen, common = some_of(only, CONFIGURATIONS, "--only"), settings_of(settings, SETTINGS)
    capacity = capacity or await measured_capacity(dtype)
    say(f"capacity: {capacity:.2f} images/s")
    results: dict[str, dict[str, Any]] = {each: {} for each in chosen}
    for configuration, done in results.items():
        async with deployment(common | CONFIGURATIONS[configuration], profile, dtype) as address:
            for load, arrivals in workload(capacity, seconds, seed).items():
                began = time.monotonic()
                done[load] = (await serve(address, arrivals)).summary()
                say(f"{configuration}, {load}: {len(arrivals)} requests in {time.monotonic() - began:.1f} s")
    result = {
        "dtype": dtype,
        "settings": common,
        "seconds": seconds,
        "seed": seed,
        "capacity_images_per_s": capacity,
        "load_shares": LOADS,
        "configurations": {each: CONFIGURATIONS[each] for each in results},
        "results": results,
    }
    say(f"written: {save(name, result)}")
    return result


if __name__ == "__main__":
    run(measure, show=lambda result: table(result["results"]))
