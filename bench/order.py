"""What the order of urgency is worth, simulated: against first come first served, processor sharing and continuous.

    python -m bench.order [--seeds 20] [--requests 5000] [--load 0.9] [--profile paper-table] [--json FILE]

Two experiments, the same requests for both sides of each. Steady: Poisson arrivals, half of 8 and half of 50 steps;
prints the mean end-to-end latency in order of urgency over that in order of acceptance, and the most that any request
was later than its own time in order of acceptance; and the ratio that least work first comes to without a scheduler,
which no order betters by much. Burst: 64 equal requests at once, with a slot for each; prints the
mean of `synerdiff` over that of processor sharing and over that of `continuous` capped at the knee, and the
throughputs, both with full guidance and with what the bundled model can do without.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from itertools import product
from operator import itemgetter
from pathlib import Path
from statistics import mean
from typing import Any

from bench.command import CORES, JsonFile, Processes, as_json, run, say, spread
from services.scheduler.planner.plan_book import PlanBook
from services.scheduler.policy.capacity import best_costs
from services.scheduler.policy.policies import POLICIES, PolicySpec
from services.scheduler.policy.policy_spec import Urgency
from services.scheduler.simulation.simulated_workers import Overheads
from services.scheduler.simulation.simulation import SimulatedPool, simulate_spec
from services.scheduler.simulation.simulation_results import SimulationResult
from services.scheduler.simulation.workloads import Arrival, Mix, burst, poisson
from synerdiff.profiles import Profile, load
from synerdiff.skip_cfg import SkipCfgBudget

HALF_SHORT_HALF_LONG = Mix(steps=((8, 0.5), (50, 0.5)))
# Without the bound that holds its P99 to that in order of acceptance: see `bench.policies` for what that costs.
URGENCY = replace(POLICIES["synerdiff"], urgency=Urgency(tail_factor=1e6))
FIFO = replace(URGENCY, order="fifo")
SHARING = replace(URGENCY, order="sharing")
CONTINUOUS_AT_KNEE = replace(POLICIES["continuous"], knee=True)
# As the bundled model bears it: the paper's models were not measured.
BUNDLED_BUDGET = SkipCfgBudget("extrapolate:0.5", share=0.5, longest_run=1)
_PLANS = PlanBook(solve_now=True)


def paper_profile(name: str) -> Profile:
    """One of the profiles under bench/profiles."""
    return load(Path(__file__).parent / "profiles" / f"{name}.json")


def served(profile: Profile, spec: PolicySpec, arrivals: tuple[Arrival, ...]) -> SimulationResult:
    """The arrivals, served by a spec on one device."""
    return simulate_spec(SimulatedPool(profile), spec, arrivals, plans=_PLANS)


def steady(profile_name: str, share: float, requests: int, seed: int) -> Mapping[str, float]:
    """One seed of the first experiment. Means in s; ratios of urgency over acceptance."""
    profile = paper_profile(profile_name)
    rate_per_s = share * HALF_SHORT_HALF_LONG.capacity_per_s(profile)
    arrivals = poisson(rate_per_s, requests, HALF_SHORT_HALF_LONG, seed)
    urgency, fifo = served(profile, URGENCY, arrivals), served(profile, FIFO, arrivals)
    later = [u.latency_ms / f.latency_ms for u, f in zip(urgency.outcomes, fifo.outcomes, strict=True)]
    return {
        "seed": seed,
        "urgency_mean_s": urgency.summary.mean_s,
        "fifo_mean_s": fifo.summary.mean_s,
        "mean_ratio": urgency.summary.mean_s / fifo.summary.mean_s,
        "urgency_p99_s": urgency.summary.p99_s,
        "fifo_p99_s": fifo.summary.p99_s,
        "most_later": max(later),
        "ideal_ratio": without_scheduler(profile, arrivals, True) / without_scheduler(profile, arrivals, False),
        "over_3x": sum(ratio > 3 for ratio in later),
    }


def without_scheduler(profile: Profile, arrivals: tuple[Arrival, ...], least_first: bool) -> float:
    """Mean latency (ms) of an ideal: as many tasks at a time as the knee has, nothing costs time but steps and decodes.

    `least_first`: the tasks with the least work left step, however often that sets others aside; else the first come.
    """
    seats = profile.knee_rows() // 2
    step_ms = [profile.latency_ms(2 * tasks, 0) for tasks in range(seats + 1)]
    decode_ms = best_costs(profile).decode_ms
    now_ms, total_ms, coming = 0.0, 0.0, deque(enumerate(arrivals))
    waiting: list[tuple[int, int]] = []
    while coming or waiting:
        while coming and (not waiting or coming[0][1].at_ms <= now_ms):
            number, arrival = coming.popleft()
            now_ms = max(now_ms, arrival.at_ms) if not waiting else now_ms
            waiting.append((arrival.steps, number))
        waiting.sort(key=None if least_first else itemgetter(1))
        stepped = [(left - 1, number) for left, number in waiting[:seats]]
        now_ms += step_ms[len(stepped)]
        for left, number in stepped:
            if left == 0:
                now_ms += decode_ms
                total_ms += now_ms - arrivals[number].at_ms
        waiting[: len(stepped)] = [task for task in stepped if task[0]]
    return total_ms / len(arrivals)


def burst_of_equals(profile: Profile, requests: int, steps: int) -> Mapping[str, float]:
    """The second experiment, with a slot for every request. Means in s, throughputs in requests per second."""
    arrivals = burst(requests, Mix(steps=((steps, 1.0),)), seed=0)
    pool = SimulatedPool(profile, overheads=Overheads(slots=requests))
    specs = {"urgency": URGENCY, "sharing": SHARING, "continuous_at_knee": CONTINUOUS_AT_KNEE}
    summaries = {name: simulate_spec(pool, spec, arrivals, plans=_PLANS).summary for name, spec in specs.items()}
    figures: dict[str, float] = {}
    for name, summary in summaries.items():
        figures |= {f"{name}_mean_s": summary.mean_s, f"{name}_per_s": summary.requests_per_s}
    own = summaries["urgency"].mean_s
    figures["over_sharing"] = own / summaries["sharing"].mean_s
    figures["over_continuous_at_knee"] = own / summaries["continuous_at_knee"].mean_s
    return figures


def measure(
    seeds: int = 20,
    requests: int = 5000,
    load: float = 0.9,
    profile: str = "paper-table",
    burst: int = 64,
    processes: Processes = CORES,
    json_file: JsonFile = None,
) -> dict[str, Any]:
    full, bursts = paper_profile(profile), dict[str, Mapping[str, float]]()
    ways = {"full guidance": full, "half of it skipped": replace(full, skip_cfg=BUNDLED_BUDGET)}
    for steps, (name, of) in product((8, 20, 50), ways.items()):
        bursts[f"{steps} steps, {name}"] = burst_of_equals(of, burst, steps)
        say(f"simulated: a burst of {burst} requests of {steps} steps on {profile}, {name}")
    say(f"simulated: {requests} requests, half of 8 and half of 50 steps, load {load:g}")
    rows = spread(partial(steady, profile, load, requests), range(seeds), processes)
    ratio = mean(row["urgency_mean_s"] for row in rows) / mean(row["fifo_mean_s"] for row in rows)
    found = {
        "bursts": bursts,
        "steady": rows,
        "mean_ratio": ratio,
        "most_later": max(row["most_later"] for row in rows),
    }
    if json_file:
        json_file.write_text(as_json(found))
    return found


if __name__ == "__main__":
    run(measure)
