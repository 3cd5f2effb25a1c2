"""Workloads for the simulation: requests and their arrival times. Deterministic by seed."""

import csv
import json
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from services.scheduler.policy.policy_spec import best_costs
from services.scheduler.policy.snapshots import BatchKey
from services.scheduler.simulation.simulated_device import MODEL
from synerdiff.cards import Sampler
from synerdiff.errors import FieldViolation, InvalidRequest
from synerdiff.jobs import JobRecord, JobState
from synerdiff.profiles import Profile
from synerdiff.requests import ImageFormat, ImageRequest, Priority

T = TypeVar("T")

_FOREVER_MS = 10**12


@dataclass(frozen=True)
class Arrival:
    """A request and when it comes, in ms from the start. `timeout_s`: 0 where the client names none."""

    at_ms: float
    steps: int = 20
    images: int = 1
    guided: bool = True
    priority: Priority = Priority.NORMAL
    timeout_s: float = 0.0
    caller: str = ""

    @property
    def rows(self) -> int:
        """UNet rows of the whole request, no guidance skipped."""
        return self.images * self.steps * (2 if self.guided else 1)


@dataclass(frozen=True)
class Mix:
    """A mix of requests, in (value, weight) pairs. `timed_share` of them have a timeout of `timeout_s`."""

    steps: tuple[tuple[int, float], ...] = ((20, 1.0),)
    guided_share: float = 1.0
    priorities: tuple[tuple[Priority, float], ...] = ((Priority.NORMAL, 1.0),)
    timed_share: float = 0.0
    timeout_s: float = 0.0

    def draw(self, at_ms: float, source: random.Random) -> Arrival:
        """One request."""
        return Arrival(
            at_ms=at_ms,
            steps=_one_of(self.steps, source),
            guided=source.random() < self.guided_share,
            priority=_one_of(self.priorities, source),
            timeout_s=self.timeout_s if source.random() < self.timed_share else 0.0,
        )

    def mean_ms(self, profile: Profile) -> float:
        """Device time of the mean request when the device is run at its best."""
        total = sum(weight for _, weight in self.steps)
        calls = sum(steps * weight for steps, weight in self.steps) / total
        return best_costs(profile).task_ms(calls * (1 + self.guided_share), 1.0)

    def capacity_per_s(self, profile: Profile) -> float:
        """Requests per second that a device of this profile can serve at most; no guidance skipped."""
        return 1000 / self.mean_ms(profile)


def poisson(rate_per_s: float, requests: int, mix: Mix, seed: int) -> tuple[Arrival, ...]:
    """Independent arrivals at a mean rate."""
    _positive("rate", rate_per_s)
    source = random.Random(seed)
    at_ms, arrivals = 0.0, []
    for _ in range(requests):
        at_ms += source.expovariate(rate_per_s / 1000)
        arrivals.append(mix.draw(at_ms, source))
    return tuple(arrivals)


def burst(requests: int, mix: Mix, seed: int) -> tuple[Arrival, ...]:
    """All at once."""
    source = random.Random(seed)
    return tuple(mix.draw(0.0, source) for _ in range(requests))


def from_file(path: Path) -> tuple[Arrival, ...]:
    """Recorded arrivals, a request a line: CSV with a header, or JSON lines (.jsonl), with the fields of `Arrival`.
    `at_ms` is required; `priority` is a name or the proto's number. Raises InvalidRequest naming line and field."""
    try:
        with path.open(newline="", encoding="utf-8") as lines:
            rows: Iterable[str | dict[str, str]] = lines if path.suffix == ".jsonl" else csv.DictReader(lines)
            arrivals = [_arrival(f"{path}:{number}", row) for number, row in enumerate(rows, start=1)]
    except OSError as error:
        raise _refused("arrivals", f"{path}: {error.strerror}") from error
    if not arrivals:
        raise _refused("arrivals", f"{path}: no requests")
    return tuple(sorted(arrivals, key=lambda arrival: arrival.at_ms))


_READERS: dict[str, Callable[[Any], Any]] = {
    "at_ms": float,
    "steps": int,
    "images": int,
    "guided": lambda value: str(value).lower() in ("1", "true", "yes"),
    "priority": lambda value: Priority[str(value).upper()] if not str(value).isdigit() else Priority(int(value)),
    "timeout_s": float,
}


def _arrival(place: str, line: str | dict[str, str]) -> Arrival:
    try:
        row = json.loads(line) if isinstance(line, str) else line
    except ValueError as error:
        raise _refused(place, f"not JSON: {error}") from error
    if not isinstance(row, dict):
        raise _refused(place, "not a JSON object")
    unknown = set(row) - set(_READERS)
    if unknown or "at_ms" not in row:
        named = ", ".join(map(str, sorted(unknown, key=str))) or "at_ms is missing"
        raise _refused(place, f"{named}; the fields are {', '.join(_READERS)}")
    values = {}
    for name, value in row.items():
        try:
            values[name] = _READERS[name](value)
        except (ValueError, TypeError, KeyError) as error:
            raise _refused(f"{place} {name}", f"{value!r} is none") from error
    arrival = Arrival(**values)
    for name in ("steps", "images"):
        _positive(f"{place} {name}", getattr(arrival, name))
    for name in ("at_ms", "timeout_s"):
        if not 0 <= getattr(arrival, name) < float("inf"):
            raise _refused(f"{place} {name}", f"{getattr(arrival, name)}; must be at least 0 and finite")
    return arrival


def _one_of(pairs: Sequence[tuple[T, float]], source: random.Random) -> T:
    return source.choices([value for value, _ in pairs], [weight for _, weight in pairs])[0]


def _positive(name: str, value: float) -> None:
    if not 0 < value < float("inf"):
        raise _refused(name, f"{value}; must be over 0 and finite")


def _refused(name: str, description: str) -> InvalidRequest:
    return InvalidRequest(FieldViolation(name, description))


KEY = BatchKey(MODEL, 512, 512)


def records(arrivals: Iterable[Arrival]) -> Iterable[tuple[Arrival, JobRecord]]:
    """Every arrival as the job that the queue would hold."""
    common = ImageRequest(
        request_id="",
        model=MODEL,
        prompt="",
        negative_prompt="",
        width=KEY.width,
        height=KEY.height,
        num_inference_steps=1,
        guidance_scale=1.0,
        seed=0,
        sampler=Sampler.DDIM,
        num_images=1,
        image_format=ImageFormat.PNG,
        priority=Priority.NORMAL,
        timeout_ms=_FOREVER_MS,
        preview_every=0,
    )
    for number, arrival in enumerate(arrivals):
        job_id, accepted_ms = f"{number:08d}", int(arrival.at_ms)
        request = replace(
            common,
            request_id=job_id,
            num_inference_steps=arrival.steps,
            guidance_scale=7.5 if arrival.guided else 1.0,
            num_images=arrival.images,
            priority=arrival.priority,
            timeout_ms=round(arrival.timeout_s * 1000) or _FOREVER_MS,
            timed=arrival.timeout_s > 0,
        )
        deadline_ms = accepted_ms + request.timeout_ms
        record = JobRecord(job_id, JobState.QUEUED, request, accepted_ms, deadline_ms, False, caller=arrival.caller)
        yield arrival, record
