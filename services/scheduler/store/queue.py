"""The durable queue: acceptance, reading by pools, and the life of a job.

One Redis stream per model and priority class, read by all pools through one consumer group. A job's stream entry is
acknowledged when the job ends, so a pool's next leader, or another pool, finds its unfinished jobs again.
"""

import collections
import contextlib
import itertools
import json
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

from prometheus_client import Counter
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from services.scheduler.callers import ANONYMOUS, Caller
from services.scheduler.store import keys
from services.scheduler.store.group_commit import GroupCommit
from services.scheduler.store.images import ImageStore
from services.scheduler.store.notifications import Subscription
from services.scheduler.store.records import (
    UnreadableRecord,
    cancelled_event,
    failed_event,
    finished_event,
    record_from_reply,
    request_to_json,
    started_event,
)
from services.scheduler.store.results import JobResults
from services.scheduler.store.scripts import Argument, Lease
from services.scheduler.store.store_base import JobStoreSettings, StoreBase
from services.scheduler.store.sweeps import Sweeps
from synerdiff.cards import ModelCard
from synerdiff.errors import AlreadyExists, NotEnded, QueueFull, Unavailable
from synerdiff.jobs import JobRecord, JobState, JobTimings, SkippedSteps
from synerdiff.redis_client import patiently
from synerdiff.registry import WorkerRegistry
from synerdiff.requests import ImageRequest, Priority
from synerdiff.telemetry import get_logger

log = get_logger("job_queue")
_unreadable = Counter("synerdiff_unreadable_jobs", "jobs failed because the leader cannot read their records")


class Acceptance(NamedTuple):
    """The job of a request, with its record and the number of jobs of its model ahead of it, as of its acceptance.
    `record` is None for a job that its request_id had made before."""

    job_id: str
    record: JobRecord | None = None
    position: int = 0

    @property
    def created(self) -> bool:
        """Whether this request has made the job."""
        return self.record is not None


class QueueDepth(NamedTuple):
    """How many jobs wait for a model in a priority class, and the age of the oldest in seconds."""

    model: str
    priority: Priority
    waiting: int
    oldest_age_s: float


class GoneJobs(NamedTuple):
    """Ids of jobs that have ended, or belong to another pool, and of those whose records Redis has lost."""

    ended: set[str]
    lost: set[str]


class JobQueue(StoreBase):
    """Jobs from acceptance to their end. Methods that take a Lease raise StaleLeader once a newer leader has the pool,
    and Unavailable where Redis does not take a first try: the leader decides when to try again.

    Those that return bool return False when the job has ended otherwise or belongs to another pool by now: the caller
    then drops its tasks. Every method may be called again after a lost reply.
    """

    def __init__(
        self, redis: Redis, settings: JobStoreSettings | None = None, images: ImageStore | None = None
    ) -> None:
        super().__init__(redis, settings, images)
        self._acceptances = GroupCommit(self._accept_all, self._settings.api_patience_s)
        self._answered_reads: collections.Counter[tuple[Lease, str]] = collections.Counter()

    async def close(self) -> None:
        """End the background tasks; requests that wait to be accepted are cancelled."""
        await self._acceptances.close()
        await super().close()

    # ---- for the API

    async def accept(
        self,
        request: ImageRequest,
        digest: bytes,
        abandonable: bool,
        traceparent: str = "",
        caller: Caller = ANONYMOUS,
        cost: float = 1.0,
    ) -> Acceptance:
        """Accept a request: once this returns, the job survives anything short of losing Redis's disk. Calls at the
        same time share a write.

        `digest` shows whether a repeated request_id carries the same body. An abandonable job stops being so
        once the same request is accepted as one that is not. `traceparent` is that of the call that makes the job.
        Each caller's request_ids are their own, and jobs that wait are read fairly between callers by their `cost`: the
        share of a device that a job takes, in any unit that is the same for all jobs of the model.
        Raises AlreadyExists, QueueFull (for the model's bound, the caller's quota or Redis' memory), InvalidRequest for
        results that Redis has never memory for, Unavailable (then it is unknown whether it was accepted: repeat it).
        """
        job_id = uuid.uuid4().hex
        try:
            reply = await self._acceptances.run(
                job_id,
                keys.request_id_of(caller.name, request.request_id),
                digest,
                request_to_json(request),
                request.num_images,
                request.model,
                request.priority.value,
                request.timeout_ms,
                int(abandonable),
                traceparent,
                caller.name,
                repr(cost),
                self._images.redis_bytes(request),
                *caller.quota.counts,
            )
        except ResponseError as error:
            raise self._refusal(request, caller, error) from error
        accepted, *made = reply
        if not made:
            return Acceptance(accepted.decode())
        now_ms, ahead = made
        record = JobRecord(
            job_id=job_id,
            state=JobState.QUEUED,
            request=request,
            accepted_at_ms=now_ms,
            deadline_ms=now_ms + request.timeout_ms,
            abandonable=abandonable,
            traceparent=traceparent,
            caller=caller.name,
        )
        return Acceptance(job_id, record, ahead)

    async def _accept_all(self, requests: Sequence[Sequence[Argument]], patience_s: float) -> list[Any]:
        fields = itertools.chain.from_iterable(requests)
        room_bytes = self._memory.room_bytes
        shared = (self._follower_lease_ms, self._settings.max_waiting, "" if room_bytes is None else room_bytes)
        return await self._scripts.run_for_each("accept", *shared, *fields, patience_s=patience_s)

    def _refusal(self, request: ImageRequest, caller: Caller, error: ResponseError) -> Exception:
        if str(error).startswith("ALREADYEXISTS"):
            return AlreadyExists(f"request_id {request.request_id!r} was used before with another body")
        if str(error).startswith("QUEUEFULL"):
            message = f"{self._settings.max_waiting} jobs are waiting for model {request.model!r}, which is the most"
            return QueueFull(message, retry_after_s=self._settings.retry_after_s)
        if str(error).startswith("OVERQUOTA"):
            _, count, has = str(error).split()
            message = f"caller {caller.name!r} has {has} of {count}={getattr(caller.quota, count)}"
            if count.endswith("images"):
                message += f", and asks for {request.num_images} more"
            return QueueFull(message, retry_after_s=self._settings.retry_after_s)
        if str(error).startswith("MEMORYFULL"):
            expected_bytes, result_bytes = int(str(error).split()[1]), self._images.redis_bytes(request)
            return self._memory.refusal(expected_bytes, result_bytes, self._memory_retry_after_s())
        return error

    def _memory_retry_after_s(self) -> float:
        """Memory comes back as results end their retention: where jobs end evenly, a twentieth of it within this."""
        return max(self._settings.retry_after_s, min(self._settings.retention_s / 20, 60.0))

    async def delete(self, job_id: str) -> None:
        """Forget a job that has ended, and its request_id. An unknown job is no error. Raises NotEnded. Image
        files that cannot be deleted just now are left to the sweep."""
        try:
            await self._api("delete", job_id)
        except ResponseError as error:
            if not str(error).startswith("NOTENDED"):
                raise
            raise NotEnded(f"job {job_id!r} is {str(error).split()[1]}: cancel it, or wait for its end") from error
        with contextlib.suppress(Unavailable):
            await self._images.delete(job_id)

    async def job(self, job_id: str) -> JobRecord | None:
        """The job as it stands; None when there is none, or its retention has ended."""
        reply = await self._api("job", job_id)
        return None if reply is None else record_from_reply(reply)

    async def position(self, job_id: str) -> int:
        """How many jobs of its model are ahead of it; 0 when it is next, or does not wait any more."""
        return int(await self._api("position", job_id))

    async def cancel(self, job_id: str, reason: str) -> JobRecord | None:
        """Cancel a job that has not ended, tell its followers and its pool, and return it as it then stands."""
        reply = await self._api("cancel", job_id, cancelled_event(reason), self._retention_ms, reason)
        return None if reply is None else record_from_reply(reply)

    async def queue_depths(self) -> list[QueueDepth]:
        """The waiting jobs of every model that was ever used, by priority class."""
        return [
            QueueDepth(model.decode(), Priority(priority), waiting, age_ms / 1000)
            for model, priority, waiting, age_ms in await self._api("queue_depths")
        ]

    # ---- for the leader of a pool

    async def read_new(
        self, lease: Lease, models: Sequence[str], count: int, few: int = 0, held: Mapping[str, int] | None = None
    ) -> list[JobRecord]:
        """At most `count` more waiting jobs for this pool: HIGH of all `models` first, then NORMAL, then LOW; of one
        model and class fairly between callers. Past that, the next job as well while its caller has fewer than `few` in
        the pool, these and those of `held`, by caller, together.

        The jobs stay QUEUED until `start`. One call at a time for a lease.
        """
        return await self._read("read_new", lease, count, few, json.dumps(dict(held or {})), *models)

    async def read_pending(self, lease: Lease) -> list[JobRecord]:
        """All jobs delivered to this pool that have not ended: a new leader goes on with them."""
        return await self._readable(lease, await self._leader("read_pending", lease))

    async def claim_stale(
        self, lease: Lease, models: Sequence[str], count: int, min_absence_s: float
    ) -> list[JobRecord]:
        """Take over at most `count` jobs of `models` from pools that had no leader for `min_absence_s` seconds."""
        return await self._read("claim_stale", lease, round(min_absence_s * 1000), count, *models)

    async def _read(self, name: str, lease: Lease, *args: Argument) -> list[JobRecord]:
        # The number moves on only once an answer has come: a read whose answer was lost is answered again.
        replies = await self._leader(name, lease, f"{lease.token}:{self._answered_reads[lease, name]}", *args)
        self._answered_reads[lease, name] += 1
        return await self._readable(lease, replies)

    async def _readable(self, lease: Lease, replies: Sequence[list[Any]]) -> list[JobRecord]:
        """The jobs whose records can be read; the others fail, with the reason."""
        records = []
        for reply in replies:
            try:
                records.append(record_from_reply(reply, to_draw=True))
            except UnreadableRecord as error:
                await self._set_apart(lease, error)
        return records

    async def _set_apart(self, lease: Lease, unreadable: UnreadableRecord) -> None:
        """Fail a job. Where that cannot be done just now it is left to the next leader or a sweep."""
        _unreadable.inc()
        log.error("a job's record cannot be read: it fails", job_id=unreadable.job_id, reason=unreadable.message)
        try:
            await self.fail(lease, unreadable.job_id, unreadable.code.value[0], unreadable.message)
        except Exception as error:
            log.warning("it could not be failed yet", job_id=unreadable.job_id, error=repr(error))

    async def start(self, lease: Lease, job_id: str) -> bool:
        """QUEUED to RUNNING. A job that is past that stays where it is."""
        return bool(await self._leader("start", lease, job_id, started_event()))

    async def decoding(self, lease: Lease, job_id: str) -> bool:
        """RUNNING to DECODING: every image of the job has its last step behind it."""
        return bool(await self._leader("decoding", lease, job_id))

    async def finish(
        self,
        lease: Lease,
        job_id: str,
        timings: JobTimings,
        warnings: Sequence[str] = (),
        skipped_steps: SkippedSteps = (),
        workers: Sequence[str] = (),
    ) -> bool:
        """End a job whose images are all stored. Raises TransitionRefused when one is not."""
        event = finished_event(timings, warnings, skipped_steps)
        return await self._end(lease, job_id, JobState.FINISHED, event, 0, "", " ".join(workers))

    async def fail(self, lease: Lease, job_id: str, code: int, message: str, workers: Sequence[str] = ()) -> bool:
        """End a job that cannot succeed. `code` is a google.rpc.Code."""
        event = failed_event(code, message)
        return await self._end(lease, job_id, JobState.FAILED, event, code, message, " ".join(workers))

    async def _end(self, lease: Lease, job_id: str, state: JobState, event: bytes, *args: Argument) -> bool:
        return bool(await self._leader("end_job", lease, job_id, state.name, event, self._retention_ms, *args))

    async def ended(self, job_ids: Sequence[str], pool: str = "") -> set[str]:
        """The jobs that have ended or are lost; with `pool`, also those that belong to another pool by now."""
        gone = await self.gone(job_ids, pool)
        return gone.ended | gone.lost

    async def gone(self, job_ids: Sequence[str], pool: str = "") -> GoneJobs:
        """The jobs that need no more work, by reason. Followers of the lost ones are woken, to learn of the loss."""
        ended, lost = await self._api("gone", pool, *job_ids)
        return GoneJobs({job_id.decode() for job_id in ended}, {job_id.decode() for job_id in lost})

    def listen_accepted(self) -> AbstractContextManager[Subscription]:
        """Hear of jobs as they are accepted, while in the context. Best effort, as `controls`."""
        return self._notifications.listen(keys.ACCEPTED)

    def controls(self, pool: str) -> AsyncGenerator[str, None]:
        """Ids of jobs that this pool no longer has to work on, as others end or claim them. Best effort: messages sent
        while the connection is down are lost; `ended` finds their jobs."""
        return self._notifications.messages(keys.controls(pool))


class JobStore(JobQueue, JobResults, Sweeps):
    """Everything about jobs that Redis holds: the queue, the results, and the sweeps over both."""

    async def models(self) -> list[ModelCard]:
        """The card of every model that this deployment has known, with a worker just now or not."""
        return await patiently(WorkerRegistry(self._redis).cards, self._settings.api_patience_s)
