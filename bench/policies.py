"""Every policy at several loads, simulated: mean and P99 latency, and how far synerdiff is from the best of the others.

    python -m bench.policies [--profiles paper-table,...] [--mixes mixed,...] [--loads 0.3,0.7,1.3,burst]
        [--requests 100] [--seeds 10] [--set tail_factor=2]

Poisson arrivals at shares of what the device can serve, or 64 requests at once; the same requests for every policy, no
item larger than the profile's caps for any of them. "Skipping": half of the guidance may be skipped, as the bundled
model bears it, or as much as the profile's own budget says; the others never skip. Means over seeds of each run's mean
and P99; a load over 1 lasts as long as its requests, so its P99 is near the latency of the last of them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Annotated, NamedTuple

import typer

from bench.command import CORES, Processes, Settings, markdown_table, say, some_of, spread, typed
from bench.command import run as run_command
from services.scheduler.planner.plan_book import PlanBook
from services.scheduler.policy.policies import POLICIES, PolicyBounds
from services.scheduler.policy.policy_spec import Urgency
from services.scheduler.simulation.simulated_device import Overheads
from services.scheduler.simulation.simulation import SimulatedPool, simulate_spec
from services.scheduler.simulation.workloads import Arrival, Mix, burst, poisson
from synerdiff.profiles import Profile, load
from synerdiff.skip_cfg import SkipCfgBudget

OURS = ("synerdiff", "synerdiff skipping")
OTHERS = ("static", "dynamic", "continuous", "vae-first")
MIXES = {
    "equal": Mix(),
    "mixed": Mix(steps=((8, 0.25), (12, 0.25), (20, 0.5))),
    "short and long": Mix(steps=((8, 0.5), (50, 0.5))),
}
PROFILES = ("paper-table", "paper-table-serial", "emoji-epyc-2core-fp32")
LOADS = ("0.3", "0.7", "1.3", "burst")
BURST = 64
# As the bundled model bears it: the paper's models were not measured.
BUNDLED_BUDGET = SkipCfgBudget("extrapolate:0.5", share=0.5, longest_run=1)
_PROFILES = Path(__file__).parent / "profiles"
_PLANS = PlanBook(capacity=1 << 16, solve_now=True)


class Case(NamedTuple):
    """One simulation. `load`: a share of capacity, or "burst"."""

    profile: str
    mix: str
    load: str
    policy: str
    seed: int
    requests: int
    urgency: Urgency = Urgency()


class Latencies(NamedTuple):
    """Of one policy under one load, in s; `requests_per_s` from the first arrival to the last end."""

    mean_s: float
    p99_s: float
    requests_per_s: float


class Row(NamedTuple):
    """One profile, mix and load. `excess`: of each of ours over the best of the others, less 1, in mean and in P99."""

    profile: str
    mix: str
    load: str
    policies: dict[str, Latencies]
    excess: dict[str, tuple[float, float]]


def run(case: Case) -> Latencies:
    profile = load(_PROFILES / f"{case.profile}.json")
    caps = profile.caps
    bounds = PolicyBounds()
    bounds = replace(bounds, unet_batch=min(bounds.unet_batch, caps.unet), vae_batch=min(bounds.vae_batch, caps.vae))
    budget = (profile.skip_cfg or BUNDLED_BUDGET) if case.policy.endswith("skipping") else None
    spec = replace(POLICIES[case.policy.split()[0]], urgency=case.urgency)
    pool = SimulatedPool(replace(profile, skip_cfg=budget), overheads=Overheads(slots=BURST))
    summary = simulate_spec(pool, spec, _arrivals(case, profile), bounds=bounds, plans=_PLANS).summary
    return Latencies(summary.mean_s, summary.p99_s, summary.requests_per_s)


def _arrivals(case: Case, profile: Profile) -> tuple[Arrival, ...]:
    mix = MIXES[case.mix]
    if case.load == "burst":
        return burst(BURST, mix, case.seed)
    return poisson(float(case.load) * mix.capacity_per_s(profile), case.requests, mix, case.seed)


def table(cases: Sequence[Case], processes: int) -> list[Row]:
    """Run them all; a row per profile, mix and load, means over the seeds."""
    done = spread(run, cases, processes)
    rows: dict[tuple[str, str, str], dict[str, list[Latencies]]] = {}
    for case, latencies in zip(cases, done, strict=True):
        of_policies = rows.setdefault((case.profile, case.mix, case.load), {})
        of_policies.setdefault(case.policy, []).append(latencies)
    return [_row(place, of_policies) for place, of_policies in rows.items()]


def _row(place: tuple[str, str, str], of_policies: dict[str, list[Latencies]]) -> Row:
    policies = {name: Latencies(*map(mean, zip(*seeds, strict=True))) for name, seeds in of_policies.items()}
    others = [latencies for name, latencies in policies.items() if name not in OURS]
    best_mean_s, best_p99_s = (min(other[k] for other in others) for k in (0, 1))
    excess = {
        name: (policies[name].mean_s / best_mean_s - 1, policies[name].p99_s / best_p99_s - 1)
        for name in OURS
        if name in policies
    }
    return Row(*place, policies, excess)


def printed(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table: mean / P99 of each policy, then ours over the best of the others."""
    names = list(rows[0].policies)
    lines = []
    for row in rows:
        latencies = [f"{row.policies[name].mean_s:.2f} / {row.policies[name].p99_s:.2f}" for name in names]
        excess = [f"{of_mean:+.1%} / {of_p99:+.1%}" for of_mean, of_p99 in row.excess.values()]
        lines.append([row.profile, row.mix, row.load, *latencies, *excess])
    over = (f"{name}, over the best" for name in rows[0].excess)
    return markdown_table(["profile", "requests", "load", *names, *over], lines)


def cases(
    profiles: Iterable[str], mixes: Iterable[str], loads: Iterable[str], seeds: int, requests: int, urgency: Urgency
) -> list[Case]:
    """Every policy under every one of these; of a burst of equal requests one seed is enough."""
    return [
        Case(profile, mix, load, policy, seed, requests, urgency)
        for profile, mix, load, policy in product(profiles, mixes, loads, (*OTHERS, *OURS))
        for seed in range(1 if (mix, load) == ("equal", "burst") else seeds)
    ]


def measure(
    profiles: str = ",".join(PROFILES),
    mixes: Annotated[str, typer.Option(help=f"Of {', '.join(MIXES)}.")] = "",
    loads: Annotated[str, typer.Option(help="Shares of capacity, and burst.")] = ",".join(LOADS),
    requests: int = 100,
    seeds: int = 10,
    settings: Settings = None,
    processes: Processes = CORES,
) -> list[Row]:
    """Simulate every policy; lists are by comma, settings constants of the order."""
    listed = some_of(mixes, MIXES, "--mixes")
    every = cases(profiles.split(","), listed, loads.split(","), seeds, requests, typed(Urgency, settings))
    rows = table(every, processes)
    say(f"simulated, mean / P99 in s: {requests} requests, {seeds} seeds")
    return rows


if __name__ == "__main__":
    run_command(measure, show=printed)
