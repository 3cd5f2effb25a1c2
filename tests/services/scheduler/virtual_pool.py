"""A pool that leads in virtual time: its own Pool, Leader, engine, policy, planner and writer, over stand-ins.

Stood for are what takes real time: the workers and their streams, Redis, and the lock in it.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import pytest

from services.scheduler.engine.effects import WorkerEffect
from services.scheduler.engine.events import Reported, UnetAttached, VaeAttached, WorkerLost
from services.scheduler.leading import leader as leader_module
from services.scheduler.leading.leader import LeaderOptions
from services.scheduler.leading.pool import Pool
from services.scheduler.leading.worker_stream import Listener
from services.scheduler.planner.plan_book import PlanBook
from services.scheduler.policy.policies import POLICIES, ConfiguredPolicy, PolicyBounds
from services.scheduler.profiles.keeper import KeeperOptions
from services.scheduler.profiles.measuring.findings import subject_of
from services.scheduler.store.notifications import Subscription
from services.scheduler.store.queue import GoneJobs, Lease
from synerdiff.jobs import JobRecord, JobState
from synerdiff.plans import DecodedImage
from synerdiff.registry import WorkerRecord
from synerdiff.stopping import cancel_and_wait
from tests.services.scheduler.measured_profiles import record
from tests.services.scheduler.simulated import straight_line_profile
from tests.services.scheduler.world import VirtualUnet, VirtualVae

ACT_EVERY_S = 0.01
HANG_VIRTUAL_S = 600.0
SIDE = 256


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next timer as soon as nothing else is to be done."""

    def __init__(self) -> None:
        super().__init__()
        self._now_s = 0.0

    def time(self) -> float:
        return self._now_s

    def _run_once(self) -> None:
        loop = cast(Any, self)
        if not loop._ready and loop._scheduled:
            self._now_s = max(self._now_s, loop._scheduled[0]._when)
        cast(Any, super())._run_once()


class VirtualStore:
    """What a leader asks of the job store, in memory. `reasons`: of jobs that failed, with their codes."""

    def __init__(self) -> None:
        self.records: dict[str, JobRecord] = {}
        self.images: dict[str, set[int]] = {}
        self.ended: Counter[str] = Counter()
        self.reasons: dict[str, str] = {}
        self._unread: list[str] = []
        self._accepted = Subscription()

    def accept(self, job: JobRecord) -> None:
        self.records[job.job_id], self.images[job.job_id] = job, set()
        self._unread.append(job.job_id)
        self._accepted.put(None)

    async def read_pending(self, lease: Lease) -> list[JobRecord]:
        held = (job for job_id, job in self.records.items() if job_id not in self._unread)
        return [self._as_stored(job) for job in held if not self.ended[job.job_id]]

    async def read_new(
        self, lease: Lease, models: Sequence[str], count: int, few: int, held: Mapping[str, int]
    ) -> list[JobRecord]:
        read, self._unread = self._unread[:count], self._unread[count:]
        return [self.records[job_id] for job_id in read]

    async def claim_stale(self, lease: Lease, models: Sequence[str], count: int, absence_s: float) -> list[JobRecord]:
        return []

    async def gone(self, job_ids: Sequence[str], pool: str = "") -> GoneJobs:
        return GoneJobs({job_id for job_id in job_ids if self.ended[job_id]}, set())

    async def job(self, job_id: str) -> JobRecord:
        return self._as_stored(self.records[job_id])

    @contextlib.contextmanager
    def listen_accepted(self) -> Iterator[Subscription]:
        yield self._accepted

    async def controls(self, pool: str) -> AsyncGenerator[str, None]:
        await asyncio.Event().wait()
        yield ""

    async def append_progress(self, lease: Lease, updates: object) -> None:
        pass

    async def start(self, lease: Lease, job_id: str) -> bool:
        return self._move(job_id, JobState.RUNNING)

    async def decoding(self, lease: Lease, job_id: str) -> bool:
        return self._move(job_id, JobState.DECODING)

    async def store_image(self, lease: Lease, job_id: str, image: DecodedImage, index: int, seed: int) -> bool:
        self.images[job_id].add(index)
        return not self.ended[job_id]

    async def finish(self, lease: Lease, job_id: str, *told: object) -> bool:
        assert len(self.images[job_id]) == self.records[job_id].request.num_images
        self.ended[job_id] += 1
        return True

    async def fail(self, lease: Lease, job_id: str, code: int, message: str, workers: object = ()) -> bool:
        self.ended[job_id] += 1
        self.reasons[job_id] = f"{code}: {message}"
        return True

    def _move(self, job_id: str, state: JobState) -> bool:
        self.records[job_id] = replace(self.records[job_id], state=state)
        return not self.ended[job_id]

    def _as_stored(self, job: JobRecord) -> JobRecord:
        return replace(job, images_done=tuple(sorted(self.images[job.job_id])))


class VirtualLock:
    """Leadership without anybody else."""

    def __init__(self) -> None:
        self.token = 0
        self.held = False

    async def acquire(self, above: int = 0) -> Lease | None:
        self.token, self.held = max(self.token, above) + 1, True
        return Lease("default", self.token)

    async def renew(self, lease: Lease) -> bool:
        return lease.token == self.token

    async def resign(self, lease: Lease) -> None:
        self.held = False


class VirtualDomains:
    """Pairs of workers, as the registry has them and as streams reach them."""

    def __init__(self, domains: int) -> None:
        self.unets = {f"u{n}": VirtualUnet(f"u{n}", f"d{n}") for n in range(domains)}
        self.vaes = {f"v{n}": VirtualVae(f"v{n}", f"d{n}", self.unets) for n in range(domains)}
        self.records: list[WorkerRecord] = []
        for unet in self.unets.values():
            self.records.append(record("unet", worker_id=unet.worker_id, domain=unet.domain))
        for vae in self.vaes.values():
            self.records.append(record("vae", worker_id=vae.worker_id, domain=vae.domain))

    async def workers(self, pool: str) -> list[WorkerRecord]:
        return self.records

    def streams(self, token: int, leader: Listener, *options: object) -> "VirtualStreams":
        return VirtualStreams(self, leader)


class VirtualStreams:
    """Stands for `WorkerStreams`: a worker acts on a command every `ACT_EVERY_S`."""

    def __init__(self, domains: VirtualDomains, leader: Listener) -> None:
        self._domains = domains
        self._leader = leader
        self._working: dict[str, asyncio.Task[None]] = {}

    def send(self, effect: WorkerEffect) -> None:
        self._worker(effect.worker_id).commands.append(effect)

    def reconcile(self, announced: list[WorkerRecord]) -> None:
        for each in announced:
            if each.worker_id not in self._working:
                self._working[each.worker_id] = asyncio.create_task(self._work(self._worker(each.worker_id)))

    def lose(self, domain: str) -> None:
        """End the streams to its workers."""
        for worker_id in list(self._working):
            if self._worker(worker_id).domain == domain:
                self._working.pop(worker_id).cancel()
                self._leader.on(WorkerLost(worker_id))

    async def close(self) -> None:
        await cancel_and_wait(*self._working.values())

    def _worker(self, worker_id: str) -> VirtualUnet | VirtualVae:
        return self._domains.unets.get(worker_id) or self._domains.vaes[worker_id]

    async def _work(self, worker: VirtualUnet | VirtualVae) -> None:
        worker.commands.clear()
        if isinstance(worker, VirtualUnet):
            self._leader.on(UnetAttached(worker.lane(), tuple(worker.resident_tasks())))
        else:
            self._leader.on(VaeAttached(worker.lane()))
            for image in list(worker.outbox.values()):
                self._leader.on(Reported(worker.worker_id, image))
        while True:
            await asyncio.sleep(ACT_EVERY_S)
            for report in worker.act():
                self._leader.on(Reported(worker.worker_id, report))


class VirtualPool:
    """A pool of `domains` pairs, whose profile is given, and its stand-ins. To be run on a `VirtualTimeLoop`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, domains: int = 2) -> None:
        self.store, self.lock, self.domains = VirtualStore(), VirtualLock(), VirtualDomains(domains)
        monkeypatch.setattr(leader_module, "WorkerStreams", self.domains.streams)
        monkeypatch.setattr(leader_module, "PROFILES_EVERY_S", ACT_EVERY_S)  # before the first of its ticks
        by_kind = {worker.kind: worker for worker in self.domains.records}
        profile = straight_line_profile(step_ms=1.5, chunks=(1, 2))
        profile = replace(profile, subject=subject_of(by_kind["unet"], by_kind["vae"], SIDE, SIDE))
        bounds = PolicyBounds(unet_batch=3, vae_batch=2, prepare_ahead=1)
        options = LeaderOptions(
            ConfiguredPolicy(POLICIES["synerdiff"], bounds, PlanBook(capacity=1, solve_now=True)),
            profiles=KeeperOptions(profile),
        )
        self.pool = Pool(
            "default", options, cast(Any, self.store), cast(Any, self.domains), cast(Any, self.lock), leader_ttl_s=0.3
        )

    async def until(self, condition: Callable[[], bool]) -> None:
        """Return once the condition holds; TimeoutError after as long as nothing here takes."""
        async with asyncio.timeout(HANG_VIRTUAL_S):
            while not condition():
                await asyncio.sleep(2 * ACT_EVERY_S)

    @property
    def quiet(self) -> bool:
        """Whether no worker holds anything, nor has anything to do."""
        unets, vaes = self.domains.unets.values(), self.domains.vaes.values()
        return not any(
            [u.commands or u.residents for u in unets] + [v.commands for v in vaes] + [v.outbox for v in vaes]
        )
