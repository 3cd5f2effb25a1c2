"""Results of a simulation: a line per request, and their summary. Times in ms of the virtual clock."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np


class Outcome(NamedTuple):
    """The result of one request. `ended_ms`: stored or given up; `decode_ms`: its images' longest wait and decode."""

    arrived_ms: float
    started_ms: float
    ended_ms: float
    decode_ms: float
    steps: int
    failed: bool
    caller: str = ""

    @property
    def latency_ms(self) -> float:
        """From its arrival to its end."""
        return self.ended_ms - self.arrived_ms


class Switch(NamedTuple):
    """A domain's threshold takes another value."""

    at_ms: float
    domain: str
    threshold: float


class Summary(NamedTuple):
    """Latencies are of the requests that were finished; `requests_per_s` over the time from first arrival to last end.
    `switches_per_s` is the most changes of a domain's threshold within any one second, less than two being the aim."""

    requests: int
    failed: int
    mean_s: float
    p50_s: float
    p99_s: float
    mean_queue_s: float
    mean_decode_s: float
    p99_decode_s: float
    requests_per_s: float
    ticks: int
    busy_share: float
    mean_threshold: float
    switches_per_s: int


@dataclass(frozen=True)
class SimulationResult:
    """All of one simulation. `busy_ms`: time that a domain's device had work, the mean over domains."""

    outcomes: tuple[Outcome, ...]
    switches: tuple[Switch, ...]
    ticks: int
    busy_ms: float

    @cached_property
    def summary(self) -> Summary:
        """Means, percentiles and totals."""
        done = [outcome for outcome in self.outcomes if not outcome.failed]
        first_ms = min(outcome.arrived_ms for outcome in self.outcomes)
        span_s = max(1e-9, (max(outcome.ended_ms for outcome in self.outcomes) - first_ms) / 1000)
        latency_s = np.array([outcome.latency_ms for outcome in done] or [0.0]) / 1000
        decode_s = np.array([outcome.decode_ms for outcome in done] or [0.0]) / 1000
        queue_s = np.array([outcome.started_ms - outcome.arrived_ms for outcome in done] or [0.0]) / 1000
        switched_ms: dict[str, list[float]] = {}
        for switch in self.switches:  # the first of a domain is no change
            switched_ms.setdefault(switch.domain, []).append(switch.at_ms)
        return Summary(
            requests=len(self.outcomes),
            failed=len(self.outcomes) - len(done),
            mean_s=float(latency_s.mean()),
            p50_s=float(np.percentile(latency_s, 50)),
            p99_s=float(np.percentile(latency_s, 99)),
            mean_queue_s=float(queue_s.mean()),
            mean_decode_s=float(decode_s.mean()),
            p99_decode_s=float(np.percentile(decode_s, 99)),
            requests_per_s=len(done) / span_s,
            ticks=self.ticks,
            busy_share=self.busy_ms / 1000 / span_s,
            mean_threshold=self._mean_threshold(first_ms + span_s * 1000),
            switches_per_s=max((most_within(at_ms[1:], 1000.0) for at_ms in switched_ms.values()), default=0),
        )

    def _mean_threshold(self, until_ms: float) -> float:
        means = []
        for domain in sorted({switch.domain for switch in self.switches}):
            own = [switch for switch in self.switches if switch.domain == domain]
            ends = [switch.at_ms for switch in own[1:]] + [max(until_ms, own[-1].at_ms + 1e-9)]
            held = [end - switch.at_ms for switch, end in zip(own, ends, strict=True)]
            means.append(float(np.average([switch.threshold for switch in own], weights=held)))
        return float(np.mean(means)) if means else 0.0


def most_within(moments_ms: Sequence[float], window_ms: float) -> int:
    """The most of ascending moments within any window, its end not included."""
    most = first = 0
    for last, moment in enumerate(moments_ms):
        while moment - moments_ms[first] >= window_ms:
            first += 1
        most = max(most, last - first + 1)
    return most
