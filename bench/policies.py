"""Every policy at several loads, simulated: mean and P99 latency, and how far synerdiff is from the best of the others.

    python -m bench.policies [--profiles paper-table,...] [--mixes mixed,...] [--loads 0.3,0.7,1.3,burst]
        [--requests 100] [--seeds 10] [--set tail_factor=2]

Poisson arrivals at shares of the device's capacity, or 64 requests at once; the same requests for every policy, no
item larger than the profile's caps for any of them. "Skipping": half of the guidance may be skipped, as the bundled
model allows, or as much as the profile's own budget says; the others never skip. Means over seeds of each run's mean
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
from services.scheduler.policy.policy_spec import POLICIES, PolicyBounds, Urgency
from services.scheduler.simulation.simulated_device import Overheads
from services.scheduler.simulation.simulation import SimulatedPool, simulate_spec
from services.scheduler.simulation.workloads import Mix, burst, poisson
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
# As the bundled model allows: the paper's models were not measured.
BUNDLED_BUDGET = SkipCfgBudget("extrapolate:0.5", share=0.5, longest_run=1)
PLANS = PlanBook(capacity=1 << 16, solve_now=True)


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
    """Of one policy under one load."""

    mean_s: float
    p99_s: float


class Row(NamedTuple):
    profile: str
    mix: str
    load: str
    policies: dict[str, Latencies]

    @property
    def excess(self) -> dict[str, list[float]]:
        """Of each of ours over the best of the others, less 1, in mean and in P99."""
        others = [found for name, found in self.policies.items() if name not in OURS]
        best = [min(found) for found in zip(*others, strict=True)]
        ours = {name: self.policies[name] for name in OURS if name in self.policies}
        return {name: [own / other - 1 for own, other in zip(found, best, strict=True)] for name, found in ours.items()}


def profile_of(name: str) -> Profile:
    return load(Path(__file__).parent / "profiles" / f"{name}.json")


def run(case: Case) -> Latencies:
    profile, mix = profile_of(case.profile), MIXES[case.mix]
    caps = profile.caps
    bounds = PolicyBounds()
    bounds = replace(bounds, unet_batch=min(bounds.unet_batch, caps.unet), vae_batch=min(bounds.vae_batch, caps.vae))
    budget = (profile.skip_cfg or BUNDLED_BUDGET) if case.policy.endswith("skipping") else None
    spec = replace(POLICIES[case.policy.split()[0]], urgency=case.urgency)
    pool = SimulatedPool(replace(profile, skip_cfg=budget), overheads=Overheads(slots=BURST))
    if case.load == "burst":
        arrivals = burst(BURST, mix, case.seed)
    else:
        arrivals = poisson(float(case.load) * mix.capacity_per_s(profile), case.requests, mix, case.seed)
    summary = simulate_spec(pool, spec, arrivals, bounds=bounds, plans=PLANS).summary
    return Latencies(summary.mean_s, summary.p99_s)


def table(cases: Sequence[Case], processes: int) -> list[Row]:
    """Run them all; a row per profile, mix and load, means over the seeds."""
    rows: dict[tuple[str, str, str], dict[str, list[Latencies]]] = {}
    for case, latencies in zip(cases, spread(run, cases, processes), strict=True):
        of_policies = rows.setdefault((case.profile, case.mix, case.load), {})
        of_policies.setdefault(case.policy, []).append(latencies)
    return [
        Row(*place, {name: Latencies(*map(mean, zip(*seeds, strict=True))) for name, seeds in of_policies.items()})
        for place, of_policies in rows.items()
    ]


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
