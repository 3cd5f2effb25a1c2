"""The device thread in step with a VAE worker: who goes first, how long it waits, and with how many threads."""

import queue
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from services.unet_worker.denoiser import Denoiser, StepOutcome
from services.unet_worker.preparation import TaskPreparer
from services.unet_worker.residents import Residents
from services.unet_worker.step_loop import StepLoop, StepReport
from services.unet_worker.tasks import DenoisingTask
from synerdiff import pace
from synerdiff.host import usable_cores
from synerdiff.latents.arena import Arena
from synerdiff.latents.memory import ProcessMemory
from synerdiff.models.family import UnetSide
from synerdiff.models.threads import ThreadShare
from synerdiff.pace import Pacer, PaceSide, SharedPace
from synerdiff.plans import Execution, ItemRef, UnetEntry, UnetItem, UnetPlan, UnetTickDone
from synerdiff.worker.device_thread import DeviceThread
from tests.values import spec
from tests.waiting import HANG_S, VirtualTime, WatchedTime

FOREVER_MS = 10_000 * int(HANG_S)


class WatchedDenoiser(Denoiser):
    """Remembers when each step began, and with how many threads."""

    def __init__(self, side: UnetSide) -> None:
        super().__init__(side)
        self.began_ns: list[int] = []
        self.threads: list[int] = []

    def step(self, tasks: Sequence[DenoisingTask], skipping: Any = ()) -> StepOutcome:
        self.began_ns.append(time.time_ns())
        self.threads.append(torch.get_num_threads())
        return super().step(tasks, skipping)


class Loop:
    """A step loop with one task of three calls, and the VAE worker's side of its pace."""

    def __init__(self, side: UnetSide, directory: Path) -> None:
        self.vae = SharedPace("pair", PaceSide.VAE, directory)
        self.reports: queue.SimpleQueue[StepReport] = queue.SimpleQueue()
        self.denoiser = WatchedDenoiser(side)
        residents = Residents(Arena(1, 4 * 8 * 8 * 4, "float32", ProcessMemory()), torch.float32)
        resident = residents.admit(spec("a/0"))
        [prepared] = TaskPreparer(side).prepare([resident.spec])
        residents.make_ready(resident, prepared.task)
        crashed: list[Exception] = []
        self.device = DeviceThread(side.compute, Pacer(PaceSide.UNET, directory), ThreadShare(1), crashed.append)
        self.loop = StepLoop(self.denoiser, residents, None, self.device)  # type: ignore[arg-type]
        self.device.start()

    def submit(self, *executions: Execution, tick: int = 1, call: int = 0) -> None:
        items = tuple(UnetItem((UnetEntry("a/0", call + k),), how) for k, how in enumerate(executions))
        self.loop.submit(UnetPlan(1, tick, items), self.reports.put)

    def done(self) -> UnetTickDone:
        report = self.reports.get(timeout=HANG_S)
        assert isinstance(report, UnetTickDone), report
        return report

    def close(self) -> None:
        self.device.close()
        self.vae.close()


@pytest.fixture
def loop(tiny_side: UnetSide, tmp_path: Path) -> Iterator[Loop]:
    made = Loop(tiny_side, tmp_path)
    yield made
    made.close()


def in_step(place: int, after: ItemRef | None, patience_ms: int = FOREVER_MS, **how: Any) -> Execution:
    return Execution(place=place, after=after, patience_ms=patience_ms, pace="pair", **how)


def test_items_wait_for_the_vae_workers_and_say_when_they_have_ended(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "time", watched := WatchedTime())
    loop.submit(in_step(1, None), in_step(2, ItemRef(1, 1)), in_step(4, ItemRef(1, 3)))
    assert loop.vae.wait(ItemRef(1, 1), FOREVER_MS) < FOREVER_MS
    watched.until_somebody_sleeps()
    time.sleep(0.05)
    assert len(loop.denoiser.began_ns) == 1, "the second item did not wait"
    first_ended_ns = time.time_ns()
    loop.vae.ended(ItemRef(1, 1))
    assert loop.vae.wait(ItemRef(1, 2), FOREVER_MS) < FOREVER_MS
    third_ended_ns = time.time_ns()
    loop.vae.ended(ItemRef(1, 3))
    done = loop.done()
    began = [timing.start_unix_ns for timing in done.items]
    assert began[1] >= first_ended_ns
    assert began[2] >= third_ended_ns
    assert done.items[0].waited_ms == 0
    assert done.items[1].waited_ms >= 50
    assert [item.rows for item in done.items] == [2, 2, 2]
    assert loop.vae.wait(ItemRef(1, 4), 0) == 0


def test_patience_with_the_vae_worker_ends(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "time", VirtualTime())
    loop.submit(in_step(1, ItemRef(0, 9), patience_ms=50), in_step(2, ItemRef(1, 1)))
    first, second = loop.done().items
    assert first.waited_ms == pytest.approx(50)
    assert second.waited_ms == 0, "one that does not move is waited for once"


def test_a_new_leader_does_not_wait_for_the_old_ones_patience(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "time", watched := WatchedTime())
    loop.submit(in_step(1, ItemRef(9, 1)), tick=9)
    watched.until_somebody_sleeps()
    reached = threading.Event()
    loop.device.abandon_plans(reached.set)
    assert reached.wait(HANG_S)
    loop.submit(in_step(1, None), tick=1)
    assert loop.done().tick == 1
    assert len(loop.denoiser.began_ns) == 1


def test_each_item_steps_with_its_threads_and_no_other_thread_does(loop: Loop) -> None:
    before = torch.get_num_threads()
    loop.submit(Execution(threads=2), Execution(threads=0), Execution(threads=1000))
    loop.done()
    cores = usable_cores()
    assert loop.denoiser.threads == [min(2, cores), 1, cores]
    assert torch.get_num_threads() == before


def test_a_device_that_waits_by_itself_has_all_done_by_the_thread_that_steps(loop: Loop) -> None:
    """On a CPU another thread would only take the cores and the interpreter's lock from the next step."""
    threads: queue.SimpleQueue[str] = queue.SimpleQueue()
    plan = UnetPlan(1, 1, (UnetItem((UnetEntry("a/0", 0),)),))
    loop.loop.submit(plan, lambda _: threads.put(threading.current_thread().name))
    assert threads.get(timeout=HANG_S) == "device"
    assert "settling" not in {thread.name for thread in threading.enumerate()}
