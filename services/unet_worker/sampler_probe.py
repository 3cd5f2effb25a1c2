"""Reads the coefficients of a diffusers scheduler off the scheduler itself, by running it on basis vectors.

At each call the scheduler gets a *fresh* basis vector as its sample (not its own last output) and another as the model
output, so what it returns is the list of that call's coefficients over this and earlier samples and outputs. The basis
is cyclic with period `PERIOD`; what depends on anything older than `MAX_AGE` calls shows as such and is refused. Some
extra dimensions hold zeros in both: whatever comes back there is noise.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
import torch
from diffusers.utils.torch_utils import randn_tensor
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from services.unet_worker.sampler_table import NoiseDtype
from synerdiff.errors import FieldViolation, InvalidRequest, SynerDiffError

MAX_AGE = 4  # PNDM reaches back four calls, further than any other sampler
PERIOD = 2 * (MAX_AGE + 1)
_NOISE_DIMS = 8
_SHAPE = (2, 4, 1, (2 * PERIOD + _NOISE_DIMS) // 4)  # a batch of two latents of four channels
# Two amplitudes in one batch, so that clipping and thresholding show as coefficients that differ. Both powers of two:
# exact in float32. The first is large, so that noise of size 1 leaves the coefficients read there exact to 1e-13.
_AMPLITUDES = np.array([2.0**20, -1.0])
_TOLERANCE = 1e-5  # of what schedulers round in float32
_NEGLIGIBLE = 1e-10  # float64 rounding: where a scheduler's terms cancel, the coefficient is 0
_NOISE_SEED = 20240229
_NOISE_DTYPES: dict[NoiseDtype, torch.dtype] = {"float32": torch.float32, "model": torch.float64}

Array = NDArray[np.float64]
# What diffusers schedulers raise when asked for more than they can do; few of them check it.
SCHEDULER_ERRORS = (ValueError, LookupError, AttributeError, TypeError, ArithmeticError, RuntimeError)


class UnsupportedScheduler(SynerDiffError):
    """UNIMPLEMENTED: the scheduler's step is not a linear function of the last few samples, outputs and one noise."""

    code = grpc.StatusCode.UNIMPLEMENTED


class UnsupportedSteps(InvalidRequest):
    """INVALID_ARGUMENT: diffusers itself cannot run this scheduler with that many steps."""

    def __init__(self, scheduler_name: str, num_inference_steps: int, reason: str) -> None:
        super().__init__(
            FieldViolation("num_inference_steps", f"{scheduler_name} cannot do {num_inference_steps}: {reason}")
        )


@dataclass(frozen=True)
class SchedulerCoefficients:
    """What each call of a scheduler does, in float64; `age` counts calls back from the present one.

    timesteps, input_scale, noise: [num_calls]; samples, outputs: [num_calls, MAX_AGE + 1] by age;
    draws_noise: [num_calls]; noise_dtype, init_noise_sigma: as in SamplerTable.
    """

    timesteps: Array
    input_scale: Array
    init_noise_sigma: float
    samples: Array
    outputs: Array
    noise: Array
    draws_noise: tuple[bool, ...]
    noise_dtype: NoiseDtype


@dataclass(frozen=True)
class _Trace:
    """The answers of a scheduler to the basis, [calls, 2, dims] each; `drawn` is the noise drawn again, else zeros."""

    scaled: Array
    stepped: Array
    drawn: Array
    noise_dtypes: tuple[NoiseDtype | None, ...]


def probe_scheduler(scheduler: Any, num_inference_steps: int) -> SchedulerCoefficients:
    """The coefficients of a diffusers scheduler, which is left in a used state.

    Raises UnsupportedScheduler, naming its class, when its steps are not of the form that SchedulerCoefficients has,
    and UnsupportedSteps when diffusers fails with `num_inference_steps` or answers with what is not a number.
    """
    name = type(scheduler).__name__
    try:
        with torch.no_grad():
            scheduler.set_timesteps(num_inference_steps)
            trace = _run(scheduler)
    except SCHEDULER_ERRORS as error:
        raise UnsupportedSteps(name, num_inference_steps, str(error)) from error
    if not (np.isfinite(trace.stepped).all() and np.isfinite(trace.scaled).all()):
        raise UnsupportedSteps(name, num_inference_steps, "its coefficients are not all finite")
    noise = _noise_coefficients(trace, name)
    stepped = _linear(trace.stepped - noise[:, None, None] * trace.drawn, scheduler, "step")
    return SchedulerCoefficients(
        timesteps=scheduler.timesteps.to(torch.float64).cpu().numpy(),
        input_scale=_input_scale(_linear(trace.scaled, scheduler, "scale_model_input"), name),
        init_noise_sigma=float(scheduler.init_noise_sigma),
        samples=_by_age(stepped[:, :PERIOD], name, "samples"),
        outputs=_by_age(stepped[:, PERIOD : 2 * PERIOD], name, "model outputs"),
        noise=noise,
        draws_noise=tuple(dtype is not None for dtype in trace.noise_dtypes),
        noise_dtype=_only_noise_dtype(trace.noise_dtypes, name),
    )


def _run(scheduler: Any) -> _Trace:
    """Run the scheduler over its timesteps on fresh basis vectors, as a pipeline would."""
    generator = torch.Generator().manual_seed(_NOISE_SEED)
    takes_generator = "generator" in inspect.signature(scheduler.step).parameters
    options = {"generator": generator} if takes_generator else {}
    scale = getattr(scheduler, "scale_model_input", lambda sample, _: sample)
    scaled, stepped, drawn, noise_dtypes = [], [], [], []
    for call, timestep in enumerate(scheduler.timesteps):
        sample, output = _basis(call % PERIOD), _basis(PERIOD + call % PERIOD)
        before = generator.get_state()
        scaled.append(scale(sample, timestep))
        stepped.append(scheduler.step(output, timestep, sample, return_dict=False, **options)[0])
        dtype, noise = _redraw(before, generator.get_state())
        noise_dtypes.append(dtype)
        drawn.append(noise)
    return _Trace(_rows(scaled), _rows(stepped), _rows(drawn), tuple(noise_dtypes))


def _basis(dimension: int) -> Tensor:
    """The basis vector at both amplitudes, of shape _SHAPE. A new tensor each time: schedulers keep what they get."""
    vector = torch.zeros(_SHAPE, dtype=torch.float64)
    vector.view(2, -1)[:, dimension] = torch.from_numpy(_AMPLITUDES)
    return vector


def _rows(tensors: Sequence[Tensor]) -> Array:
    rows: Array = torch.stack(list(tensors)).to(torch.float64).view(len(tensors), 2, -1).numpy()
    return rows


def _redraw(before: Tensor, after: Tensor) -> tuple[NoiseDtype | None, Tensor]:
    """The noise that took the generator from one state to the other, and how it was drawn; None and zeros for no noise.

    Noise that cannot be redrawn counts as none; it then stands out as what no coefficient explains.
    """
    if not torch.equal(before, after):
        for name, dtype in _NOISE_DTYPES.items():
            generator = torch.Generator()
            generator.set_state(before)
            noise = randn_tensor(_SHAPE, generator=generator, dtype=dtype)
            if torch.equal(generator.get_state(), after):
                return name, noise.to(torch.float64)
    return None, torch.zeros(_SHAPE, dtype=torch.float64)


def _noise_coefficients(trace: _Trace, name: str) -> Array:
    """The weight of the noise per call, solved on the dimensions where there is nothing else."""
    answer, noise = trace.stepped[:, :, 2 * PERIOD :], trace.drawn[:, :, 2 * PERIOD :]
    power = (noise**2).sum((1, 2))
    coefficients = (answer * noise).sum((1, 2)) / np.where(power > 0, power, 1)
    unexplained: Array = np.abs(answer - coefficients[:, None, None] * noise).max((1, 2))
    if (bad := _first(unexplained > _TOLERANCE * np.maximum(1, np.abs(coefficients)))) is not None:
        raise UnsupportedScheduler(
            f"{name} adds something at call {bad} that is not one draw of noise from the generator it is given"
        )
    weights: Array = coefficients
    return weights


def _linear(answers: Array, scheduler: Any, method: str) -> Array:
    """[calls, dims] coefficients from the answers at both amplitudes; raises where these do not agree."""
    at_large, at_small = np.moveaxis(answers / _AMPLITUDES[:, None], 1, 0)
    scale = np.maximum(1, np.abs(at_large).max(1, keepdims=True))
    if (bad := _first((np.abs(at_large - at_small) > _TOLERANCE * scale).any(1))) is not None:
        options = [f"{o}=True" for o in ("thresholding", "clip_sample") if scheduler.config.get(o)]
        because = f" ({', '.join(options)})" if options else ""
        raise UnsupportedScheduler(f"{type(scheduler).__name__}.{method} is not linear at call {bad}{because}")
    coefficients: Array = np.where(np.abs(at_large) > _NEGLIGIBLE * scale, at_large, 0.0)
    return coefficients


def _by_age(cyclic: Array, name: str, what: str) -> Array:
    """[calls, PERIOD] by dimension to [calls, MAX_AGE + 1] by age; raises when anything older has weight."""
    calls = np.arange(len(cyclic))[:, None]
    by_age: Array = np.take_along_axis(cyclic, (calls - np.arange(PERIOD)) % PERIOD, axis=1)
    if (bad := _first(by_age[:, MAX_AGE + 1 :].any(1))) is not None:
        raise UnsupportedScheduler(
            f"{name} cannot be served: at call {bad} it depends on {what} of more than {MAX_AGE} calls before"
        )
    return by_age[:, : MAX_AGE + 1]


def _input_scale(scaled: Array, name: str) -> Array:
    """[calls] factors of the present sample; raises when anything else has weight."""
    calls = np.arange(len(scaled))
    factors = scaled[calls, calls % PERIOD]
    rest = scaled.copy()
    rest[calls, calls % PERIOD] = 0
    if rest.any():
        raise UnsupportedScheduler(f"{name}.scale_model_input does more than multiply its sample")
    return factors


def _only_noise_dtype(dtypes: tuple[NoiseDtype | None, ...], name: str) -> NoiseDtype:
    found = {dtype for dtype in dtypes if dtype is not None}
    if len(found) > 1:
        raise UnsupportedScheduler(f"{name} draws noise in more than one dtype: {', '.join(sorted(found))}")
    return found.pop() if found else "model"


def _first(flags: ArrayLike) -> int | None:
    found = np.flatnonzero(flags)
    return int(found[0]) if found.size else None
