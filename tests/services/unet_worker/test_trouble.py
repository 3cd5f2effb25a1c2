"""The UNet worker over gRPC where calls fail, memory runs out, cores are short, or it is to go."""

import asyncio
from collections.abc import Sequence

import grpc
import pytest
import torch

from services.unet_worker.denoiser import Denoiser, StepOutcome
from services.unet_worker.preparation import PreparedTask, TaskPreparer
from services.unet_worker.tasks import DenoisingTask
from synerdiff.models.family import UnetSide
from synerdiff.plans import GuidanceDrift, TaskFailed, UnetTickDone
from synerdiff.requests import TaskSpec
from synerdiff.worker import run_stream
from tests.services.unet_worker.conftest import SLOTS, ServedWorker, served_worker
from tests.services.unet_worker.leader import finish, leading
from tests.values import spec
from tests.waiting import HANG_S

INTERNAL, RESOURCE_EXHAUSTED = grpc.StatusCode.INTERNAL.value[0], grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]


async def test_a_failing_call_fails_its_tasks_and_the_worker_lives(
    served: ServedWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Denoiser.step

    def failing(denoiser: Denoiser, tasks: Sequence[DenoisingTask], skipping: Sequence[bool]) -> StepOutcome:
        if any(task.spec.task_id == "poison/0" for task in tasks):
            raise ValueError("bad input")
        return step(denoiser, tasks, skipping)

    monkeypatch.setattr(Denoiser, "step", failing)
    async with leading(served.channel) as leader:
        await leader.admit(spec("poison/0"), spec("good/0"))
        await leader.plan([("poison/0", 0)], [("good/0", 0)])
        failed, done = [await leader.report() for _ in range(2)]
        assert isinstance(failed, TaskFailed)
        assert (failed.task_id, failed.code) == ("poison/0", INTERNAL)
        assert "ValueError: bad input" in failed.message
        assert isinstance(done, UnetTickDone)
        assert done.skipped == ()
        assert served.arena.free_slots == SLOTS - 1
        assert (await leader.run([("good/0", 1)])).skipped == ()


async def test_skips_are_carried_out_measured_and_remembered(served: ServedWorker) -> None:
    async with leading(served.channel) as leader:
        await leader.admit(
            spec("skips/0", num_inference_steps=4, skip_predictor="reuse"), spec("never/0", num_inference_steps=4)
        )
        rows, drifts = list[int](), list[GuidanceDrift]()
        for call, skip in enumerate((True, True, False, True)):
            done = await leader.run([("skips/0", call, skip), ("never/0", call, skip)])
            rows.append(done.items[0].rows)
            drifts += done.drifts
    assert rows == [4, 3, 4, 3]
    ((task_id, call, drift),) = [(found.task_id, found.call, found.drift) for found in drifts]
    assert (task_id, call) == ("skips/0", 2)
    assert drift > 0
    assert {held.task_id: held.skipped_calls for held in served.worker.residents.describe()} == {
        "skips/0": (1, 3),
        "never/0": (),
    }


async def test_out_of_memory_halves_the_batch(served: ServedWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    step, sizes = Denoiser.step, []

    def small_memory(denoiser: Denoiser, tasks: Sequence[DenoisingTask], skipping: Sequence[bool]) -> StepOutcome:
        sizes.append(len(tasks))
        if len(tasks) > 1:
            raise torch.OutOfMemoryError("no room")
        return step(denoiser, tasks, skipping)

    monkeypatch.setattr(Denoiser, "step", small_memory)
    async with leading(served.channel) as leader:
        await leader.admit(*(spec(f"a/{k}") for k in range(3)))
        done = await leader.run([(f"a/{k}", 0) for k in range(3)])
        assert sizes == [3, 1, 2, 1, 1]
        assert done.skipped == ()
        assert done.items[0].rows == 6


async def test_steps_have_the_cores_and_what_runs_beside_them_one(
    tiny_side: UnetSide, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when the number is torch's own choice, which the other threads change for threads that come later."""
    step, prepare, seen = Denoiser.step, TaskPreparer.prepare, dict[str, int]()

    def watched_step(denoiser: Denoiser, tasks: Sequence[DenoisingTask], skipping: Sequence[bool]) -> StepOutcome:
        seen["step"] = torch.get_num_threads()
        return step(denoiser, tasks, skipping)

    def watched_prepare(preparer: TaskPreparer, specs: Sequence[TaskSpec]) -> list[PreparedTask]:
        seen["prepare"] = torch.get_num_threads()
        return prepare(preparer, specs)

    monkeypatch.setattr(Denoiser, "step", watched_step)
    monkeypatch.setattr(TaskPreparer, "prepare", watched_prepare)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        async with served_worker(tiny_side, threads=0) as served, leading(served.channel) as leader:
            await leader.admit(spec("a/0"))
            await leader.run([("a/0", 0)])
    finally:
        torch.set_num_threads(before)
    assert seen == {"step": 3, "prepare": 1}


async def test_a_broken_step_loop_is_told(served: ServedWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    async with leading(served.channel) as leader:
        monkeypatch.setattr(served.worker.residents, "select", None)
        await leader.plan([("a/0", 0)])
        await asyncio.wait_for(served.worker.failure.wait(), HANG_S)


async def test_a_broken_sender_of_reports_ends_the_worker(
    served: ServedWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(run_stream._FIELDS, UnetTickDone)
    async with leading(served.channel) as leader:
        await leader.admit(spec("a/0"))
        await leader.plan([("a/0", 0)])
        await asyncio.wait_for(served.worker.failure.wait(), HANG_S)


async def test_a_draining_worker_takes_nothing_new_and_finishes_what_it_has(served: ServedWorker) -> None:
    async with leading(served.channel) as leader:
        await leader.admit(spec("a/0"))
        served.worker.draining = True
        (refused,) = await leader.admit(spec("b/0"))
        assert isinstance(refused, TaskFailed)
        assert refused.code == RESOURCE_EXHAUSTED
        emptied = asyncio.create_task(served.worker.until_done())
        assert (await finish(leader, "a/0", 3)).finished
        assert not emptied.done()
        await leader.release("a/0")
        await asyncio.wait_for(emptied, HANG_S)
