"""What a step loop asks of its device and when, on a fake of the device interface that records it."""

import queue
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from services.unet_worker.denoiser import Denoiser, PreparedCall, StepOutcome
from services.unet_worker.preparation import TaskPreparer
from services.unet_worker.residents import HandedOver, Residents
from services.unet_worker.step_loop import StepLoop, StepReport
from services.unet_worker.tasks import DenoisingTask
from synerdiff.latents.arena import Arena
from synerdiff.latents.memory import ProcessMemory
from synerdiff.models.family import UnetSide
from synerdiff.models.threads import ThreadShare
from synerdiff.pace import Pacer, PaceSide
from synerdiff.plans import Execution, ResidentTask, TaskFailed, UnetEntry, UnetItem, UnetPlan, UnetTickDone
from synerdiff.worker.device_thread import DeviceThread
from tests.synerdiff.models.fake_gpu import FakeGpu
from tests.values import spec
from tests.waiting import HANG_S, wait_until

CALLS = 3


class WatchedPacer(Pacer):
    """Notes when an item is about to wait for its turn, has its turn, and is told to be over."""

    def __init__(self, directory: Path, asked: list[str]) -> None:
        super().__init__(PaceSide.UNET, directory)
        self._asked = asked

    def before(self, execution: Execution, abandoned: Callable[[], bool]) -> float:
        self._asked.append("before")
        waited_ms = super().before(execution, abandoned)
        self._asked.append("turn")
        return waited_ms

    def after(self, execution: Execution, tick: int) -> None:
        self._asked.append("told")
        super().after(execution, tick)


class OnDevice:
    """A step loop with a guided, an unguided and a skipping task of three calls each, on a fake GPU."""

    def __init__(self, side: UnetSide, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.gpu = FakeGpu(peak=123)
        self.reports: queue.SimpleQueue[StepReport] = queue.SimpleQueue()
        side = replace(side, compute=self.gpu)
        self.residents = Residents(Arena(3, 4 * 8 * 8 * 4, "float32", ProcessMemory()), torch.float32)
        specs = [spec("a/0"), spec("b/0", guidance_scale=1.0), spec("c/0", skip_predictor="reuse")]
        for one, prepared in zip(specs, TaskPreparer(side).prepare(specs), strict=True):
            self.residents.make_ready(self.residents.admit(one), prepared.task)
        settle = self.residents.settle

        def watched_settle(handed_over: HandedOver) -> object:
            self.gpu.asked.append("settle")
            return settle(handed_over)

        monkeypatch.setattr(self.residents, "settle", watched_settle)
        self.crashed: list[Exception] = []
        pacer = WatchedPacer(directory, self.gpu.asked)
        self.thread = DeviceThread(self.gpu, pacer, ThreadShare(1), self.crashed.append)
        self.loop = StepLoop(Denoiser(side), self.residents, None, self.thread)  # type: ignore[arg-type]
        self.thread.start()

    def submit(self, tick: int, *calls: tuple[str, int], how: Execution = Execution()) -> None:  # noqa: B008
        """A plan with an item of one entry for each of `calls`."""
        items = tuple(UnetItem((UnetEntry(*call),), how) for call in calls)
        self.loop.submit(UnetPlan(1, tick, items), self.reports.put)

    def report(self) -> StepReport:
        return self.reports.get(timeout=HANG_S)

    def run(self, how: Execution = Execution()) -> UnetTickDone:  # noqa: B008, a frozen value
        """A plan that brings all three tasks to their end, in three items."""
        self.gpu.asked.clear()
        items = [
            UnetItem(tuple(UnetEntry(task_id, call, call == 1) for task_id in ("a/0", "b/0", "c/0")), how)
            for call in range(CALLS)
        ]
        self.loop.submit(UnetPlan(1, 1, tuple(items)), self.reports.put)
        report = self.report()
        assert isinstance(report, UnetTickDone), (report, self.crashed)
        return report

    def places(self, asked: str) -> list[int]:
        """Where in the order of all that was asked this was."""
        return [place for place, one in enumerate(self.gpu.asked) if one.startswith(asked)]


@pytest.fixture
def device(tiny_side: UnetSide, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OnDevice]:
    made = OnDevice(tiny_side, tmp_path, monkeypatch)
    yield made
    made.gpu.idle.set()
    made.thread.close()


def test_a_plan_is_settled_when_it_is_over_and_all_its_latents_come_in_one_copy(device: OnDevice) -> None:
    done = device.run()
    assert len(done.finished) == 3
    assert [item.rows for item in done.items] == [5, 4, 5]
    assert [(item.start_unix_ns, item.end_unix_ns) for item in done.items] == [(1, 2), (3, 4), (5, 6)]
    assert {item.peak_bytes for item in done.items} == {123}
    assert len(done.drifts) == 1
    assert len(device.places("begin download")) == 2, "the latents of all tasks, and all drifts"
    assert not device.places("download"), "nothing waits for a copy of its own"
    assert device.places("begin download")[-1] < device.places("mark")[-1]
    assert device.places("settle") == [device.places("over 7")[0] + 1]


def test_the_next_plan_is_given_to_the_device_before_the_last_one_is_over(device: OnDevice) -> None:
    device.gpu.idle.clear()
    device.submit(1, ("a/0", 0))
    device.submit(2, ("b/0", 0))
    wait_until(lambda: device.gpu.asked.count("replay") == 2)
    assert not device.places("over")
    assert device.reports.empty()
    device.gpu.idle.set()
    first, second = device.report(), device.report()
    assert isinstance(first, UnetTickDone)
    assert isinstance(second, UnetTickDone)
    assert (first.tick, second.tick) == (1, 2)


def test_no_more_than_one_item_is_queued_behind_the_one_that_runs(device: OnDevice) -> None:
    device.gpu.idle.clear()
    device.submit(1, ("a/0", 0), ("b/0", 0), ("c/0", 0))
    wait_until(lambda: device.gpu.asked.count("replay") == 2)
    device.gpu.idle.set()
    device.report()
    assert device.places("replay")[2] > device.places("over")[0]


def test_in_step_an_item_is_over_before_the_vae_worker_is_told(device: OnDevice) -> None:
    device.run(Execution(pace="pair"))
    assert [place - 1 for place in device.places("told")] == [device.places(f"over {end}")[0] for end in (2, 4, 6)]
    for told, before in zip(device.places("told"), device.places("before")[1:], strict=False):
        assert told < before, "patience with the VAE worker would count from before the own last item is over"


def test_in_step_all_is_ready_when_an_items_turn_comes(device: OnDevice) -> None:
    device.run(Execution(pace="pair"))
    for turn in device.places("turn"):
        own = [one for one in device.gpu.asked[turn + 1 :] if one in ("upload", "capture", "mark", "replay")]
        assert own[:2] == ["mark", "replay"]


def test_a_new_leader_finds_what_is_over(device: OnDevice) -> None:
    """What the device was given for the old one is waited for, and its latents are in their slots."""
    for call in range(CALLS - 1):
        device.submit(1 + call, ("a/0", call))
        device.report()
    device.gpu.idle.clear()
    device.submit(CALLS, ("a/0", CALLS - 1))
    wait_until(lambda: device.gpu.asked.count("replay") == CALLS)
    found: queue.SimpleQueue[tuple[ResidentTask, ...]] = queue.SimpleQueue()
    device.thread.abandon_plans(lambda: found.put(device.residents.describe()))
    device.gpu.idle.set()
    told = {task.task_id: task for task in found.get(timeout=HANG_S)}
    assert told["a/0"].slot is not None
    assert device.reports.empty(), "the plans of the old leader are not reported"


def test_a_task_that_fails_is_told_of_after_what_ran_before_it(
    device: OnDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = Denoiser.make

    def failing(denoiser: Denoiser, parts: Sequence[PreparedCall]) -> StepOutcome:
        if parts[0].tasks[0].spec.task_id == "b/0":
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return make(denoiser, parts)

    monkeypatch.setattr(Denoiser, "make", failing)
    device.gpu.idle.clear()
    device.submit(1, ("a/0", 0))
    device.submit(2, ("b/0", 0), ("c/0", 0))
    wait_until(lambda: "free" in device.gpu.asked)
    device.gpu.idle.set()
    first, failed, second = (device.report() for _ in range(3))
    assert isinstance(first, UnetTickDone)
    assert isinstance(failed, TaskFailed)
    assert isinstance(second, UnetTickDone)
    assert (first.tick, failed.task_id, second.tick) == (1, "b/0", 2)
    assert [item.rows for item in second.items] == [0, 2]


def test_a_capture_whose_step_finds_no_memory_is_gone_before_the_halves_are_tried(
    device: OnDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    device.gpu.capture_bytes = 1
    held: list[int] = []
    apply_samplers, free_caches = Denoiser._apply_samplers, FakeGpu.free_caches
    failures = [torch.OutOfMemoryError("CUDA out of memory.")]

    def failing(denoiser: Denoiser, tasks: Sequence[DenoisingTask], noise_pred: torch.Tensor) -> torch.Tensor:
        if failures:
            raise failures.pop()
        return apply_samplers(denoiser, tasks, noise_pred)

    def watched(gpu: FakeGpu) -> None:
        held.append(gpu.captured_bytes())
        free_caches(gpu)

    monkeypatch.setattr(Denoiser, "_apply_samplers", failing)
    monkeypatch.setattr(FakeGpu, "free_caches", watched)
    assert len(device.run().finished) == 3
    assert held == [0]


def test_memory_that_does_not_suffice_to_prepare_a_call_fails_that_call_alone(
    device: OnDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare = Denoiser.prepare

    def failing(
        denoiser: Denoiser, tasks: Sequence[DenoisingTask], skipping: Sequence[bool] = ()
    ) -> tuple[PreparedCall, ...]:
        if len(tasks) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return prepare(denoiser, tasks, skipping)

    monkeypatch.setattr(Denoiser, "prepare", failing)
    done = device.run()
    assert len(done.finished) == 3
    assert [item.halved for item in done.items] == [3, 2, 3]


def test_preparing_stands_beside_the_steps_and_lends_what_lives_on(device: OnDevice, tiny_side: UnetSide) -> None:
    gpu = FakeGpu()
    TaskPreparer(replace(tiny_side, compute=gpu)).prepare([spec("a/0")])
    assert gpu.asked[0] == "beside"
    assert gpu.asked.count("lend") == 3, "the registers, and both prompts"


def test_a_device_that_fails_late_ends_the_loop(device: OnDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA tells of a kernel that failed at the next call that waits."""

    def late(*_: object) -> None:
        raise torch.AcceleratorError("CUDA error: unspecified launch failure")

    monkeypatch.setattr("tests.synerdiff.models.fake_gpu.FakeTimeline.wait", late)
    device.loop.submit(UnetPlan(1, 1, (UnetItem((UnetEntry("a/0", 0),)),)), device.reports.put)
    wait_until(lambda: device.crashed)
    assert device.reports.empty()
    (error,) = device.crashed
    assert "launch failure" in str(error)
