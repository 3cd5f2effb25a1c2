"""Exact tasks: the same latents to the bit, whoever shares their calls, and however the worker computes others."""

import copy
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from services.unet_worker.denoiser import Denoiser
from services.unet_worker.preparation import TaskPreparer
from synerdiff.models.compiled.components import CompiledUnet
from synerdiff.models.exact import ROWS, ExactUnet, NotExact
from synerdiff.models.family import Conditioning, UnetSide
from synerdiff.plans import Execution, TaskFailed, UnetEntry, UnetItem, UnetPlan, UnetTickDone
from synerdiff.requests import TaskSpec
from synerdiff.wire import stages
from tests.parity import served_latents, unet_side
from tests.services.unet_worker.conftest import served_worker
from tests.services.unet_worker.leader import leading
from tests.services.unet_worker.test_denoiser import mixed_eight
from tests.tiny_models import EMOJI_MODEL
from tests.values import spec

_Fault = Callable[[Tensor, Tensor], Tensor]


def exact_eight(size: int) -> list[TaskSpec]:
    return [replace(task, exact=True) for task in mixed_eight(size)]


def assert_alone_as_together(side: UnetSide, tasks: list[TaskSpec]) -> None:
    alone = {task.task_id: served_latents(side, [task])[0] for task in tasks}
    for crowd in (tasks, tasks[:2:-1]):
        for task, latents in zip(crowd, served_latents(side, crowd), strict=True):
            assert torch.equal(latents, alone[task.task_id]), task


def test_the_bundled_models_latents_are_the_same_to_the_bit_in_any_company() -> None:
    assert_alone_as_together(unet_side(EMOJI_MODEL), exact_eight(64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_those_of_every_family_as_well(family: str, dtype: torch.dtype, tiny_models: dict[str, Path]) -> None:
    assert_alone_as_together(unet_side(tiny_models[family], dtype), exact_eight(64)[::2])


def test_one_that_skips_guidance_where_it_was_told_to_does_too(tiny_side: UnetSide) -> None:
    told = {"num_inference_steps": 6, "exact": True, "skip_predictor": "extrapolate:0.5"}
    tasks = [spec(f"a/{k}", seed=k, **told) for k in range(3)]

    def latents(crowd: list[TaskSpec]) -> list[Tensor]:
        prepared = [one.task for one in TaskPreparer(tiny_side).prepare(crowd)]
        denoiser = Denoiser(tiny_side)
        for call in range(6):
            denoiser.step(prepared, [call in (2, 4)] * len(prepared))
        return [task.sample.clone() for task in prepared]

    alone = [latents([task])[0] for task in tasks]
    assert all(map(torch.equal, alone, latents(tasks)))


def test_every_call_is_of_one_size_and_misses_no_row(tiny_side: UnetSide) -> None:
    sizes: list[int] = []
    tasks = [one.task for one in TaskPreparer(tiny_side).prepare(exact_eight(64))]
    denoiser = Denoiser(_watched(tiny_side, lambda latents: sizes.append(len(latents))))
    outcome = denoiser.step(tasks)
    assert set(sizes) == {ROWS}
    assert outcome.rows == sum(task.spec.rows for task in tasks)
    assert outcome.noise_pred.shape == (8, 4, 8, 8)
    assert [task.next_call for task in tasks] == [1] * 8


def test_neither_a_compiled_unet_nor_the_layout_of_weights_is_for_exact_tasks(tiny_path: Path) -> None:
    tasks = exact_eight(64)[:3]
    plain = unet_side(tiny_path)
    expected = served_latents(plain, tasks)

    def refuse(*_: Any) -> None:
        raise AssertionError("an exact task was computed otherwise")

    laid_out = replace(plain, unet=copy.deepcopy(plain.unet).to(memory_format=torch.channels_last))
    side = replace(laid_out, unet=laid_out.unet)
    prepared = [one.task for one in TaskPreparer(side).prepare(tasks)]
    denoiser = Denoiser(side, cast(CompiledUnet, type("Refusing", (), {"prepared": refuse})()))
    while running := [task for task in prepared if not task.done]:
        denoiser.step(running)
    assert all(map(torch.equal, expected, (task.sample for task in prepared)))
    assert side.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last), "it still serves the others so"


def test_exact_tasks_and_others_share_no_batch(tiny_side: UnetSide) -> None:
    prepared = TaskPreparer(tiny_side).prepare([spec("a/0"), spec("b/0", exact=True)])
    with pytest.raises(ValueError, match="exact tasks alone"):
        Denoiser(tiny_side).step([one.task for one in prepared])


def test_an_exact_call_that_failed_leaves_its_tasks_where_they_were(
    tiny_side: UnetSide, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = [spec(f"a/{k}", seed=k, exact=True) for k in range(3)]
    expected = served_latents(tiny_side, requests)
    tasks = [one.task for one in TaskPreparer(tiny_side).prepare(requests)]
    bmm, answers = torch.bmm, iter([True, True, False])

    def failing_bmm(*arguments: Tensor) -> Tensor:
        if not next(answers, True):
            raise RuntimeError("out of memory")
        return bmm(*arguments)

    monkeypatch.setattr(torch, "bmm", failing_bmm)
    denoiser = Denoiser(tiny_side)
    with pytest.raises(RuntimeError, match="out of memory"):
        denoiser.step(tasks)
    assert [task.next_call for task in tasks] == [0, 0, 0]
    while not tasks[0].done:
        denoiser.step(tasks)
    assert all(map(torch.equal, expected, (task.sample for task in tasks)))


def _by_place(latents: Tensor, answered: Tensor) -> Tensor:
    return answered + torch.arange(len(latents))[:, None, None, None]


def _by_company(latents: Tensor, answered: Tensor) -> Tensor:
    return answered + latents.sum()


@pytest.mark.parametrize("fault", [_by_place, _by_company])
def test_a_device_whose_rows_change_each_other_is_found_out(fault: _Fault, tiny_side: UnetSide) -> None:
    tasks = [one.task for one in TaskPreparer(tiny_side).prepare(exact_eight(64)[:2])]
    with pytest.raises(NotExact, match=r"depends on its place, latents 4x8x8"):
        Denoiser(_watched(tiny_side, lambda _: None, fault)).step(tasks)
    assert [task.next_call for task in tasks] == [0, 0]


async def test_a_worker_that_cannot_keep_the_promise_says_so_and_draws_others(tiny_side: UnetSide) -> None:
    side = _watched(tiny_side, lambda _: None, _by_place)
    async with served_worker(side, 1) as served, leading(served.channel) as leader:
        await leader.admit(spec("a/0", exact=True), spec("b/0"))
        await leader.plan([("a/0", 0)], [("b/0", 0)])
        reports = [await leader.report(), await leader.report()]
        (failed,) = [report for report in reports if isinstance(report, TaskFailed)]
        assert (failed.task_id, failed.code) == ("a/0", 9)
        assert failed.message.startswith("exact: ")
        (done,) = [report for report in reports if isinstance(report, UnetTickDone)]
        assert [timing.rows for timing in done.items] == [0, 2]


async def test_an_exact_item_takes_the_same_threads_whatever_its_share(tiny_side: UnetSide) -> None:
    seen: list[tuple[str, int]] = []

    def note(latents: Tensor) -> None:
        if threading.current_thread().name == "device":
            seen.append(("exact" if len(latents) == ROWS else "other", torch.get_num_threads()))

    async with served_worker(_watched(tiny_side, note), 2) as served, leading(served.channel) as leader:
        await leader.admit(spec("a/0", exact=True), spec("b/0"))
        items = [
            UnetItem((UnetEntry(task, call),), Execution(place=place, threads=threads))
            for place, (task, call, threads) in enumerate(
                [("a/0", 0, 2), ("b/0", 0, 2), ("a/0", 1, 0), ("b/0", 1, 1)], start=1
            )
        ]
        await leader.send(plan=stages.unet_plan_to_pb(UnetPlan(1, 1, tuple(items))))
        assert isinstance(await leader.report(), UnetTickDone)
    assert {threads for kind, threads in seen if kind == "exact"} == {1}
    assert [kind for kind, _ in seen].count("other") == 2


class _Watched:
    """A UNet that tells of its calls, and whose answers a fault may change."""

    def __init__(self, unet: Any, note: Callable[[Tensor], object], fault: _Fault | None) -> None:
        self._unet, self._note, self._fault = unet, note, fault

    def __getattr__(self, name: str) -> Any:
        return getattr(self._unet, name)

    def __call__(self, latents: Tensor, *arguments: Any, **options: Any) -> tuple[Tensor]:
        self._note(latents)
        (answered,) = self._unet(latents, *arguments, **options)
        return (self._fault(latents, answered) if self._fault else answered,)


def _watched(side: UnetSide, note: Callable[[Tensor], object], fault: _Fault | None = None) -> UnetSide:
    return replace(side, unet=cast(Any, _Watched(side.unet, note, fault)))


def test_more_rows_than_a_batch_and_fewer_are_answered_alike(tiny_side: UnetSide) -> None:
    rows = 2 * ROWS + 1
    embeds = tiny_side.encode([f"prompt {k}" for k in range(rows)])
    told = tiny_side.conditioning(embeds, 64, 64)
    latents = torch.randn(rows, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    timesteps = torch.linspace(1, 999, rows)
    unet = ExactUnet(tiny_side)
    with torch.inference_mode():
        together = unet.predict(latents, timesteps, told)
        for row in range(rows):
            alone = Conditioning(told.hidden[row : row + 1], None)
            assert torch.equal(unet.predict(latents[row : row + 1], timesteps[row : row + 1], alone)[0], together[row])
