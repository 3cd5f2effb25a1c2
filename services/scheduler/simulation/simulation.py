"""The scheduler under a virtual clock: the same engine, policy, planner and controller, and a profile for workers.

Nothing here is measured: results follow from the profile and the stated model of the device. Deterministic:
the same policy, profile and arrivals give the same outcome, event by event.
"""

import gc
import heapq
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, get_args

from services.scheduler.engine import effects, events
from services.scheduler.engine.engine import Engine, EngineBounds
from services.scheduler.engine.holdings import Holdings
from services.scheduler.engine.ticks import PlannedPart
from services.scheduler.planner.plan_book import PlanBook
from services.scheduler.policy.controller import ConstantThreshold, ControllerSettings, ThresholdController
from services.scheduler.policy.ordering import FairQueue
from services.scheduler.policy.policies import ConfiguredPolicy
from services.scheduler.policy.policy_spec import PolicyBounds, PolicySpec
from services.scheduler.policy.snapshots import DomainSnapshot, Thresholds
from services.scheduler.simulation.simulated_device import MODEL, Agenda, Overheads, SimulatedWorkers
from services.scheduler.simulation.simulation_results import Outcome, SimulationResult, Switch
from services.scheduler.simulation.workloads import KEY, Arrival, records
from synerdiff.jobs import JobRecord
from synerdiff.plans import DecodedImage, UnetTickDone
from synerdiff.profiles import Profile


@dataclass(frozen=True)
class SimulatedPool:
    """The devices of a simulation: domains of one device each, all of which take as long as `profile` says.

    `planned_by`: the profile that plans use, where it is another; `unprofiled`: they use none. `most_waiting`: jobs
    of one caller that may wait in the queue; more are refused, and fail at once.
    """

    profile: Profile
    domains: int = 1
    overheads: Overheads = field(default_factory=Overheads)
    bounds: EngineBounds = field(default_factory=EngineBounds)
    planned_by: Profile | None = None
    unprofiled: bool = False
    most_waiting: int | None = None

    @property
    def known(self) -> Profile | None:
        """The profile that plans use."""
        return None if self.unprofiled else self.planned_by or self.profile


class Bystander(Protocol):
    """Receives events and effects just as a leader's observer and traces do."""

    def on(self, event: events.Event, planned: PlannedPart | None) -> None:
        """An event that the engine has taken. `planned`: as `Engine.on` said."""

    def effect(self, effect: effects.Effect) -> None:
        """An effect that the engine asks for."""


def simulate(
    pool: SimulatedPool,
    policy: ConfiguredPolicy,
    arrivals: Sequence[Arrival],
    thresholds: Thresholds | None = None,
    bystander: Callable[[Holdings], Bystander] | None = None,
) -> SimulationResult:
    """Serve all arrivals; `thresholds`: None for the snapshots' own. Raises RuntimeError if some are left unserved."""
    return _Simulation(pool, policy, arrivals, thresholds, bystander).run()


def simulate_spec(
    pool: SimulatedPool,
    spec: PolicySpec,
    arrivals: Sequence[Arrival],
    controller: ControllerSettings | None = None,
    bounds: PolicyBounds | None = None,
    plans: PlanBook | None = None,
) -> SimulationResult:
    """Serve all arrivals by a policy's spec and `controller`. `plans` of earlier simulations only save time."""
    rounds = plans if plans is not None else PlanBook(solve_now=True)
    policy = ConfiguredPolicy(spec, bounds or PolicyBounds(), rounds)
    thresholds = ThresholdController(controller) if spec.controller else ConstantThreshold(spec.threshold)
    return simulate(pool, policy, arrivals, thresholds)


@dataclass
class _Progress:
    arrival: Arrival
    record: JobRecord
    turn: float = 0.0
    started_ms: float = 0.0
    ended_ms: float = -1.0
    decode_ms: float = 0.0
    failed: bool = False


class _RecordedThresholds:
    """Another's thresholds, with every change of them remembered."""

    def __init__(self, inner: Thresholds) -> None:
        self.switches: list[Switch] = []
        self._inner = inner
        self._last: dict[str, float] = {}

    def threshold(self, snapshot: DomainSnapshot, arrived_calls: int) -> float:
        """See `Thresholds`."""
        threshold = self._inner.threshold(snapshot, arrived_calls)
        if self._last.get(snapshot.domain) != threshold:
            self._last[snapshot.domain] = threshold
            self.switches.append(Switch(snapshot.now_ms, snapshot.domain, threshold))
        return threshold


class _Simulation:
    def __init__(
        self,
        pool: SimulatedPool,
        policy: ConfiguredPolicy,
        arrivals: Sequence[Arrival],
        thresholds: Thresholds | None,
        bystander: Callable[[Holdings], Bystander] | None,
    ) -> None:
        self._agenda = Agenda()
        self._recorded = _RecordedThresholds(thresholds) if thresholds else None
        self._engine = Engine(policy, 1, pool.bounds, self._recorded)
        self._bystander = bystander(self._engine.holdings) if bystander else None
        self._known = pool.known
        self._overheads = pool.overheads
        self._domains = [
            SimulatedWorkers(f"d{index}", pool.profile, pool.overheads, self._agenda, self._report)
            for index in range(pool.domains)
        ]
        self._by_worker = {worker_id: d for d in self._domains for worker_id in (d.unet_id, d.vae_id)}
        self._requests = {record.job_id: _Progress(arrival, record) for arrival, record in records(arrivals)}
        self._unread: list[tuple[int, float, str]] = []  # by priority class, then by virtual start
        self._most_waiting = pool.most_waiting
        self._waiting: Counter[str] = Counter()  # unread jobs by caller
        self._fair = FairQueue()
        self._denoised_ms: dict[str, float] = {}
        self._heard = False
        self._carry_out = self._handlers()

    def run(self) -> SimulationResult:
        for workers in self._domains:
            self._on(events.UnetAttached(workers.unet_lane()))
            self._on(events.VaeAttached(workers.vae_lane()))
            if self._known:
                self._on(events.ProfileKnown(workers.domain, KEY, self._known))
        for job_id, request in self._requests.items():
            self._agenda.at(request.arrival.at_ms, partial(self._arrive, job_id))
            if request.record.request.timed:
                self._agenda.at(request.record.deadline_ms, partial(self._expire, job_id))
        with _rare_collections():
            while self._agenda.run_moment():
                self._settle()
        return self._result()

    def _on(self, event: events.Event) -> None:
        self._heard = True
        planned = self._engine.on(event, int(self._agenda.now_ms))
        if self._bystander:
            self._bystander.on(event, planned)

    def _settle(self) -> None:
        if self._heard:
            if self._unread:
                self._read()
            self._heard = False
            self._engine.pump(int(self._agenda.now_ms))
            for effect in self._engine.take_effects():
                self._carry_out[type(effect)](effect)
                if self._bystander:
                    self._bystander.effect(effect)
        for workers in self._domains:
            workers.device.settle()

    def _handlers(self) -> dict[type[effects.Effect], Callable[[Any], None]]:
        """The handler of every effect: a dictionary, as there are several effects at every step."""
        return {
            **dict.fromkeys(
                get_args(effects.WorkerEffect), lambda effect: self._by_worker[effect.worker_id].carry_out(effect)
            ),
            **dict.fromkeys((effects.ReportProgress, effects.MarkDecoding, effects.LetJobGo), lambda effect: None),
            effects.StartJob: self._started,
            effects.StoreImage: self._store,
            effects.FinishJob: self._finished,
            effects.FailJob: lambda effect: self._fail(effect.job_id),
        }

    def _started(self, effect: effects.StartJob) -> None:
        request = self._requests[effect.job_id]
        if not request.started_ms:
            self._fair.began(request.arrival.priority, request.turn)
        request.started_ms = self._agenda.now_ms

    def _finished(self, effect: effects.FinishJob) -> None:
        self._requests[effect.job_id].ended_ms = self._agenda.now_ms

    def _arrive(self, job_id: str) -> None:
        self._heard = True
        request = self._requests[job_id]
        arrival = request.arrival
        if self._most_waiting is not None and self._waiting[arrival.caller] >= self._most_waiting:
            request.failed, request.ended_ms = True, self._agenda.now_ms
            return
        request.turn = self._fair.start(arrival.priority, arrival.caller, arrival.rows)
        heapq.heappush(self._unread, (arrival.priority, request.turn, job_id))
        self._waiting[arrival.caller] += 1

    def _read(self) -> None:
        """As many jobs as the pool reads ahead, and the next ones of callers that have few there; the rest wait in the
        queue, by class and fairly between callers.
        """
        wanted = self._engine.wanted()[MODEL]
        room, held = wanted.jobs, Counter(wanted.waiting)
        while self._unread:
            request = self._requests[self._unread[0][-1]]
            caller = request.arrival.caller
            if not request.failed:
                if room <= 0 and held[caller] >= wanted.share:
                    return
                self._on(events.JobArrived(request.record))
                room, held[caller] = room - 1, held[caller] + 1
            heapq.heappop(self._unread)
            self._waiting[caller] -= 1

    def _expire(self, job_id: str) -> None:
        self._heard = True
        self._engine.check_deadlines(int(self._agenda.now_ms))
        if any(unread == job_id for *_, unread in self._unread):
            self._fail(job_id)

    def _fail(self, job_id: str) -> None:
        request = self._requests[job_id]
        if not request.failed and not request.started_ms:
            self._fair.left(request.arrival.priority)
        request.failed, request.ended_ms = True, self._agenda.now_ms

    def _store(self, effect: effects.StoreImage) -> None:
        task_id = f"{effect.job_id}/{effect.index}"
        self._agenda.at(self._agenda.now_ms + self._overheads.store_ms, partial(self._on, events.ImageStored(task_id)))

    def _report(self, worker_id: str, report: events.Report) -> None:
        now_ms = self._agenda.now_ms
        match report:
            case UnetTickDone(finished=finished):
                self._denoised_ms.update((task_id, now_ms) for task_id, _ in finished)
            case DecodedImage(task_id):
                request = self._requests[task_id.partition("/")[0]]
                request.decode_ms = max(request.decode_ms, now_ms - self._denoised_ms[task_id])
        self._on(events.Reported(worker_id, report))

    def _result(self) -> SimulationResult:
        unserved = sum(request.ended_ms < 0 for request in self._requests.values())
        if unserved:
            raise RuntimeError(f"the policy left {unserved} requests unserved with nothing under way")
        outcomes = tuple(
            Outcome(r.arrival.at_ms, r.started_ms, r.ended_ms, r.decode_ms, r.arrival.steps, r.failed, r.arrival.caller)
            for r in self._requests.values()
        )
        return SimulationResult(
            outcomes=outcomes,
            switches=tuple(self._recorded.switches) if self._recorded else (),
            ticks=sum(workers.unet_ticks for workers in self._domains),
            busy_ms=sum(workers.device.busy_ms for workers in self._domains) / len(self._domains),
        )


@contextmanager
def _rare_collections() -> Iterator[None]:
    """Ticks make many short-lived values and few cycles: looking for these as often as by default takes a third."""
    before = gc.get_threshold()
    gc.set_threshold(100_000, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
