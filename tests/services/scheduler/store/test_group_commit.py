"""What goes to Redis together: that neighbours do not feel each other, but for the round trip they share."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from redis.asyncio import Redis

from services.scheduler.callers import Caller, Quota
from services.scheduler.store import keys
from services.scheduler.store.group_commit import MOST_TOGETHER, SHORTEST_TRY_S, GroupCommit
from services.scheduler.store.queue import Acceptance, JobStore
from services.scheduler.store.scripts import Argument, Lease
from services.scheduler.store.store_base import JobStoreSettings
from synerdiff.errors import AlreadyExists, QueueFull, Unavailable
from tests.services.scheduler.redis_jobs import DIGEST
from tests.values import a_request
from tests.waiting import HANG_S, until


class Writes:
    """Remembers the groups, and answers one, each with its argument, once it is told to."""

    def __init__(self) -> None:
        self.groups: list[list[Any]] = []
        self.go_on = asyncio.Event()

    async def __call__(self, group: Sequence[Sequence[Argument]], patience_s: float) -> list[Any]:
        self.groups.append([first for first, *_ in group])
        await self.go_on.wait()
        return [first for first, *_ in group]


async def under_way(writes: Writes, commit: GroupCommit, *names: str) -> "list[asyncio.Task[Any]]":
    """The first of the calls is under way, the others have come meanwhile."""
    calls = [asyncio.create_task(commit.run(names[0]))]
    await until(lambda: writes.groups)
    calls += [asyncio.create_task(commit.run(name)) for name in names[1:]]
    await asyncio.sleep(0)
    return calls


async def test_what_comes_meanwhile_goes_together_and_in_order() -> None:
    writes = Writes()
    commit = GroupCommit(writes, patience_s=HANG_S, most=2)
    calls = await under_way(writes, commit, *"abcd")
    writes.go_on.set()
    assert await asyncio.gather(*calls) == [*"abcd"]
    assert writes.groups == [["a"], ["b", "c"], ["d"]]
    assert await commit.run("e") == "e", "and it goes on once it was idle"


async def test_a_caller_that_leaves_writes_nothing_unless_its_write_is_under_way() -> None:
    writes = Writes()
    calls = await under_way(writes, GroupCommit(writes, patience_s=HANG_S), *"abc")
    calls[0].cancel()
    calls[1].cancel()
    await asyncio.wait(calls[:2])
    writes.go_on.set()
    assert await calls[2] == "c"
    assert writes.groups == [["a"], ["c"]]


async def test_each_has_patience_of_its_own() -> None:
    """The second comes when half of the first one's patience is gone, and has the other half after it."""
    loop, patience_s = asyncio.get_running_loop(), 4 * SHORTEST_TRY_S
    tried: list[int] = []

    async def away(group: Sequence[Sequence[Argument]], patience_s: float) -> list[Any]:
        tried.append(len(group))
        await asyncio.sleep(patience_s)
        raise Unavailable("away")

    commit = GroupCommit(away, patience_s)

    async def call() -> float:
        began = loop.time()
        with pytest.raises(Unavailable, match="away"):
            await commit.run("x")
        return loop.time() - began

    first = asyncio.create_task(call())
    await asyncio.sleep(patience_s / 2)
    waited_s = await asyncio.gather(first, call(), call())
    assert tried == [1, 2]
    for each in waited_s:
        assert each >= patience_s - 0.01  # a timer may be early by its own grain


async def test_any_error_reaches_each_and_the_next_is_tried() -> None:
    errors: list[Exception] = [RuntimeError("a mistake of ours")]

    async def write(group: Sequence[Sequence[Argument]], patience_s: float) -> list[Any]:
        await asyncio.sleep(0)
        if errors:
            raise errors.pop()
        return [first for first, *_ in group]

    commit = GroupCommit(write, patience_s=HANG_S)
    answers = await asyncio.gather(*map(commit.run, "ab"), return_exceptions=True)
    assert [repr(answer) for answer in answers] == ["RuntimeError('a mistake of ours')"] * 2
    assert await commit.run("c") == "c"


async def test_closing_cancels_all_that_wait() -> None:
    writes = Writes()
    commit = GroupCommit(writes, patience_s=HANG_S, most=1)
    calls = await under_way(writes, commit, *"abc")
    await commit.close()
    await asyncio.wait_for(asyncio.wait(calls), HANG_S)
    assert all(call.cancelled() for call in calls)


# ---- the script that accepts a group


async def accept_all(store: JobStore, *request_ids: str, **options: Any) -> list[Acceptance | BaseException]:
    """Requests in one group, after one that goes alone."""
    alone = asyncio.create_task(store.accept(a_request(model="another"), DIGEST, False))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    answers = asyncio.gather(
        *(store.accept(a_request(request_id=name), DIGEST, False, **options) for name in request_ids),
        return_exceptions=True,
    )
    await alone
    return await answers


async def all_accepted(store: JobStore, *request_ids: str) -> list[Acceptance]:
    """The acceptances of requests that are all accepted."""
    answers = await accept_all(store, *request_ids)
    accepted = [answer for answer in answers if isinstance(answer, Acceptance)]
    assert len(accepted) == len(answers), answers
    return accepted


async def scripts_run(redis: Redis) -> int:
    return int((await redis.info("commandstats")).get("cmdstat_evalsha", {}).get("calls", 0))


async def test_a_group_is_one_script_and_reads_in_its_order(redis: Redis, store: JobStore, lease: Lease) -> None:
    before = await scripts_run(redis)
    names = [f"r{number}" for number in range(MOST_TOGETHER)]
    accepted = await all_accepted(store, *names)
    # One more where Redis did not know the script yet.
    assert await scripts_run(redis) - before <= 3
    assert [each.position for each in accepted] == list(range(MOST_TOGETHER))
    records = await store.read_new(lease, ["emoji"], MOST_TOGETHER)
    assert [record.request.request_id for record in records] == names


async def test_one_request_id_twice_in_a_group_makes_one_job(store: JobStore) -> None:
    first, second = await all_accepted(store, "same", "same")
    assert first.job_id == second.job_id
    assert (first.created, second.created) == (True, False)


async def test_a_group_gets_exactly_the_room_that_is_left(redis: Redis) -> None:
    store = JobStore(redis, JobStoreSettings(max_waiting=3))
    one = Caller("one", quota=Quota(waiting_jobs=2))
    answers = await accept_all(store, *"abcd", caller=one)
    assert [type(answer) for answer in answers] == [Acceptance, Acceptance, QueueFull, QueueFull]
    assert "'one' has 2 of waiting_jobs=2" in str(answers[2])
    answers = await accept_all(store, *"abcd")
    assert [type(answer) for answer in answers] == [Acceptance, QueueFull, QueueFull, QueueFull]
    assert "3 jobs are waiting for model 'emoji'" in str(answers[1])
    await store.close()


async def test_a_body_that_differs_and_a_damaged_key_are_matters_of_one_request(redis: Redis, store: JobStore) -> None:
    await store.accept(a_request(request_id="used"), b"another", False)
    await redis.hset(keys.PATTERNS["request"] % "damaged", "no", "text")
    answers = await accept_all(store, "new", "used", "damaged", "newer")
    assert [type(answer) for answer in (answers[0], answers[1], answers[3])] == [Acceptance, AlreadyExists, Acceptance]
    assert "WRONGTYPE" in str(answers[2])


async def test_a_full_redis_is_unavailable_to_each_and_has_accepted_none(own_client: Redis) -> None:
    store = JobStore(own_client, JobStoreSettings(api_patience_s=0.5))
    await accept_all(store, "before")
    await own_client.config_set("maxmemory", "1")
    answers = await asyncio.gather(
        *(store.accept(a_request(request_id=name), DIGEST, False) for name in "abc"), return_exceptions=True
    )
    refusals = [answer.message for answer in answers if isinstance(answer, Unavailable)]
    assert [message.startswith("Redis is full") for message in refusals] == [True] * 3
    await own_client.config_set("maxmemory", "0")
    assert all(each.created for each in await all_accepted(store, *"abc"))
    await store.close()


async def test_a_lost_reply_leaves_a_group_as_it_was_accepted(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    run, lost = store._scripts.run_for_each, []

    async def twice(*args: Any, **options: Any) -> list[Any]:
        lost.append(await run(*args, **options))
        return await run(*args, **options)

    monkeypatch.setattr(store._scripts, "run_for_each", twice)
    first, second = await all_accepted(store, "a", "b")
    assert (first.created, second.created) == (True, True)
    assert lost[1] == [[each.job_id.encode(), each.record.accepted_at_ms, each.position]
                       for each in (first, second) if each.record]  # fmt: skip
