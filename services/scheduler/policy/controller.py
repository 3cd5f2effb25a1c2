"""How much UNet throughput a domain's ticks have to keep: feed-forward from arrivals, feedback from the backlog.

A round that serves its decodes early takes longer. That pays while few tasks are held up by it, and costs all of
them time once many are. So the threshold, the least share of the fastest round's throughput, has a floor that rises
with the load that arrives (feed-forward), and goes up from there with the UNet work that waits and down with the
decodes that do (feedback). Discrete-time, asked once per tick; the only clock is the snapshot's.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from statistics import fmean
from typing import NamedTuple

from services.scheduler.policy.policy_spec import Costs, best_costs
from services.scheduler.policy.snapshots import DomainSnapshot, RunningTask


@dataclass(frozen=True)
class ControllerSettings:
    """The controller's constants. Thresholds are shares of the fastest round's throughput.

    `lowest`: the threshold at rest. `headroom`: the feed-forward floor as a multiple of the load that arrives, in
    shares of capacity. `gain`, `integral_per_s`: of the error, which is within -1 and 1. `tracking_per_s`: how fast the
    integral gives way while the feedback is at a bound (anti-windup by back-calculation). `backlog_target_tasks`: UNet
    work that waits at which the error is zero, in mean tasks; `decode_weight`: seconds that a second of waiting decodes
    takes off it. `backlog_time_s`, `rate_time_s`: time constants of the averages of backlog and arrivals. `dead_band`:
    the least change, but to a bound; `dwell_ms`: the least time between changes. `grid`: the output's step, so that
    plans can be remembered. `unprofiled`: the threshold of a domain without a profile.
    """

    lowest: float = 0.5
    headroom: float = 1.4
    gain: float = 0.5
    integral_per_s: float = 0.25
    tracking_per_s: float = 1.0
    backlog_target_tasks: float = 1.0
    decode_weight: float = 2.0
    backlog_time_s: float = 0.5
    rate_time_s: float = 5.0
    dead_band: float = 0.04
    dwell_ms: int = 1000
    grid: float = 0.02
    unprofiled: float = 1.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not 0 <= value < math.inf:
                raise ValueError(f"{field.name}: {value}; must be at least 0 and finite")
        for name in ("lowest", "grid", "unprofiled"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name}: {getattr(self, name)}; must be over 0 and at most 1")
        for name in ("backlog_target_tasks", "backlog_time_s", "rate_time_s"):
            if getattr(self, name) == 0:
                raise ValueError(f"{name}: 0; must be over 0")


class ControllerState(NamedTuple):
    """The state of a domain's controller. `backlog_s` and `error`: the input of the feedback. `feed_forward`: the
    floor that the load puts under the threshold."""

    threshold: float
    backlog_s: float
    error: float
    integral: float
    feed_forward: float
    arriving_calls_per_s: float
    switches: int


class ConstantThreshold:
    """The same threshold always: for comparison, and to switch the controller off."""

    def __init__(self, value: float) -> None:
        self._value = value

    def threshold(self, snapshot: DomainSnapshot, arrived_calls: int) -> float:
        """See `Thresholds`."""
        return self._value


class ThresholdController:
    """Keeps a threshold per domain. Stateful: to be asked once per tick, in order of time."""

    def __init__(self, settings: ControllerSettings | None = None) -> None:
        self.settings = settings or ControllerSettings()
        self._domains: dict[str, _DomainControl] = {}

    def threshold(self, snapshot: DomainSnapshot, arrived_calls: int) -> float:
        """See `Thresholds`."""
        if not snapshot.profiles:
            self._domains.pop(snapshot.domain, None)
            return self.settings.unprofiled
        control = self._domains.get(snapshot.domain)
        if control is None:
            control = self._domains[snapshot.domain] = _DomainControl(self.settings, snapshot.now_ms)
        control.observe(snapshot, arrived_calls, self._share(control, snapshot.now_ms))
        return control.state.threshold

    def state(self, domain: str) -> ControllerState | None:
        """The state of the domain's controller; None for one that was never asked or has no profile."""
        control = self._domains.get(domain)
        return control.state if control else None

    def _share(self, own: "_DomainControl", now_ms: int) -> float:
        """The part of the pool's work that a domain gets: by its speed among the domains asked for lately."""
        since_ms = now_ms - 1000 * self.settings.rate_time_s
        speeds = [c.rows_per_ms for c in self._domains.values() if c is own or c.asked_ms >= since_ms]
        return own.rows_per_ms / sum(speeds) if own.rows_per_ms else 1 / len(speeds)


class _DomainControl:
    """The loop of one domain."""

    def __init__(self, settings: ControllerSettings, now_ms: int) -> None:
        self.asked_ms = now_ms
        self.rows_per_ms = 0.0
        self.state = ControllerState(settings.lowest, 0.0, -1.0, 0.0, 0.0, 0.0, 0)
        self._settings = settings
        self._calls = 0
        self._rows_per_call = 2.0
        self._tasks_per_call = 0.05
        self._switched_ms = -math.inf

    def observe(self, snapshot: DomainSnapshot, arrived_calls: int, share: float) -> None:
        """One step of the loop. `share`: the part of the pool's arrivals and waiting tasks that comes here."""
        passed_s = (snapshot.now_ms - self.asked_ms) / 1000
        self.asked_ms = snapshot.now_ms
        costs = self._least_costs(snapshot)
        self.rows_per_ms = 1 / costs.row_ms
        running = [task for lane in snapshot.unet for task in lane.running]
        self._learn(running, passed_s)
        rate = self._arrival_rate(arrived_calls, share, passed_s)
        backlog_s = self._backlog_s(snapshot, running, costs, share)
        if snapshot.decodes or any(task.next_call for task in running):
            weight = -math.expm1(-passed_s / self._settings.backlog_time_s)
            backlog_s = self.state.backlog_s + weight * (backlog_s - self.state.backlog_s)
        else:  # it has been idle: the past says nothing of the load to come
            self.state = self.state._replace(integral=0.0)
        call_s = costs.task_ms(self._rows_per_call, self._tasks_per_call) / 1000
        task_s = costs.task_ms(self._rows_per_call / self._tasks_per_call, 0.0) / 1000
        floor = self._settings.headroom * rate * call_s
        self._regulate(backlog_s, self._settings.backlog_target_tasks * task_s, floor, rate, passed_s)

    def _regulate(self, backlog_s: float, target_s: float, floor: float, rate: float, passed_s: float) -> None:
        s = self._settings
        error = min(1.0, max(-1.0, backlog_s / target_s - 1))
        wanted = s.lowest + s.gain * error + self.state.integral
        allowed = min(1.0, max(s.lowest, wanted))
        integral = self.state.integral + s.integral_per_s * error * passed_s
        integral += -math.expm1(-s.tracking_per_s * passed_s) * (allowed - wanted)
        threshold, switches = self._switched(min(1.0, max(floor, allowed)))
        self.state = ControllerState(threshold, backlog_s, error, integral, floor, rate, switches)

    def _switched(self, allowed: float) -> tuple[float, int]:
        """The output after this step: on the grid, not for less than the dead band, not before the dwell is over."""
        s, state = self._settings, self.state
        at_bound = allowed in (s.lowest, 1.0)
        target = allowed if at_bound else min(1.0, max(s.lowest, round(round(allowed / s.grid) * s.grid, 6)))
        too_little = abs(allowed - state.threshold) < s.dead_band and not at_bound
        too_soon = self.asked_ms - self._switched_ms < s.dwell_ms
        if too_little or too_soon or target == state.threshold:
            return state.threshold, state.switches
        self._switched_ms = self.asked_ms
        return target, state.switches + 1

    def _learn(self, running: Sequence[RunningTask], passed_s: float) -> None:
        """Learn rows and tasks of the mean call: the mean over running tasks, each of which makes one call a tick."""
        if not running:
            return
        rows, tasks = fmean(task.rows for task in running), fmean(1 / task.num_calls for task in running)
        weight = 1.0 if self._calls == 0 else -math.expm1(-passed_s / self._settings.rate_time_s)
        self._rows_per_call += weight * (rows - self._rows_per_call)
        self._tasks_per_call += weight * (tasks - self._tasks_per_call)

    def _arrival_rate(self, arrived_calls: int, share: float, passed_s: float) -> float:
        """Calls per second, each counted with a weight that fades over `rate_time_s`."""
        time_s = self._settings.rate_time_s
        new, self._calls = arrived_calls - self._calls, arrived_calls
        return self.state.arriving_calls_per_s * math.exp(-passed_s / time_s) + share * new / time_s

    def _backlog_s(self, snapshot: DomainSnapshot, running: Sequence[RunningTask], costs: Costs, share: float) -> float:
        """Seconds of UNet work that has not begun, less the weighted seconds of decodes that are ready."""
        unseen = share * snapshot.waiting + sum(lane.preparing for lane in snapshot.unet)
        unseen_rows = unseen * self._rows_per_call / self._tasks_per_call
        unstarted_rows = sum(task.rows * task.num_calls for task in running if not task.next_call)
        unet_ms = (unstarted_rows + unseen_rows) * costs.row_ms
        return (unet_ms - self._settings.decode_weight * len(snapshot.decodes) * costs.decode_ms) / 1000

    def _least_costs(self, snapshot: DomainSnapshot) -> Costs:
        """Of the batch key that runs; of any where nothing runs yet."""
        running = (task.key for lane in snapshot.unet for task in lane.running if task.key in snapshot.profiles)
        key = next(running, next(iter(snapshot.profiles)))
        return best_costs(snapshot.profiles[key])
