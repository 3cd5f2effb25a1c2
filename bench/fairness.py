"""The cost of a flood for another caller, simulated: two callers, one of which sends fifty times as much as the other.

    python -m bench.fairness [--policies continuous,...] [--loads 0.3,0.6,0.8] [--profiles paper-table,...]
        [--requests 200] [--seeds 5] [--floods equal,...]

The quiet caller's arrivals are Poisson, at a share of half of the device's capacity; so are the flood's. A caller
may have 100 jobs waiting, more are refused, so the flood always has that many. The quiet caller's arrivals are served a
second time on a device of half the speed, on which it is alone: every item takes twice as long there. That is the
meaning of half of the device here. Half of the slots would be no half: a caller alone has the whole device with them.

Prints the quiet caller's P99 and mean beside the flood over those alone, over the latencies of all seeds together, and
the P99 of the worst seed; then the shares of the device's time that both get, computed at the row count of its best
throughput: the quiet caller asks for half of its load, and the rest is for the flood, less the loss by small batches.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import product
from typing import Annotated, NamedTuple

import numpy as np
import typer

from bench.command import CORES, Processes, markdown_table, say, some_of, spread
from bench.command import run as run_command
from bench.policies import PLANS, PROFILES, profile_of
from services.scheduler.policy.policy_spec import POLICIES
from services.scheduler.simulation.simulation import SimulatedPool, simulate_spec
from services.scheduler.simulation.simulation_results import SimulationResult
from services.scheduler.simulation.workloads import Arrival, Mix, poisson
from synerdiff.profiles import Profile

QUIET, FLOOD = "quiet", "flood"
MIX = Mix(steps=((10, 0.5), (30, 0.5)))
# The flood's requests by name, and its work as a multiple of the quiet caller's.
FLOODS = {"equal": MIX, "long": Mix(steps=((50, 1.0),)), "short": Mix(steps=((4, 1.0),))}
TIMES = 50
MOST_WAITING = 100
SERVED = ("continuous", "synerdiff", "vae-first")
LOADS = (0.3, 0.6, 0.8)


class Case(NamedTuple):
    """One simulation beside the flood, and one alone. `load`: a share of half of the device's capacity."""

    profile: str
    flood: str
    policy: str
    load: float
    seed: int
    requests: int


class Outcome(NamedTuple):
    """The quiet caller's latencies in ms; each caller's share of the device's time beside the other."""

    beside_ms: tuple[float, ...]
    alone_ms: tuple[float, ...]
    quiet_share: float
    flood_share: float

    @property
    def p99_ratio(self) -> float:
        return float(np.percentile(self.beside_ms, 99) / np.percentile(self.alone_ms, 99))


class Row(NamedTuple):
    """One profile, flood, policy and load, over all seeds."""

    profile: str
    flood: str
    policy: str
    load: float
    alone_p99_s: float
    p99_ratio: float
    worst_p99_ratio: float
    mean_ratio: float
    quiet_share: float
    flood_share: float


def slower(profile: Profile, factor: float) -> Profile:
    """The same device at a part of its speed."""
    cells = (replace(cell, median_ms=cell.median_ms * factor, p90_ms=cell.p90_ms * factor) for cell in profile.cells)
    return profile.with_cells(cells)


def run(case: Case) -> Outcome:
    profile, spec = profile_of(case.profile), POLICIES[case.policy]
    capacity_per_s = MIX.capacity_per_s(profile)
    rate_per_s = case.load * capacity_per_s / 2
    quiet = _of(QUIET, poisson(rate_per_s, case.requests, MIX, 2 * case.seed))
    flood = _of(FLOOD, _until(quiet[-1].at_ms, TIMES * rate_per_s, FLOODS[case.flood], 2 * case.seed + 1))
    both = sorted((*quiet, *flood), key=lambda arrival: arrival.at_ms)

    def latencies_ms(result: SimulationResult) -> tuple[float, ...]:
        mine = [outcome for outcome in result.outcomes if outcome.caller == QUIET]
        assert not any(outcome.failed for outcome in mine)
        return tuple(outcome.latency_ms for outcome in mine)

    beside = simulate_spec(SimulatedPool(profile, most_waiting=MOST_WAITING), spec, both, plans=PLANS)
    alone = simulate_spec(SimulatedPool(slower(profile, 2.0)), spec, quiet, plans=PLANS)
    shares = (_share(beside, caller, profile, quiet[-1].at_ms) for caller in (QUIET, FLOOD))
    return Outcome(latencies_ms(beside), latencies_ms(alone), *shares)


def _of(caller: str, arrivals: Iterable[Arrival]) -> tuple[Arrival, ...]:
    return tuple(replace(arrival, caller=caller) for arrival in arrivals)


def _until(end_ms: float, rate_per_s: float, mix: Mix, seed: int) -> Iterable[Arrival]:
    """Arrivals up to a time."""
    expected = rate_per_s * end_ms / 1000
    drawn = poisson(rate_per_s, int(expected + 10 * expected**0.5) + 10, mix, seed)
    return (arrival for arrival in drawn if arrival.at_ms < end_ms)


def _share(result: SimulationResult, caller: str, profile: Profile, until_ms: float) -> float:
    """The device time of the caller's served requests, at the best throughput, over the time they took."""
    served = [o for o in result.outcomes if o.caller == caller and not o.failed and o.ended_ms <= until_ms]
    return sum(Mix(steps=((outcome.steps, 1.0),)).mean_ms(profile) for outcome in served) / until_ms


def table(cases: Sequence[Case], processes: int) -> list[Row]:
    """Run them all; a row for all seeds of a case."""
    of_places: dict[tuple[str, str, str, float], list[Outcome]] = {}
    for case, outcome in zip(cases, spread(run, cases, processes), strict=True):
        of_places.setdefault((case.profile, case.flood, case.policy, case.load), []).append(outcome)
    return [_row(place, outcomes) for place, outcomes in of_places.items()]


def _row(place: tuple[str, str, str, float], outcomes: Sequence[Outcome]) -> Row:
    beside, alone = (np.concatenate(latencies) for latencies in list(zip(*outcomes, strict=True))[:2])
    alone_p99_s = float(np.percentile(alone, 99)) / 1000
    return Row(
        *place,
        alone_p99_s,
        float(np.percentile(beside, 99)) / 1000 / alone_p99_s,
        max(outcome.p99_ratio for outcome in outcomes),
        float(beside.mean() / alone.mean()),
        float(np.mean([outcome.quiet_share for outcome in outcomes])),
        float(np.mean([outcome.flood_share for outcome in outcomes])),
    )


def printed(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    heads = ("profile", "flood", "policy", "load", "P99 alone (s)", "P99 ratio", "worst seed", "mean ratio", "shares")
    lines = [
        (
            *(row.profile, row.flood, row.policy, f"{row.load:g}", f"{row.alone_p99_s:.2f}", f"{row.p99_ratio:.2f}"),
            *(f"{row.worst_p99_ratio:.2f}", f"{row.mean_ratio:.2f}", f"{row.quiet_share:.2f} + {row.flood_share:.2f}"),
        )
        for row in rows
    ]
    return markdown_table(heads, lines)


def measure(
    profiles: str = PROFILES[0],
    floods: Annotated[str, typer.Option(help=f"Of {', '.join(FLOODS)}.")] = "equal",
    policies: Annotated[str, typer.Option(help=f"Of {', '.join(POLICIES)}.")] = ",".join(SERVED),
    loads: Annotated[str, typer.Option(help="Shares of half of the capacity.")] = ",".join(map(str, LOADS)),
    requests: int = 200,
    seeds: int = 5,
    processes: Processes = CORES,
) -> list[Row]:
    """Simulate; lists are by comma."""
    places = product(
        profiles.split(","),
        some_of(floods, FLOODS, "--floods"),
        some_of(policies, POLICIES, "--policies"),
        map(float, loads.split(",")),
        range(seeds),
    )
    rows = table([Case(*place, requests) for place in places], processes)
    say(f"simulated: {requests} requests of the quiet caller, {seeds} seeds")
    return rows


if __name__ == "__main__":
    run_command(measure, show=printed)
