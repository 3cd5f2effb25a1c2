"""Reads the coefficients of a diffusers scheduler off the scheduler itself, by running it on basis vectors.

A scheduler's *memories* are the tensors of the sample's shape that it keeps from one call to the next. Before each call
every memory is replaced by a basis vector, and sample and model output are basis vectors too. So the call's result, and
the contents of its memories afterwards, are the lists of that call's coefficients. Some extra dimensions hold zeros in
all of them: any value that comes back there is noise.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
import torch
from diffusers.utils.torch_utils import randn_tensor
from numpy.typing import NDArray
from torch import Tensor

from services.unet_worker.sampler_table import NoiseDtype, SamplerTable
from synerdiff.errors import FieldViolation, InvalidRequest, SynerDiffError

SAMPLE, OUTPUT, NOISE = "<sample>", "<output>", "<noise>"  # no names of attributes
MAX_LISTED = 12  # entries of one list that count as memories, the last ones: some schedulers keep all, and use few
MAX_MEMORIES = 30
_NOISE_DIMS = 8
_INPUT_DIMS = MAX_MEMORIES + 2
_SHAPE = (2, 4, 1, (_INPUT_DIMS + _NOISE_DIMS) // 4)  # a batch of two latents of four channels
# Two amplitudes in one batch, so that clipping and thresholding show as coefficients that differ. Both powers of two:
# exact in float32. The first is large, so that noise of size 1 leaves the coefficients read there exact to 1e-13.
_AMPLITUDES = np.array([2.0**20, -1.0])
_TOLERANCE = 1e-5  # relative, for the rounding of schedulers in float32
_NEGLIGIBLE = 1e-10  # float64 rounding: where a scheduler's terms cancel, the coefficient is 0
_NOISE_SEED = 20240229
_NOISE_DTYPES: dict[NoiseDtype, torch.dtype] = {"float32": torch.float32, "model": torch.float64}

Array = NDArray[np.float64]
# The values after a call, each as the weights of the values before it; those of no weight are left out.
Weights = Mapping[str, Mapping[str, float]]
# Errors that diffusers schedulers raise when asked for more than they can do; few of them check it.
SCHEDULER_ERRORS = (ValueError, LookupError, AttributeError, TypeError, ArithmeticError, RuntimeError, AssertionError)


class UnsupportedScheduler(SynerDiffError):
    """UNIMPLEMENTED: the scheduler's step is not a linear function of sample, output, memories and one noise."""

    code = grpc.StatusCode.UNIMPLEMENTED


class UnsupportedSteps(InvalidRequest):
    """INVALID_ARGUMENT: diffusers itself cannot run this scheduler with that many steps."""

    def __init__(self, scheduler_name: str, num_inference_steps: int, reason: str) -> None:
        super().__init__(
            FieldViolation("num_inference_steps", f"{scheduler_name} cannot do {num_inference_steps}: {reason}")
        )
        self.reason = reason


@dataclass(frozen=True)
class SchedulerCoefficients:
    """The coefficients of each call of a scheduler, in float64.

    timesteps, input_scale: [num_calls]. weights: per call, of SAMPLE and of every memory after it, over SAMPLE, OUTPUT,
    NOISE and the memories before it. draws_noise: [num_calls]; noise_dtype, init_noise_sigma: as in SamplerTable.
    """

    timesteps: Array
    input_scale: Array
    init_noise_sigma: float
    weights: tuple[Weights, ...]
    draws_noise: tuple[bool, ...]
    noise_dtype: NoiseDtype


@dataclass(frozen=True)
class _Call:
    """One call's answers to the basis, [2, dims] each. `before`: the memories. `drawn`: the noise, zeros for none."""

    before: tuple[str, ...]
    scaled: Array
    after: Mapping[str, Array]
    drawn: Array
    noise_dtype: NoiseDtype | None


def probe_scheduler(scheduler: Any, num_inference_steps: int) -> SchedulerCoefficients:
    """The coefficients of a diffusers scheduler, which is left in a used state.

    Raises UnsupportedScheduler, naming its class, when its steps are not of the form that SchedulerCoefficients has,
    and UnsupportedSteps when diffusers fails with `num_inference_steps` or answers with NaN or infinity.
    """
    name = type(scheduler).__name__
    try:
        with torch.no_grad():
            scheduler.set_timesteps(num_inference_steps)
            init_noise_sigma = float(scheduler.init_noise_sigma)
            int(scheduler.order)  # pipelines ask for it too
            calls = _run(scheduler, num_inference_steps)
    except SCHEDULER_ERRORS as error:
        raise UnsupportedSteps(name, num_inference_steps, _said(error)) from error
    return SchedulerCoefficients(
        timesteps=scheduler.timesteps.to(torch.float64).cpu().numpy(),
        input_scale=np.array([_input_scale(scheduler, number, call) for number, call in enumerate(calls)]),
        init_noise_sigma=init_noise_sigma,
        weights=tuple(_weights(scheduler, number, call) for number, call in enumerate(calls)),
        draws_noise=tuple(call.noise_dtype is not None for call in calls),
        noise_dtype=_only_noise_dtype(calls, name),
    )


def step_options(scheduler: Any, generator: torch.Generator) -> dict[str, Any]:
    """The options that a Stable Diffusion pipeline gives to every step: those of them that the scheduler takes."""
    taken = inspect.signature(scheduler.step).parameters
    return {name: value for name, value in {"eta": 0.0, "generator": generator}.items() if name in taken}


def _run(scheduler: Any, num_inference_steps: int) -> list[_Call]:
    """Run the scheduler over its timesteps on fresh basis vectors, as a pipeline would."""
    generator = torch.Generator().manual_seed(_NOISE_SEED)
    options = step_options(scheduler, generator)
    calls = []
    for timestep in scheduler.timesteps:
        memories = _memories(scheduler)
        for dimension, (holder, key) in enumerate(memories.values()):
            holder[key] = _basis(dimension).to(holder[key].dtype)
        sample, output = _basis(MAX_MEMORIES), _basis(MAX_MEMORIES + 1)
        before = generator.get_state()
        scaled = scheduler.scale_model_input(sample, timestep)
        stepped = scheduler.step(output, timestep, sample, return_dict=False, **options)[0]
        dtype, noise = _redraw(before, generator.get_state())
        after = {SAMPLE: stepped, **{name: holder[key] for name, (holder, key) in _memories(scheduler).items()}}
        if not (scaled.isfinite().all() and stepped.isfinite().all()):
            raise UnsupportedSteps(type(scheduler).__name__, num_inference_steps, "its coefficients are not all finite")
        rows = {name: _row(tensor) for name, tensor in after.items()}
        calls.append(_Call(tuple(memories), _row(scaled), rows, _row(noise), dtype))
    return calls


def _memories(scheduler: Any) -> dict[str, tuple[Any, Any]]:
    """Every memory of a scheduler by name: the container that holds it, and its key there."""
    attributes = vars(scheduler)
    found: dict[str, tuple[Any, Any]] = {}
    for name, value in attributes.items():
        if isinstance(value, list):
            for index in range(-min(len(value), MAX_LISTED), 0):
                if _is_memory(value[index]):
                    found[f"{name}[{index}]"] = (value, index)
        elif _is_memory(value):
            found[name] = (attributes, name)
    if len(found) > MAX_MEMORIES:
        raise UnsupportedScheduler(f"{type(scheduler).__name__} has {len(found)} memories, more than {MAX_MEMORIES}")
    return found


def _is_memory(value: Any) -> bool:
    return isinstance(value, Tensor) and value.shape == _SHAPE


def _basis(dimension: int) -> Tensor:
    """The basis vector at both amplitudes, of shape _SHAPE. A new tensor each time: schedulers keep their arguments."""
    vector = torch.zeros(_SHAPE, dtype=torch.float64)
    vector.view(2, -1)[:, dimension] = torch.from_numpy(_AMPLITUDES)
    return vector


def _row(tensor: Tensor) -> Array:
    row: Array = tensor.to(torch.float64).reshape(2, -1).numpy().copy()
    return row


def _redraw(before: Tensor, after: Tensor) -> tuple[NoiseDtype | None, Tensor]:
    """The noise that took the generator from one state to the other, and how it was drawn; None and zeros for none."""
    if not torch.equal(before, after):
        for name, dtype in _NOISE_DTYPES.items():
            generator = torch.Generator()
            generator.set_state(before)
            noise = randn_tensor(_SHAPE, generator=generator, dtype=dtype)
            if torch.equal(generator.get_state(), after):
                return name, noise.to(torch.float64)
    return None, torch.zeros(_SHAPE, dtype=torch.float64)


def _weights(scheduler: Any, number: int, call: _Call) -> Weights:
    name = type(scheduler).__name__
    weights: dict[str, dict[str, float]] = {}
    for value, answer in call.after.items():
        noise = _noise_weight(answer, call.drawn, name, number)
        row = _linear(answer - noise * call.drawn, scheduler, "step", number)
        known = dict(zip(call.before, row, strict=False)) | {
            SAMPLE: row[MAX_MEMORIES],
            OUTPUT: row[MAX_MEMORIES + 1],
            NOISE: noise,
        }
        weights[value] = {source: float(weight) for source, weight in known.items() if weight}
    return weights


def _noise_weight(answer: Array, drawn: Array, name: str, number: int) -> float:
    """The weight of the noise, solved on the dimensions where there is nothing else."""
    answer, noise = answer[:, _INPUT_DIMS:], drawn[:, _INPUT_DIMS:]
    power = (noise**2).sum()
    weight = float((answer * noise).sum() / power) if power > 0 else 0.0
    if np.abs(answer - weight * noise).max() > _TOLERANCE * max(1.0, abs(weight)):
        raise UnsupportedScheduler(
            f"{name} adds something at call {number} that is not one draw of noise from the generator it is given"
        )
    return weight


def _linear(answer: Array, scheduler: Any, method: str, number: int) -> Array:
    """[dims] coefficients from the answers at both amplitudes; raises where these do not agree."""
    at_large, at_small = answer / _AMPLITUDES[:, None]
    scale = max(1.0, float(np.abs(at_large).max()))
    if (np.abs(at_large - at_small) > _TOLERANCE * scale).any():
        options = [f"{o}=True" for o in ("thresholding", "clip_sample") if scheduler.config.get(o)]
        because = f" ({', '.join(options)})" if options else ""
        raise UnsupportedScheduler(f"{type(scheduler).__name__}.{method} is not linear at call {number}{because}")
    coefficients: Array = np.where(np.abs(at_large) > _NEGLIGIBLE * scale, at_large, 0.0)
    return coefficients


def _input_scale(scheduler: Any, number: int, call: _Call) -> float:
    """The factor of the sample; raises when anything else has weight."""
    scaled = _linear(call.scaled, scheduler, "scale_model_input", number)
    factor = float(scaled[MAX_MEMORIES])
    scaled[MAX_MEMORIES] = 0
    if scaled.any():
        raise UnsupportedScheduler(f"{type(scheduler).__name__}.scale_model_input does more than multiply its sample")
    return factor


def _only_noise_dtype(calls: Sequence[_Call], name: str) -> NoiseDtype:
    found = {call.noise_dtype for call in calls if call.noise_dtype is not None}
    if len(found) > 1:
        raise UnsupportedScheduler(f"{name} draws noise in more than one dtype: {', '.join(sorted(found))}")
    return found.pop() if found else "model"


def _said(error: Exception) -> str:
    """An error of diffusers in one line; with its type where the message says little."""
    words = " ".join(str(error).split())
    return words if isinstance(error, ValueError) and words else f"{type(error).__name__}: {words}"


def build_table(coefficients: SchedulerCoefficients) -> SamplerTable:
    """The table of a probed scheduler. A memory has a register from the call that makes it to the last that uses it."""
    weights = coefficients.weights
    layouts = _layouts(weights)
    num_registers = 1 + max(register for layout in layouts for register in layout.values())
    matrix = np.zeros((len(weights), num_registers, num_registers + 2))
    for call, after in enumerate(weights):
        columns = {**layouts[call], OUTPUT: num_registers, NOISE: num_registers + 1}
        for value, register in layouts[call + 1].items():
            matrix[call, register] = 0  # two values of one register have the same weights
            for source, weight in after[value].items():
                matrix[call, register, columns[source]] += weight
    return SamplerTable(
        timesteps=_float32(coefficients.timesteps),
        input_scale=_float32(coefficients.input_scale),
        init_noise_sigma=coefficients.init_noise_sigma,
        matrix=_float32(matrix),
        draws_noise=coefficients.draws_noise,
        noise_dtype=coefficients.noise_dtype,
    )


def _layouts(weights: tuple[Weights, ...]) -> list[Mapping[str, int]]:
    """Before each call, and after the last, the register of every value that is still needed; the sample's is 0."""
    layouts: list[Mapping[str, int]] = [{SAMPLE: 0}]
    for after, needed in zip(weights, _needed(weights)[1:], strict=True):
        layout = {SAMPLE: 0}
        register_of = {_key(after[SAMPLE]): 0}  # by its contents: equal values share a register
        for value in sorted(needed):
            free = min(set(range(1, len(needed) + 1)) - set(register_of.values()), default=0)
            layout[value] = register_of.setdefault(_key(after[value]), free)
        layouts.append(layout)
    return layouts


def _needed(weights: tuple[Weights, ...]) -> list[set[str]]:
    """Before each call, and after the last, the memories that the samples to come depend on."""
    needed: list[set[str]] = [set()]
    for after in reversed(weights):
        sources = {source for value in {SAMPLE, *needed[-1]} for source in after[value]}
        needed.append(sources - {SAMPLE, OUTPUT, NOISE})
    return needed[::-1]


def _key(weights: Mapping[str, float]) -> tuple[tuple[str, float], ...]:
    return tuple(sorted(weights.items()))


def _float32(values: Array) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).to(torch.float32)
