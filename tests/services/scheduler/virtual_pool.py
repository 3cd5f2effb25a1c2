"""A pool that leads in virtual time: its own Pool, Leader, engine, policy, planner and writer, over stand-ins.

Stood for are what takes real time: the workers and the network to them, Redis, and the lock in it.
"""

import asyncio
import contextlib
from collections import Counter, deque
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import grpc
import pytest

from services.scheduler.engine.effects import (
    Admit,
    CancelOnWorker,
    ForgetImages,
    ReleaseSlots,
    SendUnetPlan,
    SendVaePlan,
    WorkerEffect,
)
from services.scheduler.engine.events import Report
from services.scheduler.leading import leader as leader_module
from services.scheduler.leading import worker_stream
from services.scheduler.leading.leader import LeaderOptions
from services.scheduler.leading.pool import Pool
from services.scheduler.planner.plan_book import PlanBook
from services.scheduler.policy.policies import ConfiguredPolicy
from services.scheduler.policy.policy_spec import POLICIES, PolicyBounds
from services.scheduler.profiles.keeper import KeeperOptions
from services.scheduler.profiles.measuring.findings import subject_of
from services.scheduler.store.notifications import Subscription
from services.scheduler.store.queue import GoneJobs
from services.scheduler.store.scripts import Lease
from synerdiff.jobs import JobRecord, JobState
from synerdiff.plans import DecodedImage, TaskFailed, TaskReady, UnetTickDone, VaeTickDone
from synerdiff.registry import WorkerRecord
from synerdiff.v1 import stages_pb2
from synerdiff.wire import stages
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
            self.records.append(record("unet", worker_id=unet.worker_id, domain=unet.domain, address=unet.worker_id))
        for vae in self.vaes.values():
            self.records.append(record("vae", worker_id=vae.worker_id, domain=vae.domain, address=vae.worker_id))

    async def workers(self, pool: str) -> list[WorkerRecord]:
        return self.records

    def channel(self, address: str, **_: object) -> "VirtualChannel":
        """The channel to a worker."""
        return VirtualChannel(self.unets.get(address) or self.vaes[address])

    def lose(self, domain: str) -> None:
        """End the streams to its workers."""
        workers: list[VirtualUnet | VirtualVae] = [*self.unets.values(), *self.vaes.values()]
        for worker in workers:
            if worker.domain == domain and worker.call:
                worker.call.ended = True


class VirtualChannel:
    """What the stubs of the stages call instead of a `grpc.aio.Channel`: the same messages, without a network."""

    def __init__(self, worker: VirtualUnet | VirtualVae) -> None:
        self._worker = worker

    async def __aenter__(self) -> "VirtualChannel":
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    def stream_stream(self, path: str, **_: object) -> Callable[[], "VirtualCall"]:
        return lambda: VirtualCall(self._worker)

    def unary_stream(self, path: str, **_: object) -> Callable[[object], AsyncGenerator[object, None]]:
        return lambda request: self._images()

    async def _images(self) -> AsyncGenerator[object, None]:
        worker, sent = cast(VirtualVae, self._worker), set[str]()
        while True:
            sent &= worker.outbox.keys()
            for task_id in worker.outbox.keys() - sent:
                sent.add(task_id)
                yield stages.decoded_image_to_pb(worker.outbox[task_id])
            await asyncio.sleep(ACT_EVERY_S)


class VirtualCall:
    """A `Run` call: the worker acts on a command every `ACT_EVERY_S`."""

    def __init__(self, worker: VirtualUnet | VirtualVae) -> None:
        self.ended = False
        self._worker = worker
        self._reports: deque[object] = deque()
        worker.call = self

    async def write(self, command: Any) -> None:
        kind, worker = command.WhichOneof("command"), self._worker
        if kind == "attach":
            worker.commands.clear()
            self._reports.append(_attached(worker))
            return
        told = getattr(command, kind)
        match kind, worker:
            case "plan", VirtualUnet():
                effect: WorkerEffect = SendUnetPlan(worker.worker_id, stages.unet_plan_from_pb(told))
            case "plan", VirtualVae():
                effect = SendVaePlan(worker.worker_id, stages.vae_plan_from_pb(told))
            case "admit", _:
                effect = Admit(worker.worker_id, stages.task_spec_from_pb(told))
            case _:
                letting_go = CancelOnWorker if kind == "cancel" else ReleaseSlots if kind == "release" else ForgetImages
                effect = letting_go(worker.worker_id, tuple(told.task_ids))
        worker.commands.append(effect)

    async def read(self) -> object:
        while not self._reports:
            await asyncio.sleep(ACT_EVERY_S)
            if self.ended:
                return grpc.aio.EOF
            self._reports.extend(map(_report, (r for r in self._worker.act() if not isinstance(r, DecodedImage))))
        return self._reports.popleft()

    def cancel(self) -> None:
        self.ended = True


def _attached(worker: VirtualUnet | VirtualVae) -> object:
    if isinstance(worker, VirtualVae):
        return stages_pb2.VaeReport(attached=stages_pb2.VaeAttached(worker_id=worker.worker_id))
    resident = map(stages.resident_task_to_pb, worker.resident_tasks())
    attached = stages_pb2.UnetAttached(slots=worker.slots, arena_address=worker.worker_id, resident=resident)
    return stages_pb2.UnetReport(attached=attached)


def _report(report: Report) -> object:
    match report:
        case UnetTickDone():
            return stages_pb2.UnetReport(tick_done=stages.unet_tick_done_to_pb(report))
        case TaskReady():
            return stages_pb2.UnetReport(task_ready=stages.task_ready_to_pb(report))
        case TaskFailed():
            return stages_pb2.UnetReport(task_failed=stages.task_failed_to_pb(report))
        case VaeTickDone():
            return stages_pb2.VaeReport(tick_done=stages.vae_tick_done_to_pb(report))
        case _:
            raise TypeError(f"nothing here reports {report}")


class VirtualPool:
    """A pool of `domains` pairs, whose profile is given, and its stand-ins. To be run on a `VirtualTimeLoop`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, domains: int = 2) -> None:
        self.store, self.lock, self.domains = VirtualStore(), VirtualLock(), VirtualDomains(domains)
        monkeypatch.setattr(worker_stream, "open_channel", self.domains.channel)
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
