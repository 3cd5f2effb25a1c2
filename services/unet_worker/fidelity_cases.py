"""The cases of a measurement of skipped guidance, and the budget that its results allow. Pure values."""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from services.unet_worker.denoiser import Denoiser
from services.unet_worker.preparation import TaskPreparer
from synerdiff.cards import Sampler
from synerdiff.models.family import Images, UnetSide, VaeSide
from synerdiff.requests import TaskSpec
from synerdiff.skip_cfg import SkipCfgBudget, spread

# Where few steps are skipped every predictor does well: the ends are compared at a share with a measurable loss.
_ENDS_SHARE = 0.5
_AT_ONCE = 16
_DECODED_AT_ONCE = 8
_LEAST_SQUARED_ERROR = 1e-4  # of levels of 255: pictures that are equal count as 88 dB apart

Score = Callable[[Images, Sequence[str]], float]


@dataclass(frozen=True)
class Case:
    """One way of skipping guidance: `share` of the calls, spread within the bounds, predicted by `predictor`."""

    sampler: Sampler
    num_inference_steps: int
    predictor: str
    share: float
    longest_run: int
    head: int
    tail: int

    def calls(self, num_calls: int) -> tuple[int, ...]:
        """The calls that skip."""
        return spread(num_calls, self.share, self.longest_run, self.head, self.tail)


@dataclass(frozen=True)
class Result:
    """The loss of a case against full guidance on the same seeds.

    `skipped` of `num_calls` calls were skipped, at most `run` in a row. `latent_error` is the mean of
    |x - x_full| / |x_full|. `score` and `full_score`, in percent, are None without a scorer.
    """

    case: Case
    pictures: int
    num_calls: int
    skipped: int
    run: int
    mean_db: float
    worst_db: float
    latent_error: float
    score: float | None = None
    full_score: float | None = None

    @property
    def rows(self) -> float:
        """UNet rows computed, as a share of those with guidance on every call."""
        return 1 - self.skipped / (2 * self.num_calls)


@dataclass(frozen=True)
class Grid:
    """The cases to try. The first sampler at the first number of steps decides the ends, `heads` x `tails`."""

    samplers: tuple[Sampler, ...]
    steps: tuple[int, ...]
    predictors: tuple[str, ...]
    shares: tuple[float, ...]
    longest_run: int
    heads: tuple[int, ...]
    tails: tuple[int, ...]

    def ends(self) -> list[Case]:
        """Every pair of head and tail, at one share and with reuse, which needs no slope."""
        return [
            Case(self.samplers[0], self.steps[0], "reuse", _ENDS_SHARE, self.longest_run, head, tail)
            for head in self.heads
            for tail in self.tails
        ]

    def curve(self, head: int, tail: int) -> list[Case]:
        """Every predictor over the shares, for every sampler and number of steps."""
        return [
            Case(sampler, steps, predictor, share, self.longest_run, head, tail)
            for steps in self.steps
            for sampler in self.samplers
            for predictor in self.predictors
            for share in self.shares
        ]


def longest_run(calls: Iterable[int]) -> int:
    """The most calls in a row."""
    longest, run, before = 0, 0, -2
    for call in sorted(calls):
        run = run + 1 if call == before + 1 else 1
        longest, before = max(longest, run), call
    return longest


def best_ends(results: Sequence[Result]) -> tuple[int, int]:
    """Head and tail of the best mean PSNR among results at one share; the fewest guided calls where equal."""
    best = max(results, key=lambda r: (round(r.mean_db, 1), -r.case.head - r.case.tail))
    return best.case.head, best.case.tail


def choose(results: Sequence[Result], floor_db: float) -> SkipCfgBudget | None:
    """The largest share that some predictor carries at `floor_db` or more of mean PSNR with every sampler, at the first
    number of steps among the results; the best predictor at it. None where no share does.

    `longest_run` is the longest at that share, `measured_db` the least of the samplers, `least_calls` the calls of the
    pictures.
    """
    steps = results[0].case.num_inference_steps
    by_budget: dict[tuple[str, float], list[Result]] = {}
    for result in results:
        if result.case.num_inference_steps == steps:
            by_budget.setdefault((result.case.predictor, result.case.share), []).append(result)
    held = {key: min(r.mean_db for r in found) for key, found in by_budget.items()}
    kept = [(by_budget[key][0].skipped, db, key) for key, db in held.items() if db >= floor_db]
    if not kept:
        return None
    _, db, key = max(kept, key=lambda skipped_db_key: skipped_db_key[:2])
    found = by_budget[key][0]
    share = found.skipped / found.num_calls
    return SkipCfgBudget(
        key[0],
        share,
        found.run,
        found.case.head,
        found.case.tail,
        floor_db,
        measured_db=round(db, 2),
        least_calls=found.num_calls,
    )


def of_budget(budget: SkipCfgBudget, sampler: Sampler, num_inference_steps: int) -> Case:
    """The case that a budget leads to where nothing else decides."""
    return Case(
        sampler, num_inference_steps, budget.predictor, budget.share, budget.longest_run, budget.head, budget.tail
    )


def confirmed(budget: SkipCfgBudget, results: Sequence[Result]) -> SkipCfgBudget:
    """The budget with the least mean PSNR among these results as its `measured_db`."""
    return replace(budget, measured_db=round(min(result.mean_db for result in results), 2))


def table(results: Sequence[Result]) -> str:
    """The results as Markdown."""
    head = (
        "| sampler | steps | predictor | head, tail | skipped | longest run | rows | pictures | mean dB | worst dB "
        "| latent error | score (full) |\n|" + "---|" * 12
    )
    return "\n".join([head, *map(_line, results)]) + "\n"


def _line(result: Result) -> str:
    case = result.case
    score = "" if result.score is None else f"{result.score:.1f} ({result.full_score:.1f})"
    return (
        f"| {case.sampler.name} | {case.num_inference_steps} | {case.predictor} | {case.head}, {case.tail} "
        f"| {result.skipped} | {result.run} | {result.rows:.3f} | {result.pictures} | {result.mean_db:.1f} "
        f"| {result.worst_db:.1f} | {result.latent_error:.4f} | {score} |"
    )


@dataclass(frozen=True)
class Loss:
    """Loss by skipping: PSNR of the pictures in dB, mean and worst; |x - x_full| / |x_full| of the latents, mean."""

    mean_db: float
    worst_db: float
    latent_error: float


@dataclass(frozen=True)
class Pictures:
    """Finished latents [n, C, h, w] fp32 on the CPU and the pictures [n, H, W, 3] of them."""

    latents: Tensor
    images: Images


@dataclass(frozen=True)
class Task:
    """The pictures to make: picture k is of prompt k, from seed k."""

    prompts: tuple[str, ...]
    sampler: Sampler
    num_inference_steps: int
    guidance_scale: float


class Studio:
    """Makes pictures with the worker's own denoiser and decoder, at the model's native size.

    `full`: those of a task with full guidance, made once and kept.
    """

    def __init__(self, unet_side: UnetSide, vae_side: VaeSide, denoiser: Denoiser | None = None) -> None:
        self._unet_side = unet_side
        self._vae_side = vae_side
        self._denoiser = denoiser or Denoiser(unet_side)
        self._preparer = TaskPreparer(unet_side)
        self.full = cache(lambda task: self.skipping(task, "", ()))

    def num_calls(self, task: Task) -> int:
        """UNet calls of each picture."""
        return self._preparer.prepare(self._specs(task, "")[:1])[0].task.num_calls

    def skipping(self, task: Task, predictor: str, calls: Collection[int]) -> Pictures:
        """The pictures with guidance skipped on `calls`, predicted as `SkipPredictor.parse` reads `predictor`."""
        specs = self._specs(task, predictor)
        latents = [
            latent
            for first in range(0, len(specs), _AT_ONCE)
            for latent in self._latents(specs[first : first + _AT_ONCE], frozenset(calls))
        ]
        finished = torch.stack(latents)
        decoded = [
            torch.from_numpy(self._vae_side.decode(part.to(self._vae_side.dtype)))
            for part in torch.split(finished, _DECODED_AT_ONCE)
        ]
        return Pictures(finished, torch.cat(decoded).numpy())

    def _latents(self, specs: Sequence[TaskSpec], calls: frozenset[int]) -> list[Tensor]:
        tasks = [prepared.task for prepared in self._preparer.prepare(specs)]
        while not tasks[0].done:
            self._denoiser.step(tasks, [tasks[0].next_call in calls] * len(tasks))
        return [task.sample.cpu() for task in tasks]

    def _specs(self, task: Task, predictor: str) -> list[TaskSpec]:
        width, height = self._unet_side.native_size
        return [
            TaskSpec(
                task_id=f"fidelity/{seed}",
                prompt=prompt,
                negative_prompt="",
                width=width,
                height=height,
                num_inference_steps=task.num_inference_steps,
                guidance_scale=task.guidance_scale,
                seed=seed,
                sampler=task.sampler,
                preview_every=0,
                skip_predictor=predictor,
            )
            for seed, prompt in enumerate(task.prompts)
        ]


def loss(pictures: Pictures, full: Pictures) -> Loss:
    """How far pictures are from those with full guidance."""
    off = torch.from_numpy(pictures.images).float() - torch.from_numpy(full.images).float()
    psnr = 10 * torch.log10(255**2 / off.square().flatten(1).mean(1).clamp_min(_LEAST_SQUARED_ERROR))
    error = (pictures.latents - full.latents).flatten(1).norm(dim=1) / full.latents.flatten(1).norm(dim=1)
    return Loss(psnr.mean().item(), psnr.min().item(), error.mean().item())
