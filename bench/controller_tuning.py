"""The threshold controller against every constant threshold, simulated.

    python -m bench.controller_tuning [--requests 500] [--seeds 3] [--set integral_per_s=0.05 ...] [--json FILE]

Poisson arrivals from 0.2 to 1.1 of what the device of each of the paper's profiles can serve. Prints, per profile and
load, the mean end-to-end latency (s) under every constant and under the controller, how far the controller is from the
best constant, and the most switches it made within any second.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from statistics import mean
from typing import Annotated, NamedTuple

import typer

from bench.command import CORES, JsonFile, Processes, Settings, as_json, say, spread, typed
from bench.command import run as run_command
from bench.order import paper_profile
from bench.reporting import markdown_table
from services.scheduler.planner.plan_book import PlanBook
from services.scheduler.policy.controller import ControllerSettings
from services.scheduler.policy.policies import POLICIES, PolicySpec
from services.scheduler.simulation.simulation import SimulatedPool, simulate_spec
from services.scheduler.simulation.workloads import Mix, poisson

PROFILES = ("paper-table", "paper-table-serial")
LOADS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1)
CONSTANTS = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 1.0)
_PLANS = PlanBook(solve_now=True)


class Case(NamedTuple):
    """One simulation. `threshold`: None for the controller."""

    profile: str
    load: float
    seed: int
    threshold: float | None
    requests: int
    mix: Mix
    settings: ControllerSettings


class Row(NamedTuple):
    """One profile and load. Means in s by threshold; `excess`: the controller over the best constant, less 1."""

    profile: str
    load: float
    constants: dict[float, float]
    controller: float
    excess: float
    mean_threshold: float
    switches_per_s: int


def run(case: Case) -> tuple[Case, float, float, int]:
    """Mean end-to-end latency (s), mean threshold, most switches within a second."""
    profile = paper_profile(case.profile)
    arrivals = poisson(case.load * case.mix.capacity_per_s(profile), case.requests, case.mix, case.seed)
    spec: PolicySpec = POLICIES["synerdiff"]
    if case.threshold is not None:
        spec = replace(spec, controller=False, threshold=case.threshold)
    summary = simulate_spec(SimulatedPool(profile), spec, arrivals, case.settings, plans=_PLANS).summary
    return case, summary.mean_s, summary.mean_threshold, summary.switches_per_s


def table(cases: Sequence[Case], processes: int) -> list[Row]:
    """Run them all; a row per profile and load, means over the seeds."""
    done = spread(run, cases, processes)
    rows = []
    for profile, share in dict.fromkeys((case.profile, case.load) for case, *_ in done):
        here = [one for one in done if (one[0].profile, one[0].load) == (profile, share)]
        thresholds = sorted({case.threshold for case, *_ in here if case.threshold is not None})
        constants = {t: mean(s for case, s, *_ in here if case.threshold == t) for t in thresholds}
        own = [one for one in here if one[0].threshold is None]
        controller = mean(s for _, s, *_ in own)
        excess = controller / min(constants.values()) - 1
        switches = max(count for *_, count in own)
        rows.append(Row(profile, share, constants, controller, excess, mean(t for _, _, t, _ in own), switches))
    return rows


def printed(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    heads = ("profile", "load", *(f"{threshold:g}" for threshold in rows[0].constants))
    lines = []
    for row in rows:
        means = (f"{mean_s:.3f}" for mean_s in row.constants.values())
        own = (f"{row.controller:.3f}", f"{row.excess:+.1%}", f"{row.mean_threshold:.2f}", row.switches_per_s)
        lines.append((row.profile, f"{row.load:g}", *means, *own))
    return markdown_table((*heads, "controller", "over the best", "mean threshold", "switches/s"), lines)


def measure(
    requests: int = 500,
    seeds: int = 3,
    steps: Annotated[str, typer.Option(help="Step counts, equally likely.")] = "20",
    profiles: str = ",".join(PROFILES),
    loads: str = ",".join(map(str, LOADS)),
    constants: str = ",".join(map(str, CONSTANTS)),
    settings: Settings = None,
    processes: Processes = CORES,
    json_file: JsonFile = None,
) -> list[Row]:
    """Simulate; lists are by comma, settings those of the controller."""
    mix = Mix(steps=tuple((int(count), 1.0) for count in steps.split(",")))
    own = typed(ControllerSettings, settings)
    thresholds = (*map(float, constants.split(",")), None)
    places = product(profiles.split(","), map(float, loads.split(",")), thresholds, range(seeds))
    cases = [Case(name, share, seed, threshold, requests, mix, own) for name, share, threshold, seed in places]
    rows = table(cases, processes)
    if json_file:
        json_file.write_text(as_json([row._asdict() for row in rows]))
    say(f"simulated: {requests} requests of {steps} steps, {seeds} seeds")
    return rows


if __name__ == "__main__":
    run_command(measure, show=printed)
