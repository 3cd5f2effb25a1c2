"""The threshold controller against every constant threshold, simulated.

    python -m bench.controller_tuning [--requests 500] [--seeds 3] [--set integral_per_s=0.05 ...] [--json FILE]

Poisson arrivals from 0.2 to 1.1 of what the device of each of the paper's profiles can serve. Prints, per profile and
load, the mean end-to-end latency (s) under every constant and under the controller, how far the controller is from the
best constant, and the most switches it made within any second.
"""

import argparse
import json
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

from pydantic import TypeAdapter

from services.scheduler.planner.plan_book import PlanBook
from services.scheduler.policy.controller import ControllerSettings
from services.scheduler.policy.policies import POLICIES, PolicySpec
from services.scheduler.simulation.simulation import SimulatedPool, simulate_spec
from services.scheduler.simulation.workloads import Mix, poisson
from synerdiff.profiles import load

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
    profile = load(Path(__file__).parent / "profiles" / f"{case.profile}.json")
    arrivals = poisson(case.load * case.mix.capacity_per_s(profile), case.requests, case.mix, case.seed)
    spec: PolicySpec = POLICIES["synerdiff"]
    if case.threshold is not None:
        spec = replace(spec, controller=False, threshold=case.threshold)
    summary = simulate_spec(SimulatedPool(profile), spec, arrivals, case.settings, plans=_PLANS).summary
    return case, summary.mean_s, summary.mean_threshold, summary.switches_per_s


def table(cases: Iterable[Case], processes: int) -> list[Row]:
    """Run them all; a row per profile and load, means over the seeds."""
    with ProcessPoolExecutor(processes) as pool:
        done = list(pool.map(run, cases, chunksize=4))
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
    thresholds = [f"{threshold:g}" for threshold in rows[0].constants]
    heads = ["profile", "load", *thresholds, "controller", "over the best", "mean threshold", "switches/s"]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for row in rows:
        means = [f"{mean_s:.3f}" for mean_s in row.constants.values()]
        own = [f"{row.controller:.3f}", f"{row.excess:+.1%}", f"{row.mean_threshold:.2f}", str(row.switches_per_s)]
        lines.append(f"| {' | '.join([row.profile, f'{row.load:g}', *means, *own])} |")
    return "\n".join(lines)


def settings_from(pairs: Iterable[str]) -> ControllerSettings:
    """The controller's settings from NAME=VALUE pairs."""
    return TypeAdapter(ControllerSettings).validate_python(dict(pair.split("=", 1) for pair in pairs))


def main() -> None:
    """Parse the command line, simulate, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, nargs="+", default=[20], help="step counts, equally likely")
    parser.add_argument("--profiles", nargs="+", default=PROFILES)
    parser.add_argument("--loads", type=float, nargs="+", default=LOADS)
    parser.add_argument("--constants", type=float, nargs="+", default=CONSTANTS)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the controller")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", type=Path, help="also write the rows there")
    options = parser.parse_args()
    mix = Mix(steps=tuple((steps, 1.0) for steps in options.steps))
    settings = settings_from(options.set)
    cases = [
        Case(profile, share, seed, threshold, options.requests, mix, settings)
        for profile in options.profiles
        for share in options.loads
        for threshold in (*options.constants, None)
        for seed in range(options.seeds)
    ]
    rows = table(cases, options.processes)
    print(f"simulated: {options.requests} requests of {options.steps} steps, {options.seeds} seeds")
    print(printed(rows))
    if options.json:
        written: list[dict[str, Any]] = [row._asdict() for row in rows]
        options.json.write_text(json.dumps(written, indent=2))


if __name__ == "__main__":
    main()
