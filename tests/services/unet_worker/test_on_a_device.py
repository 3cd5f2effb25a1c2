"""What a step loop asks of its device, on a fake of the device interface: no waiting in a plan but where it must."""

import queue
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from services.unet_worker.denoiser import Denoiser
from services.unet_worker.preparation import TaskPreparer
from services.unet_worker.residents import Residents
from services.unet_worker.step_loop import StepLoop, StepReport
from synerdiff.latents.arena import Arena
from synerdiff.latents.memory import ProcessMemory
from synerdiff.models.family import UnetSide
from synerdiff.pace import Pacer, PaceSide
from synerdiff.plans import Execution, UnetEntry, UnetItem, UnetPlan, UnetTickDone
from tests.services.unet_worker.specs import spec
from tests.synerdiff.models.fake_gpu import FakeGpu
from tests.waiting import HANG_S, wait_until

CALLS = 3


class OnDevice:
    """A step loop with a guided, an unguided and a skipping task of three calls each, on a fake GPU."""

    def __init__(self, side: UnetSide, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.gpu = FakeGpu(peak=123)
        self.reports: queue.SimpleQueue[StepReport] = queue.SimpleQueue()
        side = replace(side, compute=self.gpu)
        residents = Residents(Arena(3, 4 * 8 * 8 * 4, "float32", ProcessMemory()), torch.float32)
        specs = [spec("a/0"), spec("b/0", guidance_scale=1.0), spec("c/0", skip_predictor="reuse")]
        for one, prepared in zip(specs, TaskPreparer(side).prepare(specs), strict=True):
            residents.make_ready(residents.admit(one), prepared.task)
        settle = residents.settle

        def watched_settle(done: object) -> object:
            self.gpu.asked.append("settle")
            return settle(done)  # type: ignore[arg-type]

        monkeypatch.setattr(residents, "settle", watched_settle)
        self.crashed: list[Exception] = []
        pacer = Pacer(PaceSide.UNET, directory)
        self.loop = StepLoop(Denoiser(side), residents, None, self.crashed.append, 1, pacer)  # type: ignore[arg-type]
        self.loop.start()

    def run(self, how: Execution = Execution()) -> UnetTickDone:  # noqa: B008, a frozen value
        self.gpu.asked.clear()
        items = [
            UnetItem(tuple(UnetEntry(task_id, call, call == 1) for task_id in ("a/0", "b/0", "c/0")), how)
            for call in range(CALLS)
        ]
        self.loop.submit(UnetPlan(1, 1, tuple(items)), self.reports.put)
        report = self.reports.get(timeout=HANG_S)
        assert isinstance(report, UnetTickDone), (report, self.crashed)
        return report

    @property
    def waits(self) -> list[str]:
        return [asked for asked in self.gpu.asked if asked.startswith(("wait", "settle", "download"))]


@pytest.fixture
def device(tiny_side: UnetSide, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OnDevice]:
    made = OnDevice(tiny_side, tmp_path, monkeypatch)
    yield made
    made.loop.close()


def test_a_plan_is_waited_for_once_at_its_end_before_its_latents_are_handed_over(device: OnDevice) -> None:
    done = device.run()
    assert device.waits == ["wait 6", "settle"]
    assert len(done.finished) == 3
    assert [item.rows for item in done.items] == [5, 4, 5]
    assert [(item.start_unix_ns, item.end_unix_ns) for item in done.items] == [(1, 2), (3, 4), (5, 6)]
    assert {item.peak_bytes for item in done.items} == {123}
    assert len(done.drifts) == 1


def test_in_step_an_item_is_over_before_the_vae_worker_is_told(device: OnDevice) -> None:
    device.run(Execution(pace="pair"))
    assert device.waits == ["wait 2", "wait 4", "wait 6", "wait 6", "settle"]


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
