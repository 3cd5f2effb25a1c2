"""What the measured rounds come to: medians, ratios round by round, the best baseline, and where ours lose."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from bench.peers.contenders import BATCHED, LOOP, ONE, OURS
from bench.peers.loads import ALONE, BURST, POISSON, SATURATED
from synerdiff.client.load.summary import Ratio, ratio

Result = Mapping[str, Any]

# Loads whose latencies are compared with the best baseline's.
LATENCY_LOADS = (ALONE, *POISSON, BURST)


class Loss(NamedTuple):
    """A ratio on the wrong side of 1."""

    load: str
    ours: str
    value: str
    other: str
    ratio: Ratio

    @property
    def factor(self) -> float:
        return 1 / self.ratio.median if self.value == "images_per_s" else self.ratio.median


def contenders(result: Result, *kinds: str) -> list[str]:
    """The names of the contenders of these kinds, in the order they were started in."""
    return [name for name, about in result["contenders"].items() if about["kind"] in kinds]


def values(result: Result, load: str, name: str, value: str) -> list[float]:
    """A number of a contender under a load, a round each; NaN where it was left out or served nothing."""
    found = []
    for one in result["rounds"]:
        window = one["loads"].get(load, {}).get("results", {}).get(name)
        number = window[value] if window else None
        found.append(math.nan if number is None else float(number))
    return found


def median(result: Result, load: str, name: str, value: str) -> float:
    """The median of the rounds; NaN where there is none."""
    known = [number for number in values(result, load, name, value) if math.isfinite(number)]
    return statistics.median(known) if known else math.nan


def over(result: Result, load: str, ours: str, other: str, value: str) -> Ratio:
    """One contender's number over another's, round by round."""
    return ratio(values(result, load, ours, value), values(result, load, other, value))


def best_baseline(result: Result, load: str, value: str) -> str | None:
    """The best baseline server of those in as many rounds as any; None where none got the load."""
    found = {name: values(result, load, name, value) for name in contenders(result, ONE, BATCHED)}
    rounds = {name: sum(map(math.isfinite, numbers)) for name, numbers in found.items()}
    most = max(rounds.values(), default=0)
    known = {name: median(result, load, name, value) for name in found if most and rounds[name] == most}
    if not known:
        return None
    return max(known, key=known.__getitem__) if value == "images_per_s" else min(known, key=known.__getitem__)


def overloaded(result: Result, load: str) -> list[str]:
    """Who was left out of a load in every round, since it serves less than arrives there."""
    if load not in POISSON or not any(load in one["loads"] for one in result["rounds"]):
        return []
    servers = contenders(result, OURS, BATCHED, ONE)
    return [name for name in servers if not any(map(math.isfinite, values(result, load, name, "mean_s")))]


def losses(result: Result) -> list[Loss]:
    """Everything that ours are worse in, the worst first: throughput against every other way to serve, and latency
    against the best baseline, of one request also against the bare loops."""
    found = []
    for ours in contenders(result, OURS):
        for other in contenders(result, ONE, BATCHED, LOOP):
            found.append(
                Loss(SATURATED, ours, "images_per_s", other, over(result, SATURATED, ours, other, "images_per_s"))
            )
        for load in LATENCY_LOADS:
            for value in ("mean_s", "p99_s"):
                rivals: Sequence[str | None] = [best_baseline(result, load, value)]
                if load == ALONE and value == "mean_s":
                    rivals = [*rivals, *contenders(result, LOOP)]
                found += [Loss(load, ours, value, o, over(result, load, ours, o, value)) for o in rivals if o]
    return sorted((loss for loss in found if loss.factor > 1), key=lambda loss: -loss.factor)
