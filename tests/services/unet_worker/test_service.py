import asyncio
import io
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from PIL import Image

from synerdiff.cards import Sampler
from synerdiff.plans import (
    Execution,
    Preview,
    SkippedEntry,
    SkipReason,
    TaskFailed,
    TaskReady,
    UnetItem,
    UnetPlan,
    UnetTickDone,
)
from synerdiff.v1 import stages_pb2, stages_pb2_grpc
from synerdiff.wire import stages
from tests.reference import reference_latents, settings_of
from tests.rounding import assert_rounded
from tests.services.unet_worker.conftest import SLOTS, Gate, ServedWorker
from tests.services.unet_worker.leader import Leader, finish, leading
from tests.values import spec
from tests.waiting import until

RESOURCE_EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
INVALID_ARGUMENT = grpc.StatusCode.INVALID_ARGUMENT.value[0]
INTERNAL = grpc.StatusCode.INTERNAL.value[0]


async def test_a_task_from_admission_to_release(served: ServedWorker, tiny_path: Path) -> None:
    request = spec("job/0", sampler=Sampler.EULER_ANCESTRAL)
    async with leading(served.channel) as leader:
        assert leader.attached.worker_id == "unet-test"
        assert leader.attached.slots == SLOTS
        assert leader.residents == {}

        (ready,) = await leader.admit(request)
        assert isinstance(ready, TaskReady)
        assert (ready.task_id, ready.num_calls) == ("job/0", 3)
        assert ready.encode_ms > 0
        assert served.arena.free_slots == SLOTS - 1

        first = await leader.run([("job/0", 0)], [("job/0", 1)])
        assert first.finished == ()
        assert [item.rows for item in first.items] == [2, 2]
        assert first.items[0].start_unix_ns <= first.items[0].end_unix_ns <= first.items[1].start_unix_ns
        second = await leader.run([("job/0", 2)])
        ((task_id, slot),) = second.finished
        assert task_id == "job/0"

        arena = stages_pb2_grpc.LatentsArenaStub(served.channel)
        read = await arena.Read(stages_pb2.ReadLatentsRequest(slots=[stages.slot_ref_to_pb(slot)]))
        latents = torch.frombuffer(bytearray(read.slots[0].data), dtype=torch.float32).view(4, 8, 8)
        exact, rounded = (
            reference_latents(tiny_path, dtype=dtype, **settings_of(request))
            for dtype in (torch.float64, torch.float32)
        )
        assert_rounded(latents, exact, rounded)

        await leader.release("job/0")
        await until(lambda: served.arena.free_slots == SLOTS)
        assert served.arena.read(slot) is None


async def test_cached_prompts_cost_nothing(served: ServedWorker) -> None:
    async with leading(served.channel) as leader:
        await leader.admit(spec("a/0", prompt="cached"))
        (again,) = await leader.admit(spec("b/0", prompt="cached"))
        assert isinstance(again, TaskReady)
        assert again.encode_ms == 0


async def test_cut_prompts_are_warned_of(served: ServedWorker) -> None:
    async with leading(served.channel) as leader:
        (ready,) = await leader.admit(spec("a/0", prompt="a slice of pizza " * 40 + "zebra"))
        assert isinstance(ready, TaskReady)
        (warning,) = ready.warnings
        assert warning.startswith("prompt:")
        assert "zebra" in warning


async def test_entries_that_do_not_fit_are_skipped_and_the_rest_runs(served: ServedWorker) -> None:
    async with leading(served.channel) as leader:
        await leader.admit(spec("a/0"), spec("b/0"))
        await leader.run([("b/0", 0)])
        done = await leader.run([("a/0", 0), ("b/0", 0), ("gone/0", 0)], [("gone/0", 1)])
        assert [item.rows for item in done.items] == [2, 0]
        assert done.skipped == (
            SkippedEntry("b/0", SkipReason.OTHER_CALL, 1),
            SkippedEntry("gone/0", SkipReason.UNKNOWN_TASK),
            SkippedEntry("gone/0", SkipReason.UNKNOWN_TASK),
        )
        assert (await leader.run([("a/0", 1), ("b/0", 1)])).skipped == ()


async def test_a_finished_task_is_not_stepped_again(served: ServedWorker) -> None:
    async with leading(served.channel) as leader:
        await leader.admit(spec("a/0"))
        await finish(leader, "a/0", 3)
        done = await leader.run([("a/0", 3)])
        assert done.skipped == (SkippedEntry("a/0", SkipReason.OTHER_CALL, 3),)


async def test_plans_run_in_order_and_a_repeated_or_older_tick_is_ignored(served: ServedWorker) -> None:
    async with leading(served.channel) as leader:
        await leader.admit(spec("a/0"))
        await leader.plan([("a/0", 0)], tick=5)
        await leader.plan([("a/0", 1)], tick=5)
        await leader.plan([("a/0", 1)], tick=4)
        await leader.plan([("a/0", 1)], tick=6)
        reports = [await leader.report() for _ in range(2)]
        assert [(r.tick, r.skipped) for r in reports if isinstance(r, UnetTickDone)] == [(5, ()), (6, ())]


async def test_cancel_frees_the_slot_during_a_call_and_the_next_plan_skips(served: ServedWorker, gate: Gate) -> None:
    async with leading(served.channel) as leader:
        await leader.admit(spec("a/0"), spec("b/0"))
        await leader.plan([("a/0", 0), ("b/0", 0)], [("a/0", 1), ("b/0", 1)])
        await gate.wait_until_reached()
        await leader.cancel("a/0", "never-heard-of/0")
        await until(lambda: served.arena.free_slots == SLOTS - 1)
        gate.open.set()
        done = await leader.report()
        assert isinstance(done, UnetTickDone)
        assert done.skipped == (SkippedEntry("a/0", SkipReason.UNKNOWN_TASK),)
        assert [item.rows for item in done.items] == [4, 2]


async def test_a_task_cancelled_in_its_last_call_leaves_nothing(served: ServedWorker, gate: Gate) -> None:
    async with leading(served.channel) as leader:
        await leader.admit(spec("a/0", num_inference_steps=1))
        await leader.plan([("a/0", 0)])
        await gate.wait_until_reached()
        await leader.cancel("a/0")
        await until(lambda: served.arena.free_slots == SLOTS)
        gate.open.set()
        done = await leader.report()
        assert isinstance(done, UnetTickDone)
        assert done.finished == ()
        assert served.arena.free_slots == SLOTS


async def test_a_full_arena_refuses_and_takes_again_later(served: ServedWorker) -> None:
    async with leading(served.channel) as leader:
        answers = await leader.admit(*(spec(f"a/{k}") for k in range(SLOTS + 1)))
        refused = [answer for answer in answers if isinstance(answer, TaskFailed)]
        assert [(r.task_id, r.code) for r in refused] == [(f"a/{SLOTS}", RESOURCE_EXHAUSTED)]
        await leader.cancel("a/0")
        (answer,) = await leader.admit(spec("b/0"))
        assert isinstance(answer, TaskReady)


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"width": 60}, "multiple"),
        ({"width": 4096}, "too large"),
        ({"height": 0}, "multiple"),
        ({"num_inference_steps": 100_001}, "num_inference_steps"),
    ],
)
async def test_what_cannot_be_made_fails_alone(served: ServedWorker, changes: dict[str, Any], names: str) -> None:
    async with leading(served.channel) as leader:
        answers = await leader.admit(spec("good/0"), spec("bad/0", **changes), spec("good/1"))
        by_id = {answer.task_id: answer for answer in answers if not isinstance(answer, UnetTickDone)}
        bad = by_id["bad/0"]
        assert isinstance(bad, TaskFailed)
        assert bad.code == INVALID_ARGUMENT
        assert names in bad.message
        assert isinstance(by_id["good/0"], TaskReady)
        assert isinstance(by_id["good/1"], TaskReady)
        assert served.arena.free_slots == SLOTS - 2


async def test_an_unknown_sampler_fails_its_task(served: ServedWorker) -> None:
    async with leading(served.channel) as leader:
        pb = stages.task_spec_to_pb(spec("a/0"))
        pb.sampler = 99  # type: ignore[assignment]
        await leader.send(admit=pb)
        failed = await leader.report()
        assert isinstance(failed, TaskFailed)
        assert failed.code == INVALID_ARGUMENT
        assert "99" in failed.message


async def test_a_task_admitted_twice_is_the_same_until_it_has_begun(served: ServedWorker) -> None:
    async with leading(served.channel) as leader:
        await leader.admit(spec("a/0"))
        await leader.admit(spec("a/0"))
        assert served.arena.free_slots == SLOTS - 1
        await leader.run([("a/0", 0)])
        await leader.admit(spec("a/0"))
        assert served.arena.free_slots == SLOTS - 1
        assert (await leader.run([("a/0", 0)])).skipped == ()


async def test_a_newer_leader_takes_over_and_sees_the_residents(served: ServedWorker) -> None:
    async with leading(served.channel, token=3) as old:
        await old.admit(spec("begun/0"), spec("done/0"))
        await old.run([("begun/0", 0), ("done/0", 0)])
        done = await old.run([("done/0", 1)], [("done/0", 2)])
        async with leading(served.channel, token=4) as new:
            assert await old.ended() is grpc.StatusCode.FAILED_PRECONDITION
            assert set(new.residents) == {"begun/0", "done/0"}
            begun, finished = new.residents["begun/0"], new.residents["done/0"]
            assert (begun.next_call, begun.num_calls, begun.slot) == (1, 3, None)
            assert (finished.next_call, finished.num_calls) == (3, 3)
            assert finished.slot == done.finished[0][1]
            assert (await new.run([("begun/0", 1)])).skipped == ()

            stale = Leader(stages_pb2_grpc.UnetStageStub(served.channel).Run(), token=3)
            await stale.send(attach=stages_pb2.Attach(leader_token=3))
            assert await stale.ended() is grpc.StatusCode.FAILED_PRECONDITION
            assert (await new.run([("begun/0", 2)])).finished[0][0] == "begun/0"


async def test_a_leader_attaches_at_an_item_boundary(served: ServedWorker, gate: Gate) -> None:
    """The rest of the old leader's plan is dropped, and what the new one is told is exact."""
    async with leading(served.channel, token=1) as old:
        await old.admit(spec("a/0"))
        await old.plan([("a/0", 0)], [("a/0", 1)])
        await gate.wait_until_reached()
        new = Leader(stages_pb2_grpc.UnetStageStub(served.channel).Run(), token=2)
        attaching = asyncio.create_task(new.attach())
        assert await old.ended() is grpc.StatusCode.FAILED_PRECONDITION
        assert not attaching.done()
        gate.open.set()
        await attaching
        assert new.residents["a/0"].next_call == 1
        assert (await new.run([("a/0", 1)])).skipped == ()
        new.call.cancel()


async def test_tasks_stay_when_their_leader_goes_and_comes_back(served: ServedWorker) -> None:
    async with leading(served.channel, token=7) as leader:
        await leader.admit(spec("a/0"))
        await leader.run([("a/0", 0)])
    async with leading(served.channel, token=7) as again:
        again.tick = leader.tick
        assert again.residents["a/0"].next_call == 1
        assert (await again.run([("a/0", 1)])).skipped == ()


async def test_the_first_message_must_attach_and_no_later_one_may(served: ServedWorker) -> None:
    call = stages_pb2_grpc.UnetStageStub(served.channel).Run()
    stray = Leader(call, token=1)
    await stray.cancel("a/0")
    assert await stray.ended() is grpc.StatusCode.INVALID_ARGUMENT
    async with leading(served.channel) as leader:
        await leader.send(attach=stages_pb2.Attach(leader_token=9))
        assert await leader.ended() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("execution", [Execution(pace="../x"), Execution(place=1 << 16, pace="pair")])
async def test_plans_that_cannot_be_paced_are_refused(served: ServedWorker, execution: Execution) -> None:
    async with leading(served.channel) as leader:
        await leader.send(plan=stages.unet_plan_to_pb(UnetPlan(1, 1, (UnetItem((), execution),))))
        assert await leader.ended() is grpc.StatusCode.INVALID_ARGUMENT


async def test_previews_are_small_pngs_of_every_nth_call_but_the_last(served: ServedWorker) -> None:
    async with leading(served.channel) as leader:
        await leader.admit(spec("a/0", num_inference_steps=4, preview_every=2), spec("b/0"))
        await leader.plan(*[[("a/0", call), ("b/0", call)] for call in range(3)], [("a/0", 3)])
        reports = [await leader.report() for _ in range(2)]
        (preview,) = (report for report in reports if isinstance(report, Preview))
        assert (preview.task_id, preview.call) == ("a/0", 2)
        image = Image.open(io.BytesIO(preview.png))
        assert (image.format, image.size) == ("PNG", (8, 8))
        await leader.cancel("a/0")
        assert (await leader.run([("a/0", 4)])).skipped, "a report, and no other preview before it"
