"""`synerdiff simulate`: predicts the scheduler's results for a load on a device, by its profile alone."""

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from pydantic import TypeAdapter, ValidationError

from services.scheduler.planner.plan_book import PlanBook
from services.scheduler.policy.controller import ControllerSettings
from services.scheduler.policy.policy_spec import POLICIES, PolicyBounds, PolicySpec
from services.scheduler.simulation.simulated_device import Overheads
from services.scheduler.simulation.simulation import SimulatedPool, simulate_spec
from services.scheduler.simulation.simulation_results import SimulationResult
from services.scheduler.simulation.workloads import Arrival, Mix, burst, from_file, poisson
from synerdiff.profiles import Profile, load
from synerdiff_cli.console import EXIT_INVALID, errors_as_lines, fail, out, plain_table

_DEFAULT_LOAD = 0.8
_HIGHEST_LOAD = 1.5
_LOAD_STEP = 0.01
_Settings = TypeVar("_Settings", PolicySpec, PolicyBounds, ControllerSettings, Overheads)


def simulate(
    profile: Annotated[Path, typer.Option(help="Profile file, as `synerdiff profile` writes it.")],
    policy: Annotated[str, typer.Option(help=f"Who runs and when: {', '.join(POLICIES)}.")] = "synerdiff",
    compare: Annotated[str, typer.Option(help="Several policies, by comma, on the same requests.")] = "",
    rate: Annotated[float | None, typer.Option(help="Poisson arrivals, requests per second.")] = None,
    load_share: Annotated[
        float | None, typer.Option("--load", help=f"As a share of what the device can serve. Default: {_DEFAULT_LOAD}.")
    ] = None,
    burst_size: Annotated[int | None, typer.Option("--burst", min=1, help="So many requests at once.")] = None,
    arrivals: Annotated[Path | None, typer.Option(help="Recorded arrivals: CSV, or JSON lines in .jsonl.")] = None,
    requests: Annotated[int, typer.Option(min=1, help="Requests in all, with --rate and --load.")] = 500,
    steps: Annotated[int, typer.Option(min=1, help="num_inference_steps of every request.")] = 20,
    steps_mix: Annotated[str, typer.Option(help="Shares of step counts, as 8:0.5,50:0.5.")] = "",
    guided: Annotated[float, typer.Option(min=0, max=1, help="Share of the requests with guidance.")] = 1.0,
    seed: Annotated[int, typer.Option(help="The same seed gives the same requests.")] = 0,
    domains: Annotated[int, typer.Option(min=1, help="Devices of this profile.")] = 1,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="NAME=VALUE", help="A mechanism or constant, as knee=false or controller.gain=1."
        ),
    ] = None,
    target_p99_s: Annotated[
        float | None, typer.Option(help="Also look for the highest load whose P99 latency is no more than this.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Predict latencies and throughput from a profile, without the device. Nothing here is measured."""
    if sum(given is not None for given in (rate, load_share, burst_size, arrivals)) > 1:
        fail("--rate, --load, --burst, --arrivals: give one of them", EXIT_INVALID)
    if target_p99_s is not None and (burst_size is not None or arrivals is not None):
        fail("--target-p99-s: needs Poisson arrivals", EXIT_INVALID)
    with errors_as_lines():
        measured = load(profile)
        mix = Mix(steps=_steps_mix(steps_mix) if steps_mix else ((steps, 1.0),), guided_share=guided)
        capacity_per_s = domains * mix.capacity_per_s(measured)

        def at_load(share: float) -> tuple[Arrival, ...]:
            return poisson(share * capacity_per_s, requests, mix, seed)

        if arrivals is not None:
            asked = from_file(arrivals)
        elif burst_size is not None:
            asked = burst(burst_size, mix, seed)
        elif rate is not None:
            asked = poisson(rate, requests, mix, seed)
        else:
            asked = at_load(_DEFAULT_LOAD if load_share is None else load_share)
    cases = [_case(name.strip(), settings or [], measured, domains) for name in (compare or policy).split(",")]
    results = {case.spec.name: case.serve(asked) for case in cases}
    highest: dict[str, float] = {}
    if target_p99_s is not None:
        highest = {case.spec.name: case.highest_load(at_load, target_p99_s) for case in cases}
    if as_json:
        typer.echo(json.dumps(_as_fields(measured, capacity_per_s, results, highest), indent=2))
    else:
        _show(measured, capacity_per_s, results, highest, target_p99_s)


@dataclass(frozen=True)
class _Case:
    pool: SimulatedPool
    spec: PolicySpec
    bounds: PolicyBounds
    controller: ControllerSettings
    plans: PlanBook

    def serve(self, arrivals: tuple[Arrival, ...]) -> SimulationResult:
        return simulate_spec(self.pool, self.spec, arrivals, self.controller, self.bounds, self.plans)

    def highest_load(self, at_load: Callable[[float], tuple[Arrival, ...]], target_p99_s: float) -> float:
        return highest_load(lambda share: self.serve(at_load(share)), target_p99_s)


def _case(name: str, pairs: Iterable[str], profile: Profile, domains: int) -> _Case:
    """A policy with the settings that are changed. `controller.` and `overheads.` are the prefixes of theirs."""
    if name not in POLICIES:
        fail(f"--policy: {name!r}; one of {', '.join(POLICIES)}", EXIT_INVALID)
    spec, bounds, controller, overheads = POLICIES[name], PolicyBounds(), ControllerSettings(), Overheads()
    for pair in pairs:
        path, equals, value = pair.partition("=")
        group, _, field = path.rpartition(".")
        if not equals:
            fail(f"--set: {pair!r} is not NAME=VALUE", EXIT_INVALID)
        if group == "controller":
            controller = _changed(controller, field, value, path)
        elif group == "overheads":
            overheads = _changed(overheads, field, value, path)
        elif path in {bound.name for bound in fields(PolicyBounds)}:
            bounds = _changed(bounds, path, value, path)
        else:
            spec = _changed(spec, path, value, path)
    return _Case(SimulatedPool(profile, domains, overheads), spec, bounds, controller, PlanBook(solve_now=True))


def _changed(settings: _Settings, name: str, value: str, shown: str) -> _Settings:
    """The settings with one value read from text; dots lead into nested ones, "auto" takes the profile's."""
    values: dict[str, Any] = asdict(settings)
    *outer, last = name.split(".")
    place = values
    for step in outer:
        place = place.get(step, {}) if isinstance(place, dict) else {}
    if not isinstance(place, dict) or last not in place or last == "name":
        names = [key for key in place if key != "name"] if isinstance(place, dict) else []
        fail(f"--set: {shown}; known here: {', '.join(names) or ', '.join(asdict(settings))}", EXIT_INVALID)
    place[last] = None if value == "auto" else value
    try:
        changed: _Settings = TypeAdapter(type(settings)).validate_python(values)
    except (ValidationError, ValueError) as error:
        problem = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        fail(f"--set {shown}: {value!r}; {problem}", EXIT_INVALID)
    return changed


def _steps_mix(text: str) -> tuple[tuple[int, float], ...]:
    """Read "8:0.5,50:0.5"."""
    pairs = []
    for part in text.split(","):
        count, _, weight = part.partition(":")
        try:
            pair = int(count), float(weight or "1")
        except ValueError:
            pair = 0, 0.0
        if pair[0] < 1 or not 0 < pair[1] < float("inf"):
            fail(f"--steps-mix: {part!r}; STEPS:SHARE with at least one step and a share over 0", EXIT_INVALID)
        pairs.append(pair)
    return tuple(pairs)


def highest_load(serve: Callable[[float], SimulationResult], target_p99_s: float) -> float:
    """The highest load, as a share of capacity, at which P99 latency keeps to the target; 0 if none does. Bisection."""
    low, high = 0.0, _HIGHEST_LOAD
    while high - low > _LOAD_STEP:
        middle = (low + high) / 2
        if serve(middle).summary.p99_s <= target_p99_s:
            low = middle
        else:
            high = middle
    return round(low, 3)


def _as_fields(
    profile: Profile, capacity_per_s: float, results: dict[str, SimulationResult], highest: dict[str, float]
) -> dict[str, object]:
    return {
        "simulated": True,
        "model": profile.subject.model,
        "device": profile.subject.device,
        "profile": profile.digest,
        "capacity_per_s": round(capacity_per_s, 4),
        "policies": {
            name: {field: round(value, 4) for field, value in result.summary._asdict().items()}
            for name, result in results.items()
        },
        **({"highest_load": highest} if highest else {}),
    }


def _show(
    profile: Profile,
    capacity_per_s: float,
    results: dict[str, SimulationResult],
    highest: dict[str, float],
    target_p99_s: float | None,
) -> None:
    subject = profile.subject
    out.print(f"simulated, not measured: {subject.model} on {subject.device}", markup=False)
    out.print(f"simulated capacity: {capacity_per_s:.3g} requests/s at most, no guidance skipped")
    table = plain_table("simulated (s)", "req/s", "mean", "p50", "p99", "queue", "decode", "p99", "threshold", "failed")
    for name, result in results.items():
        s = result.summary
        times = (s.mean_s, s.p50_s, s.p99_s, s.mean_queue_s, s.mean_decode_s, s.p99_decode_s)
        shown = [f"{s.requests_per_s:.3f}", *(f"{time:.3f}" for time in times), f"{s.mean_threshold:.2f}"]
        table.add_row(name, *shown, str(s.failed))
    out.print(table)
    for name, share in highest.items():
        per_s = share * capacity_per_s
        found = f"load {share:.2f}, {per_s:.3g} requests/s" if share else "none"
        out.print(f"simulated highest load with P99 within {target_p99_s:g} s, {name}: {found}")
