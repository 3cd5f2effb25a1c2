"""The device threads of both workers through the ticks of one pair: nobody runs ahead."""

import queue
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from services.unet_worker.denoiser import Denoiser
from services.unet_worker.preparation import TaskPreparer
from services.unet_worker.previews import PreviewEncoder
from services.unet_worker.residents import Residents
from services.unet_worker.step_loop import StepLoop, StepReport
from services.vae_worker.decode_item import DecodeItem, PlanDecodes
from services.vae_worker.decoder import BatchDecoder
from synerdiff import plans
from synerdiff.latents.arena import Arena
from synerdiff.latents.client import Latents
from synerdiff.latents.memory import ProcessMemory
from synerdiff.models.family import UnetSide, VaeSide
from synerdiff.models.loading import load_unet_side, load_vae_side
from synerdiff.models.threads import ThreadShare
from synerdiff.pace import Pacer, PaceSide
from synerdiff.requests import ImageFormat
from synerdiff.worker.device_thread import DevicePlan, DeviceThread
from tests.values import spec
from tests.waiting import HANG_S

TICKS, PLACES, CHUNKS = 3, 4, 4
PATIENCE_MS = 10_000 * int(HANG_S)


def in_step(tick: int, place: int) -> plans.Execution:
    """After the other side's item before, across ticks."""
    before = (tick, place - 1) if place > 1 else (tick - 1, PLACES)
    after = plans.ItemRef(*before) if before[0] > 0 else None
    return plans.Execution(place=place, threads=1 + place % 2, after=after, patience_ms=PATIENCE_MS, pace="pair")


def device_thread(side: UnetSide | VaeSide, who: PaceSide, directory: Path) -> DeviceThread:
    """A thread that fails nobody."""
    return DeviceThread(side.compute, Pacer(who, directory), ThreadShare(1), lambda error: None)


class Decoding:
    """Each tick one decode, a chunk of it in each place."""

    def __init__(self, tiny_path: Path, directory: Path) -> None:
        side = load_vae_side(tiny_path, torch.float32)
        self.thread = device_thread(side, PaceSide.VAE, directory)
        self._decoder = BatchDecoder(side)
        self._over: queue.SimpleQueue[DecodeItem] = queue.SimpleQueue()
        self._plans = [self._submit(tick) for tick in range(1, TICKS + 1)]

    def _submit(self, tick: int) -> DevicePlan:
        parts = [decode_entry(f"b/{tick}", chunk) for chunk in range(CHUNKS)]
        decodes, plan = PlanDecodes([plans.VaeItem((part,)) for part in parts], set()), self.thread.begin_plan(tick)
        for place, part in enumerate(parts, start=1):
            fresh, resumed = (((part, zeros()),), ()) if place == 1 else ((), (part,))
            item = DecodeItem(in_step(tick, place), fresh, resumed, self._decoder, decodes, self._over.put)
            self.thread.submit_item(plan, item)
        return plan

    def timings(self) -> tuple[list[plans.ItemTiming], list[str]]:
        """Of all items, and the pictures made."""
        items = [self._over.get(timeout=HANG_S) for _ in range(TICKS * CHUNKS)]
        self.thread.close()
        pictures = [finished.entry.task_id for item in items for finished in item.finished]
        return [timing for plan in self._plans for timing in plan.timings], pictures


class Stepping:
    """One task, a call in each place of each tick."""

    def __init__(self, tiny_path: Path, directory: Path) -> None:
        side = load_unet_side(tiny_path, torch.float32)
        residents = Residents(Arena(1, 4 * 8 * 8 * 4, "float32", ProcessMemory()), torch.float32)
        resident = residents.admit(spec("a/0", num_inference_steps=TICKS * PLACES))
        residents.make_ready(resident, TaskPreparer(side).prepare([resident.spec])[0].task)
        self.thread = device_thread(side, PaceSide.UNET, directory)
        loop = StepLoop(Denoiser(side), residents, PreviewEncoder(side, lambda preview: None), self.thread)
        self._reports: queue.SimpleQueue[StepReport] = queue.SimpleQueue()
        for tick in range(1, TICKS + 1):
            calls = range((tick - 1) * PLACES, tick * PLACES)
            items = [
                plans.UnetItem((plans.UnetEntry("a/0", call),), in_step(tick, k))
                for k, call in enumerate(calls, start=1)
            ]
            loop.submit(plans.UnetPlan(1, tick, tuple(items)), self._reports.put)

    def timings(self) -> list[plans.ItemTiming]:
        reports = [self._reports.get(timeout=HANG_S) for _ in range(TICKS)]
        self.thread.close()
        return [timing for report in reports if isinstance(report, plans.UnetTickDone) for timing in report.items]


@pytest.mark.parametrize("first", ["unet", "vae"])
def test_items_run_beside_those_of_their_place_and_after_others(tiny_path: Path, tmp_path: Path, first: str) -> None:
    stepping, decoding = Stepping(tiny_path, tmp_path), Decoding(tiny_path, tmp_path)
    for side in (stepping, decoding) if first == "unet" else (decoding, stepping):
        side.thread.start()
    unet = stepping.timings()
    vae, pictures = decoding.timings()
    assert pictures == [f"b/{tick}" for tick in range(1, TICKS + 1)]
    assert [timing.rows for timing in unet] == [2] * TICKS * PLACES
    assert len(vae) == len(unet)
    for before, after in pairwise(zip(unet, vae, strict=True)):
        started_ns = min(timing.start_unix_ns for timing in after)
        assert started_ns >= max(timing.end_unix_ns for timing in before), "one ran ahead"
    assert max(timing.waited_ms for timing in [*unet, *vae]) < PATIENCE_MS


def decode_entry(task_id: str, chunk: int) -> plans.DecodeEntry:
    slot = plans.SlotRef("a", 0, 1)
    return plans.DecodeEntry(task_id, "", slot, 64, 64, ImageFormat.PNG, "{}", CHUNKS, chunk, chunk + 1)


def zeros() -> Latents:
    return Latents(memoryview(bytearray(4 * 8 * 8 * 4)), "float32")
