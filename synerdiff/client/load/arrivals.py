"""When the requests of a load are due: drawn ahead from a seed, or read from a file, independent of the server."""

import json
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from synerdiff.client.load.requests import LoadRequest, Mix
from synerdiff.errors import FieldViolation, InvalidRequest

_FIELDS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "prompt": ("prompt", str),
    "steps": ("num_inference_steps", int),
}


@dataclass(frozen=True)
class Arrival:
    """A request, due `at_s` seconds after the start of its load."""

    at_s: float
    request: LoadRequest


def poisson(
    rate_per_s: float, mix: Mix, seed: int, *, seconds: float = math.inf, number: int | None = None
) -> tuple[Arrival, ...]:
    """Requests that arrive independently of each other, for so many seconds, but no more than `number` of them.

    Raises InvalidRequest for an invalid rate, and where neither bound ends it.
    """
    if not 0 < rate_per_s < math.inf:
        raise _refused("rate", f"{rate_per_s}; must be over 0 and finite")
    if number is None and not seconds < math.inf:
        raise _refused("seconds", "a load needs an end: a number of seconds or of requests")
    draw = random.Random(f"{rate_per_s:.6f} {seed}")
    arrivals: list[Arrival] = []
    at_s = draw.expovariate(rate_per_s)
    while at_s < seconds and len(arrivals) != number:
        arrivals.append(Arrival(at_s, mix.draw(draw)))
        at_s += draw.expovariate(rate_per_s)
    return tuple(arrivals)


def bursts(size: int, mix: Mix, seed: int, *, every_s: float = 0.0, times: int = 1) -> tuple[Arrival, ...]:
    """`times` bursts of `size` requests that are due all at once, the next one `every_s` seconds later."""
    draw = random.Random(seed)
    return tuple(Arrival(number * every_s, mix.draw(draw)) for number in range(times) for _ in range(size))


def from_file(path: Path, mix: Mix, seed: int) -> tuple[Arrival, ...]:
    """Recorded arrivals, one a line: a time in s, or a JSON object with `at_s`, and `prompt` and `steps` where known.

    Fields that a line leaves out are drawn from the mix. Raises OSError, and InvalidRequest naming file and line.
    """
    draw = random.Random(seed)
    arrivals = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if line.strip():
            arrivals.append(_arrival(f"{path}:{number}", line.strip(), mix.draw(draw)))
    if not arrivals:
        raise _refused("times", f"{path}: no arrival")
    return tuple(sorted(arrivals, key=lambda arrival: arrival.at_s))


def _arrival(place: str, line: str, drawn: LoadRequest) -> Arrival:
    try:
        given = json.loads(line) if line.startswith("{") else {"at_s": line}
        at_s = float(given.pop("at_s"))
        request = replace(drawn, **{_FIELDS[name][0]: _FIELDS[name][1](value) for name, value in given.items()})
    except (ValueError, TypeError, KeyError) as error:
        names = ", ".join(("at_s", *_FIELDS))
        raise _refused(place, f"{line!r} is neither seconds nor a JSON object of {names} ({error})") from error
    if not 0 <= at_s < math.inf:
        raise _refused(place, f"{at_s}; must be at least 0 and finite")
    return Arrival(at_s, request)


def _refused(name: str, description: str) -> InvalidRequest:
    return InvalidRequest(FieldViolation(name, description))
