"""The queue scripts against a model of what they promise, under random orders of everything that can happen.

Two pools with changing leaders share the streams of two models. The model is plain Python; after every step Redis must
agree with it on every job's state, owner and place in the queue. Replies get lost (calls repeated), Redis is killed.
"""

from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule, run_state_machine_as_test

from services.scheduler.store import keys
from services.scheduler.store.queue import Acceptance
from services.scheduler.store.scripts import TransitionRefused
from synerdiff.errors import AlreadyExists, StaleLeader
from synerdiff.jobs import JobState
from synerdiff.redis_process import RedisProcess
from synerdiff.requests import Priority
from tests.services.scheduler.redis_jobs import DIGEST, TIMINGS, Step, a_picture, new_leader
from tests.services.scheduler.store.queue_model import Job, QueueModel
from tests.values import a_request

MODELS = ["m1", "m2"]
POOLS = ["a", "b"]
SHORT_MS, LONG_MS = 100_000, 10_000_000
NUM_IMAGES = 2

pools = st.sampled_from(POOLS)
job_numbers = st.integers(0, 30)


class QueueMachine(QueueModel):
    def teardown(self) -> None:
        for job in self.jobs:
            self.check_history(job)
        self.run(self.store.close())
        self.run(self.redis.aclose())
        self.runner.close()

    # ---- what clients do

    @initialize()
    def begin(self) -> None:
        self.run(self.redis.flushall())
        for pool in POOLS:
            self.leases[pool] = self.run(new_leader(self.redis, pool))

    @rule(
        model=st.sampled_from(MODELS),
        priority=st.sampled_from(Priority),
        timeout_ms=st.sampled_from([SHORT_MS, LONG_MS]),
        abandonable=st.booleans(),
    )
    def accept(self, model: str, priority: Priority, timeout_ms: int, abandonable: bool) -> None:
        self.make_job(f"r{len(self.jobs)}", model, priority, timeout_ms, abandonable)

    def make_job(self, request_id: str, model: str, priority: Priority, timeout_ms: int, abandonable: bool) -> None:
        request = a_request(
            request_id=request_id, model=model, priority=priority, timeout_ms=timeout_ms, num_images=NUM_IMAGES
        )
        accepted = self.run(self.store.accept(request, DIGEST, abandonable))
        assert accepted.created
        record = self.run(self.store.job(accepted.job_id))
        assert record is not None
        assert accepted.record == record, "what Submit answers is what Redis holds"
        self.jobs.append(
            Job(accepted.job_id, request_id, model, priority, timeout_ms, abandonable, record.accepted_at_ms)
        )

    @precondition(lambda self: self.jobs)
    @rule(number=job_numbers, other_body=st.booleans())
    def accept_again(self, number: int, other_body: bool) -> None:
        of_number = self.job(number)
        job = next(job for job in reversed(self.jobs) if job.request_id == of_number.request_id)
        request = a_request(request_id=job.request_id)
        if job.was_abandoned:
            self.make_job(job.request_id, job.model, job.priority, job.timeout_ms, job.abandonable)
        elif other_body:
            with pytest.raises(AlreadyExists):
                self.run(self.store.accept(request, b"other", job.abandonable))
        else:
            assert self.run(self.store.accept(request, DIGEST, job.abandonable)) == Acceptance(job.job_id)

    @precondition(lambda self: self.jobs)
    @rule(number=job_numbers)
    def cancel(self, number: int) -> None:
        job = self.job(number)
        if not job.ended:
            job.state = JobState.CANCELLED
        record = self.run(self.store.cancel(job.job_id, "enough"))
        assert record is not None
        assert record.state is job.state

    # ---- what leaders do

    @rule(pool=pools, count=st.integers(1, 4), reply_lost=st.booleans())
    def read_new(self, pool: str, count: int, reply_lost: bool) -> None:
        lease = self.leases[pool]
        expected = self.waiting_in_order()[:count]
        if reply_lost:
            self.run(self.store.read_new(lease, MODELS, count))
            self.store._answered_reads[lease, "read_new"] -= 1
        read = self.run(self.store.read_new(lease, MODELS, count))
        assert [record.job_id for record in read] == [job.job_id for job in expected]
        for job in expected:
            job.owner = pool

    @rule(pool=pools)
    def read_pending(self, pool: str) -> None:
        records = self.run(self.store.read_pending(self.leases[pool]))
        assert sorted(record.job_id for record in records) == sorted(self.held_by(pool))
        for record in records:
            job = next(job for job in self.jobs if job.job_id == record.job_id)
            assert set(record.images_done) == job.images

    @rule(pool=pools)
    def leader_changes(self, pool: str) -> None:
        old = self.leases[pool]
        self.leases[pool] = self.run(new_leader(self.redis, pool, instance_id=f"leader after {old.token}"))
        assert self.leases[pool].token > old.token
        self.old_leases.append(old)

    @precondition(lambda self: self.old_leases and self.jobs)
    @rule(number=job_numbers, which=st.integers(0, 30))
    def old_leader_tries(self, number: int, which: int) -> None:
        lease = self.old_leases[which % len(self.old_leases)]
        job_id = self.job(number).job_id
        for attempt in (
            self.store.read_new(lease, MODELS, 5),
            self.store.fail(lease, job_id, 13, "old"),
            self.store.start(lease, job_id),
        ):
            with pytest.raises(StaleLeader):
                self.run(attempt)

    @rule(pool=pools, count=st.integers(1, 3), reply_lost=st.booleans())
    def claim_from_a_deserted_pool(self, pool: str, count: int, reply_lost: bool) -> None:
        other = next(name for name in POOLS if name != pool)
        held = self.held_by(other)
        self.run(self.redis.delete(keys.PATTERNS["leader"] % other))
        lease = self.leases[pool]
        if reply_lost:
            self.run(self.store.claim_stale(lease, MODELS, count, 0.0))
            self.store._answered_reads[lease, "claim_stale"] -= 1
        claimed = {record.job_id for record in self.run(self.store.claim_stale(lease, MODELS, count, 0.0))}
        assert claimed <= held
        assert len(claimed) == min(count, len(held))
        for job in self.jobs:
            if job.job_id in claimed:
                job.owner = pool

    def change(
        self, job: Job, pool: str, call: Callable[[], Coroutine[Any, Any, bool]], refused: bool, then: JobState | None
    ) -> bool:
        """Carry out a leader's change twice, as after a lost reply. Returns whether the model should follow."""
        if job.owner != pool or (job.ended and job.state is not then):
            assert not self.run(call())
            return False
        if refused and not job.ended:
            with pytest.raises(TransitionRefused):
                self.run(call())
            return False
        assert self.run(call())
        assert self.run(call())
        return not job.ended

    @precondition(lambda self: self.jobs)
    @rule(number=job_numbers, pool=pools)
    def start(self, number: int, pool: str) -> None:
        job, lease = self.job(number), self.leases[pool]
        changed = self.change(job, pool, lambda: self.store.start(lease, job.job_id), refused=False, then=None)
        if changed and job.state is JobState.QUEUED:
            job.state = JobState.RUNNING

    @precondition(lambda self: self.jobs)
    @rule(number=job_numbers, pool=pools)
    def decoding(self, number: int, pool: str) -> None:
        job, lease = self.job(number), self.leases[pool]
        refused = job.state is JobState.QUEUED
        if self.change(job, pool, lambda: self.store.decoding(lease, job.job_id), refused, then=None):
            job.state = JobState.DECODING

    @precondition(lambda self: self.jobs)
    @rule(number=job_numbers, pool=pools, index=st.integers(0, NUM_IMAGES - 1))
    def store_image(self, number: int, pool: str, index: int) -> None:
        job, lease = self.job(number), self.leases[pool]
        refused = job.state is JobState.QUEUED
        call = lambda: self.store.store_image(lease, job.job_id, a_picture(), index, index)  # noqa: E731
        if self.change(job, pool, call, refused, then=None):
            job.images.add(index)

    @precondition(lambda self: self.jobs)
    @rule(number=job_numbers, pool=pools)
    def progress(self, number: int, pool: str) -> None:
        job = self.job(number)
        self.run(self.store.append_progress(self.leases[pool], [Step(job.job_id, 0, 1), Step("unknown", 0, 1)]))

    @precondition(lambda self: self.jobs)
    @rule(number=job_numbers, pool=pools)
    def finish(self, number: int, pool: str) -> None:
        job, lease = self.job(number), self.leases[pool]
        refused = len(job.images) < NUM_IMAGES
        call = lambda: self.store.finish(lease, job.job_id, TIMINGS)  # noqa: E731
        if self.change(job, pool, call, refused, then=JobState.FINISHED):
            job.state = JobState.FINISHED

    @precondition(lambda self: self.jobs)
    @rule(number=job_numbers, pool=pools)
    def fail(self, number: int, pool: str) -> None:
        job, lease = self.job(number), self.leases[pool]
        call = lambda: self.store.fail(lease, job.job_id, 13, "broken")  # noqa: E731
        if self.change(job, pool, call, refused=False, then=JobState.FAILED):
            job.state = JobState.FAILED

    @precondition(lambda self: any(job.images and not job.ended for job in self.jobs))
    @rule()
    def run_to_the_end(self) -> None:
        """So that jobs finish more often than chance would have it."""
        job = next(job for job in self.jobs if job.images and not job.ended)
        assert job.owner is not None
        for index in range(NUM_IMAGES):
            self.run(self.store.store_image(self.leases[job.owner], job.job_id, a_picture(), index, index))
        assert self.run(self.store.finish(self.leases[job.owner], job.job_id, TIMINGS))
        job.images.update(range(NUM_IMAGES))
        job.state = JobState.FINISHED

    # ---- what happens by itself

    @precondition(lambda self: self.jobs)
    @rule(number=job_numbers)
    def deadlines_pass(self, number: int) -> None:
        now_ms = self.job(number).accepted_at_ms + SHORT_MS
        late = [job for job in self.jobs if not job.ended and job.accepted_at_ms + job.timeout_ms <= now_ms]
        assert self.run(self.store.sweep_expired(now_ms)) == len(late)
        for job in late:
            job.state = JobState.FAILED

    @precondition(lambda self: self.jobs)
    @rule()
    def followers_leave(self) -> None:
        now_ms = max(job.accepted_at_ms for job in self.jobs) + 1_000_000
        left = [job for job in self.jobs if not job.ended and job.abandonable]
        self.run(self.redis.set(keys.PATTERNS["leases_swept"], now_ms - 1000))
        assert self.run(self.store.sweep_abandoned(now_ms)) == len(left)
        for job in left:
            job.state, job.was_abandoned = JobState.CANCELLED, True

    @rule()
    def trim(self) -> None:
        self.run(self.store.trim())

    @precondition(lambda self: len(self.jobs) > 3 and not self.restarted)
    @rule()
    def redis_is_killed(self) -> None:
        self.restarted = True
        self.server.restart()

    @precondition(lambda self: bool(self.jobs))
    @rule(kind=st.sampled_from(["waiting", "deadlines", "turns", "queued_models", "leases_swept"]))
    def redis_loses_a_key(self, kind: str) -> None:
        async def lose() -> None:
            await self.redis.hset(keys.PATTERNS["models"], mapping=dict.fromkeys(MODELS, "a card"))
            await self.redis.delete("none", *await self.redis.keys(keys.PATTERNS[kind].replace("%s", "*")))
            await self.store.restore()

        self.run(lose())

    # ---- what must hold at any time

    @invariant()
    def redis_agrees(self) -> None:
        if self.jobs:
            self.run(self.check_redis())

    async def check_redis(self) -> None:
        live = [job for job in self.jobs if not job.ended]
        async with self.redis.pipeline(transaction=False) as batch:
            for job in self.jobs:
                batch.hget(keys.job(job.job_id), "state")
            batch.zrange(keys.PATTERNS["deadlines"], 0, -1)
            batch.zrange(keys.PATTERNS["leases"], 0, -1)
            *states, deadlines, leases = await batch.execute()
        assert [state.decode() for state in states] == [job.state.name for job in self.jobs]
        assert {name.decode() for name in deadlines} - {keys.KEEPER} == {job.job_id for job in live}
        assert {name.decode() for name in leases} - {keys.KEEPER} == {job.job_id for job in live if job.abandonable}
        for model in MODELS:
            await self.check_model(model)

    async def check_model(self, model: str) -> None:
        of_model = [job for job in self.jobs if job.model == model]
        queued = sorted((job for job in of_model if job.state is JobState.QUEUED), key=lambda job: job.priority)
        waiting = await self.redis.zrange(keys.PATTERNS["waiting"] % model, 0, -1)
        assert [name.decode() for name in waiting if name.decode() != keys.KEEPER] == [job.job_id for job in queued]
        for priority in Priority:
            jobs = [job for job in of_model if job.priority is priority]
            if jobs:
                await self.check_stream(keys.queue(model, priority), jobs)

    async def check_stream(self, stream: str, jobs: list[Job]) -> None:
        """Each live job is delivered to its owner alone, or still to be delivered; an ended one is not pending."""
        entries = {entry_id: fields[b"job"].decode() for entry_id, fields in await self.redis.xrange(stream)}
        pending = await self.redis.xpending_range(stream, keys.GROUP, "-", "+", 1000)
        (group,) = await self.redis.xinfo_groups(stream)
        last = _order(group["last-delivered-id"])
        owners = {entries[entry["message_id"]]: entry["consumer"].decode() for entry in pending}
        assert owners == {job.job_id: job.owner for job in jobs if job.owner is not None and not job.ended}
        undelivered = [job_id for entry_id, job_id in entries.items() if _order(entry_id) > last]
        expected = [job.job_id for job in jobs if job.owner is None and not job.ended]
        ended = {job.job_id for job in jobs if job.ended}
        assert [job_id for job_id in undelivered if job_id not in ended] == expected
        assert len(expected) <= group["lag"] <= len(undelivered), "less those that have ended, once that is noticed"

    def check_history(self, job: Job) -> None:
        events = self.run(self.store.events(job.job_id))
        kinds = [event.WhichOneof("event") for event in events]
        sequences = [event.sequence for event in events]
        assert sequences == sorted(set(sequences))
        assert kinds[0] == "queued"
        assert kinds.count("started") <= 1
        assert kinds.count("image") == len(job.images)
        terminal = [kind for kind in kinds if kind in ("finished", "failed", "cancelled")]
        assert terminal == ([job.state.name.lower()] if job.ended else [])
        if job.ended:
            # Progress of an image that never came may stand between; nothing stands after the end.
            assert kinds[-1] == terminal[0]


def _order(entry_id: bytes) -> tuple[int, ...]:
    return tuple(int(part) for part in entry_id.split(b"-"))


def test_the_queue_keeps_its_promises(own_redis: RedisProcess) -> None:
    machine = type("Machine", (QueueMachine,), {"server": own_redis})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=25,
            stateful_step_count=40,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.reuse, Phase.generate],  # shrinking replays for minutes; add Phase.shrink to hunt a failure
        ),
    )
