"""Calls that skip guidance, against a plain loop over a diffusers UNet and scheduler that predicts D on its own."""

from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from services.unet_worker.denoiser import Denoiser
from services.unet_worker.preparation import TaskPreparer
from services.unet_worker.tasks import DenoisingTask
from synerdiff.cards import Sampler
from synerdiff.errors import InvalidRequest
from synerdiff.models.family import UnetSide
from synerdiff.models.loading import load_unet_side
from synerdiff.requests import TaskSpec
from tests.parity import unet_side
from tests.reference import reference_pipeline
from tests.rounding import assert_rounded
from tests.values import spec

STEPS = 7
SCHEDULERS = {
    Sampler.DDIM: "DDIMScheduler",
    Sampler.EULER: "EulerDiscreteScheduler",
    Sampler.DPMSOLVER_MULTISTEP: "DPMSolverMultistepScheduler",
}
# Per task: sampler, predictor, guidance scale, and the calls that are told to skip.
MIXED: list[tuple[Sampler, str, float, set[int]]] = [
    (Sampler.DDIM, "reuse", 4.0, {1, 3, 5}),
    (Sampler.EULER, "extrapolate:0.5", 7.5, {1, 3, 5}),
    (Sampler.DPMSOLVER_MULTISTEP, "extrapolate:1", 3.0, {2, 3, 5}),
    (Sampler.DDIM, "drop", 5.0, {0, 6}),
    (Sampler.EULER, "", 5.0, {2, 3}),
    (Sampler.DDIM, "reuse", 1.0, {2, 3}),
]


def mixed_specs() -> list[TaskSpec]:
    return [
        spec(
            f"mixed/{k}",
            sampler=sampler,
            num_inference_steps=STEPS,
            guidance_scale=guidance_scale,
            skip_predictor=predictor,
            negative_prompt="blue" if k % 2 else "",
            seed=50 + k,
        )
        for k, (sampler, predictor, guidance_scale, _) in enumerate(MIXED)
    ]


@dataclass
class Reference:
    """What the plain loop makes of a task: finished latents [C, h, w], and per call the rows and the drift."""

    latents: Tensor
    rows: list[int]
    drifts: dict[int, float]


@torch.no_grad()
def reference(model_path: Path, task: TaskSpec, told: Set[int], dtype: torch.dtype = torch.float32) -> Reference:
    pipeline = reference_pipeline(model_path, dtype)
    conditional, unconditional = pipeline.encode_prompt(task.prompt, "cpu", 1, True, task.negative_prompt or None)
    scheduler = getattr(diffusers, SCHEDULERS[task.sampler]).from_config(pipeline.scheduler.config)
    scheduler.set_timesteps(STEPS)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(task.seed))
    latents = noise.to(dtype) * scheduler.init_noise_sigma
    made = Reference(latents, [], {})
    predicts_noise = scheduler.config.prediction_type == "epsilon"
    known: list[tuple[int, Tensor]] = []  # call and D in units of noise, newest last
    for call, timestep in enumerate(scheduler.timesteps):
        unit = 1.0 if predicts_noise else float(scheduler.alphas_cumprod[int(timestep)]) ** 0.5

        def predict(embeds: Tensor, scaled: Tensor, timestep: Any = timestep) -> Tensor:
            answer: Tensor = pipeline.unet(scaled, timestep, encoder_hidden_states=embeds).sample
            return answer

        scaled = scheduler.scale_model_input(latents, timestep)
        e_c = predict(conditional, scaled)
        goes_by_none = task.skip_predictor == "drop"
        if task.guidance_scale <= 1:
            noise_pred, rows = e_c, 1
        elif call in told and task.skip_predictor and (known or goes_by_none):
            d = torch.zeros_like(e_c) if goes_by_none else guess(task.skip_predictor, known, call) / unit
            noise_pred, rows = e_c + (task.guidance_scale - 1) * d, 1
        else:
            e_u = predict(unconditional, scaled)
            d = e_c - e_u
            if known and known[-1][0] != call - 1 and task.skip_predictor and not goes_by_none:
                made.drifts[call] = float((d - guess(task.skip_predictor, known, call) / unit).norm() / d.norm())
            known.append((call, d * unit))
            noise_pred, rows = e_u + task.guidance_scale * d, 2
        made.rows.append(rows)
        latents = scheduler.step(noise_pred, timestep, latents).prev_sample
    made.latents = latents[0]
    return made


def guess(predictor: str, known: Sequence[tuple[int, Tensor]], call: int) -> Tensor:
    if predictor == "reuse" or len(known) == 1 or known[-2][0] == 0:
        return known[-1][1]
    (before, d0), (newest, d1) = known[-2:]
    return d1 + float(predictor.removeprefix("extrapolate:")) * (d1 - d0) / (newest - before) * (call - newest)


def finish(
    side: UnetSide, specs: Sequence[TaskSpec], told: Sequence[Set[int]], joins: Sequence[int] | None = None
) -> list[Reference]:
    """What the denoiser makes of the same; `joins`: the round of the batch in which each task makes its first call."""
    tasks = [prepared.task for prepared in TaskPreparer(side).prepare(specs)]
    made = [Reference(task.sample, [], {}) for task in tasks]
    denoiser, a_round = Denoiser(side), 0
    while any(not task.done for task in tasks):
        running = [k for k, task in enumerate(tasks) if not task.done and (joins is None or joins[k] <= a_round)]
        before = [tasks[k].next_call for k in running]
        outcome = denoiser.step([tasks[k] for k in running], [tasks[k].next_call in told[k] for k in running])
        for place, off in outcome.drifts.items():
            made[running[place]].drifts[before[place]] = float(off)
        for k, call in zip(running, before, strict=True):
            made[k].rows.append(1 if not tasks[k].guided or call in tasks[k].guidance.skipped else 2)
        assert outcome.rows == sum(made[k].rows[-1] for k in running)
        a_round += 1
    return [replace(answer, latents=task.sample.clone()) for answer, task in zip(made, tasks, strict=True)]


def assert_same(answers: Sequence[Reference], exact: Sequence[Reference], rounded: Sequence[Reference]) -> None:
    """That what was made of tasks is the plain loop's in float64, `exact`, but for what fp32 makes of it, `rounded`."""
    assert [answer.rows for answer in answers] == [loop.rows for loop in exact]
    assert [answer.drifts.keys() for answer in answers] == [loop.drifts.keys() for loop in exact]
    for answer, in_float64, in_float32 in zip(answers, exact, rounded, strict=True):
        assert_rounded(answer.latents, in_float64.latents, in_float32.latents)
    assert_rounded(*(all_drifts(made) for made in (answers, exact, rounded)))


def all_drifts(made: Sequence[Reference]) -> Tensor:
    return torch.tensor([drift for one in made for _, drift in sorted(one.drifts.items())], dtype=torch.float64)


@dataclass(frozen=True)
class Loops:
    """The mixed tasks, and the plain loop's answers in float64 and in float32."""

    specs: list[TaskSpec]
    told: list[set[int]]
    exact: list[Reference]
    rounded: list[Reference]


@pytest.fixture(scope="module")
def loops(tiny_path: Path) -> Loops:
    specs, told = mixed_specs(), [skips for *_, skips in MIXED]
    exact, rounded = (
        [reference(tiny_path, task, skips, dtype) for task, skips in zip(specs, told, strict=True)]
        for dtype in (torch.float64, torch.float32)
    )
    return Loops(specs, told, exact, rounded)


def test_skips_equal_a_plain_loop_that_predicts_the_difference(tiny_side: UnetSide, loops: Loops) -> None:
    alone = [finish(tiny_side, [task], [skips])[0] for task, skips in zip(loops.specs, loops.told, strict=True)]
    assert_same(alone, loops.exact, loops.rounded)
    together = finish(tiny_side, loops.specs, loops.told, joins=[0, 2, 0, 1, 3, 1])
    assert_same(together, loops.exact, loops.rounded)
    assert [len(answer.drifts) for answer in together] == [3, 3, 2, 0, 0, 0]


def test_another_loop_would_be_found(tiny_side: UnetSide, loops: Loops) -> None:
    """Each skip matters, and each number that goes into a prediction."""

    def assert_found(specs: Sequence[TaskSpec], told: Sequence[Set[int]]) -> None:
        places = [k for k, loop in enumerate(loops.exact) if 1 in loop.rows and 2 in loop.rows]
        for k, answer in enumerate(finish(tiny_side, [specs[k] for k in places], [told[k] for k in places])):
            place = places[k]
            with pytest.raises(AssertionError, match="off by"):
                assert_rounded(answer.latents, loops.exact[place].latents, loops.rounded[place].latents)

    assert_found(loops.specs, [set()] * len(loops.specs))
    assert_found(loops.specs, [skips - {max(skips)} for skips in loops.told])
    assert_found([replace(task, guidance_scale=task.guidance_scale * 1.001) for task in loops.specs], loops.told)
    others = {"reuse": "drop", "extrapolate:0.5": "extrapolate:0.6", "extrapolate:1": "extrapolate:0.9", "drop": ""}
    assert_found(
        [replace(task, skip_predictor=others.get(task.skip_predictor, "")) for task in loops.specs], loops.told
    )


def test_a_model_of_velocities_is_predicted_in_units_of_noise(tiny_models: dict[str, Path]) -> None:
    model = tiny_models["sd2"]
    side = unet_side(model)
    assert side.prediction_type == "v_prediction"
    task, told = replace(mixed_specs()[0], skip_predictor="extrapolate:0.5"), {2, 4, 5}
    tasks = [replace(task, task_id=f"velocity/{seed}", seed=seed) for seed in range(4)]
    exact, rounded = ([reference(model, one, told, dtype) for one in tasks] for dtype in (torch.float64, torch.float32))
    assert_same(finish(side, tasks, [told] * len(tasks)), exact, rounded)


def test_the_same_skips_make_the_same_latents(tiny_side: UnetSide) -> None:
    request = spec(num_inference_steps=STEPS, skip_predictor="extrapolate:0.5")
    (first,), (again,) = (finish(tiny_side, [request], [{2, 4, 5}]) for _ in range(2))
    assert torch.equal(first.latents, again.latents)


def prepared(side: UnetSide, **changes: Any) -> DenoisingTask:
    (task,) = TaskPreparer(side).prepare([spec(num_inference_steps=STEPS, **changes)])
    return task.task


def out_of_memory(*_: Tensor) -> Tensor:
    raise MemoryError


def test_a_call_that_failed_changes_nothing_of_what_is_remembered(tiny_side: UnetSide, monkeypatch: Any) -> None:
    task = prepared(tiny_side, skip_predictor="reuse")
    denoiser = Denoiser(tiny_side)
    denoiser.step([task])
    denoiser.step([task], [True])
    (remembered,) = task.guidance.differences
    before = remembered.clone()
    for skipping in (True, False):
        with monkeypatch.context() as patched:
            patched.setattr(torch, "bmm", out_of_memory)
            with pytest.raises(MemoryError):
                denoiser.step([task], [skipping])
        assert task.next_call == 2
        assert (task.guidance.measured, task.guidance.skipped) == ((0,), (1,))
        assert task.guidance.differences == [remembered]
        assert torch.equal(remembered, before)


def test_what_was_measured_is_kept_as_long_as_it_is_needed(tiny_side: UnetSide) -> None:
    counts: dict[str, list[int]] = {}
    for predictor in ("", "drop", "reuse", "extrapolate:0.5"):
        task, denoiser = prepared(tiny_side, skip_predictor=predictor), Denoiser(tiny_side)
        counts[predictor] = []
        while not task.done:
            denoiser.step([task])
            counts[predictor].append(len(task.guidance.differences))
    assert counts == {
        "": [0] * STEPS,
        "drop": [0] * STEPS,
        "reuse": [1] * (STEPS - 1) + [0],
        "extrapolate:0.5": [1] + [2] * (STEPS - 2) + [0],
    }


def test_differences_of_a_half_precision_model_are_kept_in_fp32(tiny_path: Path) -> None:
    task = prepared(load_unet_side(tiny_path, torch.float16), skip_predictor="reuse")
    half = Denoiser(load_unet_side(tiny_path, torch.float16))
    half.step([task])
    (difference,) = task.guidance.differences
    assert difference.dtype == torch.float32
    half.step([task], [True])
    assert task.guidance.skipped == (1,)


def test_skips_are_one_per_task(tiny_side: UnetSide) -> None:
    with pytest.raises(ValueError):
        Denoiser(tiny_side).step([prepared(tiny_side)], [False, True])


def test_an_unreadable_predictor_is_refused(tiny_side: UnetSide) -> None:
    with pytest.raises(InvalidRequest, match="'guess' is not"):
        prepared(tiny_side, skip_predictor="guess")
