"""Gives the engine the profiles for its plans: from a file, from Redis, or measured while the pool has nothing to do.

One per leadership. The leader passes it the workers, every report, and every arrival of a job. It keeps measurements
made before a job came, and measuring goes on from there once the pool is idle again. Plans use a first draft of the
profile as soon as the essential parts are measured.
"""

import asyncio
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from redis.exceptions import RedisError

from services.scheduler.engine import events
from services.scheduler.engine.effects import WorkerEffect
from services.scheduler.engine.engine import Engine
from services.scheduler.engine.tasks import UnetLaneState, VaeLaneState
from services.scheduler.policy.snapshots import BatchKey
from services.scheduler.profiles.measuring.findings import subject_of, within_memory
from services.scheduler.profiles.measuring.prober import ProbePair, Prober
from services.scheduler.profiles.measuring.profiler import Profiler, ProfilerOptions
from services.scheduler.profiles.measuring.rounds import ProbeFailed
from services.scheduler.profiles.store import ProfileStore, usable
from synerdiff.errors import InvalidRequest
from synerdiff.profiles import Profile, ProfileSubject
from synerdiff.registry import WorkerRecord
from synerdiff.stopping import cancel_and_wait
from synerdiff.telemetry import get_logger

log = get_logger("profile_keeper")

_IDLE_BUDGET_S = 120.0
_DRAFT_EVERY_S = 20.0
_MOST_FAILURES = 3


@dataclass(frozen=True)
class KeeperOptions:
    """Where profiles come from. `given`: the one of a file; it goes before those in Redis, where it fits.

    `store`: those in Redis. `when_idle`: whether to measure one where there is none, after `idle_s` seconds without a
    job, as `profiler` says.
    """

    given: Profile | None = None
    store: ProfileStore | None = None
    when_idle: bool = False
    idle_s: float = 5.0
    profiler: ProfilerOptions = field(default_factory=lambda: ProfilerOptions(budget_s=_IDLE_BUDGET_S))


@dataclass
class _Place:
    """A domain and batch key that has a profile, and whose workers it is of. `known`: its profile is complete."""

    pair: ProbePair
    key: BatchKey
    subject: ProfileSubject
    known: bool = False
    drafted_at_s: float = -math.inf
    failures: int = 0

    @property
    def domain(self) -> str:
        return self.pair.unet.domain

    @property
    def at(self) -> tuple[str, str]:
        return self.domain, self.key.model


class ProfileKeeper:
    """See the module. `send` passes a command to a worker, `told` an event to the leader.

    `prober`: while it measures; reports concern it only then.
    """

    def __init__(
        self,
        options: KeeperOptions,
        engine: Engine,
        send: Callable[[WorkerEffect], None],
        told: Callable[[events.ProfileEvent], None],
    ) -> None:
        self._options = options
        self._store = options.store
        self._engine = engine
        self._send = send
        self._told = told
        self._records: dict[str, WorkerRecord] = {}
        self._places: dict[tuple[str, str], _Place] = {}
        self._profilers: dict[ProfileSubject, Profiler] = {}
        self.prober: Prober | None = None
        self._measuring: asyncio.Task[None] | None = None
        self._busy_at_s = time.monotonic()

    # ---- calls by the leader

    def announced(self, records: Iterable[WorkerRecord]) -> None:
        """The workers that are announced just now."""
        self._records = {record.worker_id: record for record in records}

    def on(self, event: events.Event) -> None:
        """An event, before the engine takes it: probes leave the workers before a job's first task comes there."""
        match event:
            case events.Reported(worker_id, report) if self.prober:
                self.prober.reported(worker_id, report)
            case events.JobArrived():
                self._busy_at_s = time.monotonic()
                self._give_way()
            case events.WorkerLost(worker_id) if self.prober:
                if worker_id in (self.prober.pair.unet.worker_id, self.prober.pair.vae.worker_id):
                    self._give_way()
            case events.DomainGone(domain):
                self._places = {at: place for at, place in self._places.items() if place.domain != domain}

    async def close(self) -> None:
        """End the measuring."""
        self._give_way()
        if self._measuring:
            await cancel_and_wait(self._measuring)

    # ---- looking up

    async def follow(self) -> None:
        """To be called about once a second: look up the profiles of new workers, and measure missing ones."""
        for pair in self._pairs():
            await self._meet(pair)
        if self._engine.holdings.jobs:
            self._busy_at_s = time.monotonic()
        elif self._options.when_idle and time.monotonic() - self._busy_at_s >= self._options.idle_s:
            self._measure_next()

    def _pairs(self) -> list[ProbePair]:
        """The first worker of each kind for every domain and model that has both."""
        pairs: dict[tuple[str, str], ProbePair] = {}
        held = self._engine.holdings
        for unet in held.unet.values():
            vae = next((v for v in held.vae.values() if (v.domain, v.model) == (unet.domain, unet.model)), None)
            records = [self._records.get(lane.worker_id) for lane in (unet, vae) if lane]
            if len(records) == 2 and records[0] and records[1]:
                pairs.setdefault(
                    (unet.domain, unet.model), ProbePair(records[0], records[1], unet.slots, unet.arena_address)
                )
        return list(pairs.values())

    async def _meet(self, pair: ProbePair) -> None:
        """Find the profile of a pair's device, where it is not the one that was looked at last."""
        card = pair.unet.model_card
        place = self._places.get((pair.unet.domain, card.name))
        subject = subject_of(pair.unet, pair.vae, card.native_width, card.native_height)
        if place and place.subject == subject:
            place.pair = pair
            return
        key = BatchKey(card.name, card.native_width, card.native_height)
        if place:
            self._told(events.ProfileUnknown(place.domain, place.key))
        if card.skip_cfg:
            self._told(events.BudgetKnown(card.name, card.skip_cfg))
        profile = self._fitting_given(subject)
        if profile is None and self._store:
            profile = await self._store.get(
                subject
            )  # before the place counts as met: a Redis that is away is asked again
        place = self._places[pair.unet.domain, card.name] = _Place(pair, key, subject)
        if profile:
            place.known = True
            self._plan_by(place, profile)
            log.info("profile found", model=subject.model, domain=place.domain, made_at=profile.made_at)

    def _fitting_given(self, subject: ProfileSubject) -> Profile | None:
        given = self._options.given
        try:
            return usable(given, subject) if given else None
        except InvalidRequest as error:
            log.warning("the given profile is refused", model=subject.model, reason=error.message)
            return None

    def _plan_by(self, place: _Place, profile: Profile) -> None:
        bounded = within_memory(profile, place.pair.unet, place.pair.vae)
        self._told(events.ProfileKnown(place.domain, place.key, bounded))

    # ---- measuring

    def _measure_next(self) -> None:
        if self._measuring:
            if not self._measuring.done():
                return
            self._measuring.result()
        for place in self._places.values():
            if not place.known and place.failures < _MOST_FAILURES and self._alone_and_well(place):
                self._measuring = asyncio.create_task(self._measure(place))
                return

    def _alone_and_well(self, place: _Place) -> bool:
        """Whether a pair has its domain for itself: beside other workers, times would not be its own."""
        held = self._engine.holdings
        lanes: list[UnetLaneState | VaeLaneState] = [*held.unet.values(), *held.vae.values()]
        here = {lane.worker_id: lane for lane in lanes if lane.domain == place.domain}
        pair = {place.pair.unet.worker_id, place.pair.vae.worker_id}
        return here.keys() == pair and all(lane.takes_new for lane in here.values())

    async def _measure(self, place: _Place) -> None:
        subject = place.subject
        profiler = self._profilers.setdefault(subject, Profiler(self._options.profiler))
        size, engine = (place.key.width, place.key.height), self._engine
        prober = self.prober = Prober(place.pair, size, engine.leader_token, self._send, engine.next_tick)
        log.info("profiling while idle", model=subject.model, domain=place.domain, measured=profiler.runs)
        try:
            profile = await profiler.run(prober, lambda course: self._draft(place, profiler, prober))
            log.info("profiled", model=subject.model, cells=len(profile.cells), knee=profile.knee_rows())
            await self._take_up(place, profile)
        except ProbeFailed as error:
            if self.prober is prober:
                place.failures += 1
            log.info("profiling stopped", model=subject.model, reason=str(error), measured=profiler.runs)
        except Exception:  # a fault of ours in measuring must not end the serving
            place.failures += 1
            log.exception("profiling failed", model=subject.model)
        finally:
            if self.prober is prober:
                self.prober = None
                prober.close()

    def _draft(self, place: _Place, profiler: Profiler, prober: Prober) -> None:
        """Let plans use the measurements so far, now and then."""
        if time.monotonic() - place.drafted_at_s < _DRAFT_EVERY_S or self._places.get(place.at) is not place:
            return
        draft = profiler.draft(prober)
        if draft:
            place.drafted_at_s = time.monotonic()
            self._plan_by(place, draft)
            log.info("drafted a profile", model=place.subject.model, knee=draft.knee_rows(), measured=profiler.runs)

    async def _take_up(self, place: _Place, profile: Profile) -> None:
        """Plan by a profile that is whole, and keep it for later leaders."""
        self._profilers.pop(place.subject)
        place.known = True
        if self._places.get(place.at) is place:
            self._plan_by(place, profile)
        if self._store is None:
            return
        try:
            await self._store.put(profile)
        except (RedisError, OSError) as error:
            log.warning("the profile could not be kept", model=profile.subject.model, error=str(error))

    def _give_way(self) -> None:
        if self.prober:
            prober, self.prober = self.prober, None
            prober.give_way()
